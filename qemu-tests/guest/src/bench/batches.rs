// SPDX-License-Identifier: GPL-2.0
//! What events cost that may share a datagram, which listeners have to ask for.

use anyhow::Result;
use protocol::bench::{LISTENER_COUNTS, MOST_UNREAD, Operation, Situation};

use super::burst;
use super::listener_set::ListenerSet;
use super::reading;
use super::report::missing;
use super::rounds::Rounds;
use super::worker::Worker;
use crate::debugfs;
use crate::wire::mask;

/// How many figures there are: delivered to each number of listeners, reading, and a burst.
pub const FIGURES: usize = LISTENER_COUNTS.len() + reading::FIGURES + 1;

/// Measures all of them.
pub fn run(worker: &mut Worker) -> Result<()> {
    if are_missing(FIGURES)? {
        return Ok(());
    }
    for count in LISTENER_COUNTS {
        many_listeners(worker, count)?;
    }
    reading::run(Situation::Batch)?;
    burst::run(Situation::Batch)
}

/// Whether the kernel has no batches: then so many figures are told to be missing.
pub fn are_missing(figures: usize) -> Result<bool> {
    if debugfs::is_there() {
        return Ok(false);
    }
    let reason = "each event has a datagram of its own".to_owned();
    missing(figures, Situation::Batch, reason)?;
    Ok(true)
}

/// That many listeners, and nobody in turn. However many they are, the same number of events is
/// raised before they read: what finds nothing unread, or only what is full, needs a new datagram,
/// and each event has its share of that.
fn many_listeners(worker: &mut Worker, count: u32) -> Result<()> {
    let mut set = ListenerSet::silent(count)?;
    let comm = Operation::Comm;
    let rounds = Rounds::in_turn(worker, &mut set, &[comm], |rounds, worker, set| {
        set.change_form(Situation::Batch, mask::ALL)?;
        rounds.measure_of(
            MOST_UNREAD.into(),
            worker,
            comm,
            Situation::Batch,
            &mut |times| set.drain(mask::COMM, times),
        )
    })?;
    rounds.report(comm, Situation::Batch, count)
}
