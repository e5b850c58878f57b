// SPDX-License-Identifier: GPL-2.0
//! The cost of events that may share a datagram, which listeners have to request.

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

/// Whether the kernel has no batches. If so, reports that this many figures are missing.
pub fn are_missing(figures: usize) -> Result<bool> {
    if debugfs::is_there() {
        return Ok(false);
    }
    let reason = "each event has a datagram of its own".to_owned();
    missing(figures, Situation::Batch, reason)?;
    Ok(true)
}

/// Measures with this many listeners and without listeners, in turn. The number of events that are
/// raised before the listeners read does not depend on the number of listeners. An event needs a new
/// datagram if nothing is unread, or if the last datagram is full. Each event has its share of that
/// cost.
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
