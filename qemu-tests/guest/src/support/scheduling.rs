// SPDX-License-Identifier: GPL-2.0
//! Which of two tasks runs first on one CPU: tests force an order that is rare by itself.

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};

use crate::cpus::{cpus, pin};

/// Lets the calling thread, and those that it makes, run on the first CPU only.
pub fn share_a_cpu() -> nix::Result<()> {
    let cpus = cpus()?;
    pin(*cpus.first().ok_or(Errno::ENODEV)?)
}

/// Lets the calling thread run before all ordinary ones on its CPU, whenever it can. The threads and
/// processes that it makes are ordinary.
pub fn preempt_others() -> nix::Result<()> {
    let parameters = libc::sched_param { sched_priority: 10 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: The parameters live until the call has read them.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    Errno::result(result).map(drop)
}

/// Lets this process run before the processes that it makes from now on, all on one CPU, until it waits
/// for something. Its memory is locked, so that it does not wait for a read from a file, either.
pub fn run_first() -> nix::Result<()> {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)?;
    share_a_cpu()?;
    preempt_others()
}
