// SPDX-License-Identifier: GPL-2.0
//! Processes that clone3(2) makes.

use nix::libc;

use super::process::succeed;
use crate::child::{self, Gate};
use crate::harness::{Failure, TestResult};

/// `CLONE_INTO_CGROUP`, which does not fit into the type of libc's constants.
pub const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A function that waits for the end of a child.
pub type End = Box<dyn FnOnce() -> TestResult>;

/// clone3(2)'s arguments for a process that its parent waits for.
pub fn arguments(flags: u64) -> libc::clone_args {
    // SAFETY: All fields are numbers, which may be 0.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments
}

/// A process that waits until it may end, made by clone3(2).
pub fn clone3(arguments: &libc::clone_args, leave: &Gate) -> Result<End, Failure> {
    let child = child::clone3(arguments, || i32::from(leave.pass().is_err()))?;
    Ok(Box::new(|| succeed(child)))
}
