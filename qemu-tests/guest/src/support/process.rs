// SPDX-License-Identifier: GPL-2.0
//! Child processes that run functions of tests.

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::WaitStatus;
use nix::unistd::pause;

use crate::child::{self, Child};
use crate::harness::{TestResult, expect_eq};

/// Runs the function of a child process, and returns the exit status. A failure is printed.
pub fn status(function: impl FnOnce() -> TestResult) -> i32 {
    match function() {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("in process {}: {failure}", child::own_pid());
            1
        }
    }
}

/// Waits for a process, and expects it to succeed.
#[track_caller]
pub fn succeed(process: Child) -> TestResult {
    let pid = process.pid();
    let ended = process.wait()?;
    expect_eq("the end of a process", ended, WaitStatus::Exited(pid, 0))
}

/// Waits to be killed.
pub fn pause_for_ever() -> ! {
    loop {
        pause();
    }
}

/// Has the kernel reap this process's children.
pub fn ignore_children() -> nix::Result<()> {
    // SAFETY: No handler is installed.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map(drop)
}
