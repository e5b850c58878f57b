// SPDX-License-Identifier: GPL-2.0
//! The cost of LISTEN and IGNORE for their sender, and of close(2) of a listener for its caller.

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use protocol::bench::{Operation, Situation};

use super::listener_set::ListenerSet;
use super::measure::{measure, repeated};
use super::report::report_figure;
use crate::listener::Listener;
use crate::wire::{IGNORE, LISTEN, mask};

/// How many figures [`requests`] reports.
pub const REQUESTS: usize = 2;

/// How many figures [`closing`] reports.
pub const CLOSING: usize = 1;

/// Measures LISTEN and IGNORE while others listen. Only the instructions that the caller itself
/// executes count, because it may have to wait for all tasks that are raising an event.
pub fn requests(others: &[Listener]) -> Result<()> {
    let mut set = ListenerSet::of(Listener::open()?);
    let others = others.len() as u32;
    for (operation, before, request) in [
        (Operation::Listen, IGNORE, LISTEN),
        (Operation::Ignore, LISTEN, IGNORE),
    ] {
        let measured = measure(
            &mut repeated(|| {
                let listener = &set.listeners()[0];
                listener.request(&[before, mask::COMM])?;
                let started = own_time()?;
                listener.request(&[request, mask::COMM])?;
                Ok(own_time()? - started)
            }),
            &mut |_| Ok(()),
        )?;
        report_figure(operation, Situation::Everything, others, measured)?;
        set.change(mask::COMM)?;
    }
    set.drain(0, 0)?;
    set.ignore()
}

/// Measures close(2) of a listener while others listen. The unpatched kernel counts such a listener
/// forever.
pub fn closing(others: &[Listener]) -> Result<()> {
    let closed = measure(
        &mut repeated(|| {
            let listener = Listener::open()?;
            listener.request(&[LISTEN, mask::COMM])?;
            let started = own_time()?;
            drop(listener);
            Ok(own_time()? - started)
        }),
        &mut |_| Ok(()),
    )?;
    let others = others.len() as u32;
    report_figure(Operation::Close, Situation::Everything, others, closed)
}

/// The time in nanoseconds, and so in instructions, that this thread has been running.
fn own_time() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(1_000_000_000 * time.tv_sec() as u64 + time.tv_nsec() as u64)
}
