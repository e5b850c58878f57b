// SPDX-License-Identifier: GPL-2.0
//! A tracer of other processes, see ptrace(2).

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::harness::TestResult;

/// Attaches to a thread of another process, and detaches. The thread keeps running.
pub fn trace(thread: Pid) -> TestResult {
    ptrace::seize(thread, Options::empty())?;
    ptrace::interrupt(thread)?;
    // Also a thread that is not the first one of its process.
    waitpid(thread, Some(WaitPidFlag::__WALL))?;
    Ok(ptrace::detach(thread, None)?)
}
