// SPDX-License-Identifier: GPL-2.0
//! Processes that do nothing until they are killed.

use std::ptr;

use nix::errno::Errno;
use nix::libc;

use super::process::{pause_for_ever, status};
use crate::child::{self, Gate};
use crate::harness::{Failure, TestResult};

/// Enough processes for a state to take several datagrams.
pub const MANY_IDLE: usize = 150;

/// Starts a child that does something and then waits to be killed. Returns its pid.
pub fn start_idle(function: impl FnOnce() -> TestResult) -> Result<i32, Failure> {
    let ready = Gate::new()?;
    let process = child::fork(|| {
        status(|| {
            function()?;
            ready.open(0)?;
            pause_for_ever()
        })
    })?;
    ready.pass()?;
    Ok(process.into_pid().as_raw())
}

/// Starts this many children that do nothing.
pub fn start_many_idle(count: usize) -> TestResult {
    for _ in 0..count {
        child::fork(|| pause_for_ever())?.into_pid();
    }
    Ok(())
}

/// Starts a process that shares this one's memory and has hardly anything of its own, so that there is
/// room for thousands. Returns its pid.
pub fn start_small() -> nix::Result<i32> {
    const STACK: usize = 4096;
    // It lives as long as the process, which is to be killed.
    let stack = Box::leak(vec![0_u128; STACK / size_of::<u128>()].into_boxed_slice());
    let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::SIGCHLD;
    let top = stack.as_mut_ptr_range().end.cast();
    // SAFETY: The function runs on a stack of its own, and touches nothing else.
    Errno::result(unsafe { libc::clone(wait_for_ever, top, flags, ptr::null_mut()) })
}

/// What the process of [`start_small`] does.
extern "C" fn wait_for_ever(_: *mut libc::c_void) -> libc::c_int {
    loop {
        // SAFETY: The call takes nothing, and returns only after a signal that has a handler.
        unsafe { libc::pause() };
    }
}
