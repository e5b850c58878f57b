// SPDX-License-Identifier: GPL-2.0
//! Makes sure that the clock counts instructions, and that nothing preempts what is measured.

use std::arch::asm;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::libc;
pub use protocol::clock::instructions;

/// Counts a number down to 0, with two instructions each time.
fn count_down(rounds: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: Changes a register and touches nothing else.
    unsafe {
        asm!("2:", "dec {0}", "jnz 2b", inout(reg) rounds => _, options(nomem, nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: As above.
    unsafe {
        asm!("2:", "subs {0}, {0}, #1", "b.ne 2b", inout(reg) rounds => _, options(nomem, nostack));
    }
}

/// Makes sure that the clock counts instructions, by a loop of known length. Other code may run in
/// between, so the shortest of several times counts.
pub fn check() -> Result<()> {
    const ROUNDS: u64 = 100_000;
    let mut shortest = u64::MAX;
    for _ in 0..8 {
        let started = instructions();
        count_down(ROUNDS);
        shortest = shortest.min(instructions() - started);
    }
    let expected = 2 * ROUNDS;
    ensure!(
        shortest.abs_diff(expected) <= expected / 1000,
        "the clock does not count instructions ({shortest} for {expected}): the virtual machine \
         needs -icount shift=0,sleep=off"
    );
    Ok(())
}

/// Lets neither a new child nor a woken process preempt another one before its time slice ends, so
/// that a child does not interrupt its parent.
pub fn no_preemption() -> Result<()> {
    schedule(libc::SCHED_BATCH, 0)
}

/// Lets only interrupts preempt this process and its children.
pub fn real_time() -> Result<()> {
    schedule(libc::SCHED_FIFO, 1)
}

fn schedule(policy: libc::c_int, sched_priority: libc::c_int) -> Result<()> {
    let parameter = libc::sched_param { sched_priority };
    // SAFETY: The parameter outlives the call.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    Errno::result(result)?;
    Ok(())
}
