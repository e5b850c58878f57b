// SPDX-License-Identifier: GPL-2.0
//! Child processes that run functions of tests.

use nix::sys::wait::WaitStatus;
use nix::unistd::pause;

use crate::child::{self, Child};
use crate::harness::{TestResult, expect_eq};

/// The exit status of a process that runs a function, which tells what failed.
pub fn status(function: impl FnOnce() -> TestResult) -> i32 {
    match function() {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("in process {}: {failure}", child::own_pid());
            1
        }
    }
}

/// Waits for a process, which has to succeed.
#[track_caller]
pub fn succeed(process: Child) -> TestResult {
    let pid = process.pid();
    let ended = process.wait()?;
    expect_eq("the end of a process", ended, WaitStatus::Exited(pid, 0))
}

/// Waits to be killed.
pub fn sleep() -> TestResult {
    loop {
        pause();
    }
}

/// Waits to be killed, in a child that has no failure to tell.
pub fn pause_for_ever() -> i32 {
    loop {
        pause();
    }
}
