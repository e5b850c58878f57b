// SPDX-License-Identifier: GPL-2.0
//! The cost of events with listeners that ask for IDENTITY, and with those of another CGROUP, and the
//! cost of a thread's events with a listener that asks for PROCESSES.

use anyhow::{Result, anyhow};
use protocol::bench::{MOST_UNREAD, Operation, Situation, WITH_FLAGS};

use super::listener_set::ListenerSet;
use super::report::missing;
use super::rounds::Rounds;
use super::worker::Worker;
use crate::debugfs;
use crate::support::cgroup::Group;
use crate::wire::{CGROUP, LISTEN, mask, proc_listen_in};

/// How many figures there are of each flag.
const OF_EACH: [(Situation, usize); 3] = [
    (Situation::Identity, 2 * WITH_FLAGS.len()),
    (Situation::OtherCgroup, WITH_FLAGS.len()),
    (Situation::Processes, Operation::THREADS.len()),
];

/// How many figures there are in all.
pub const FIGURES: usize = OF_EACH[0].1 + OF_EACH[1].1 + OF_EACH[2].1;

/// Measures all of them.
pub fn run(worker: &mut Worker) -> Result<()> {
    if !debugfs::is_there() {
        for (situation, figures) in OF_EACH {
            missing(figures, situation, "it has no such flag".to_owned())?;
        }
        return Ok(());
    }
    for count in WITH_FLAGS {
        identity(worker, count)?;
    }
    let group = Group::new().map_err(|failure| anyhow!("cannot make a cgroup: {failure}"))?;
    for count in WITH_FLAGS {
        outside(worker, group.id()?, count)?;
    }
    processes(worker)
}

/// Measures with this many listeners that ask for identities, with the same listeners without
/// identities, and without listeners, in turn.
fn identity(worker: &mut Worker, count: u32) -> Result<()> {
    // The number of unread messages before they read does not depend on the number of listeners.
    // With batches, the number of events does not.
    let singles = MOST_UNREAD / count;
    let forms = [
        (Situation::Everything, singles),
        (Situation::Identity, singles),
        (Situation::Batch, MOST_UNREAD),
        (Situation::IdentityBatch, MOST_UNREAD),
    ];
    let comm = Operation::Comm;
    let mut set = ListenerSet::silent(count)?;
    let rounds = Rounds::in_turn(worker, &mut set, &[comm], |rounds, worker, set| {
        for (situation, events) in forms {
            set.change_form(situation, mask::ALL)?;
            rounds.measure_of(events.into(), worker, comm, situation, &mut |times| {
                set.drain(mask::COMM, times)
            })?;
        }
        Ok(())
    })?;
    rounds.report(comm, Situation::Identity, count)?;
    rounds.report(comm, Situation::IdentityBatch, count)
}

/// Measures with this many listeners for a cgroup without processes, and without listeners, in turn.
fn outside(worker: &mut Worker, cgroup_id: u64, count: u32) -> Result<()> {
    let comm = Operation::Comm;
    let mut set = ListenerSet::silent(count)?;
    let rounds = Rounds::in_turn(worker, &mut set, &[comm], |rounds, worker, set| {
        set.ask(&proc_listen_in(LISTEN, mask::ALL, CGROUP, cgroup_id))?;
        rounds.measure(worker, comm, Situation::OtherCgroup, &mut |_| {
            set.expect_nothing()
        })
    })?;
    rounds.report(comm, Situation::OtherCgroup, count)
}

/// Measures with a listener that asks for events of processes and not of threads, and without
/// listeners, in turn.
fn processes(worker: &mut Worker) -> Result<()> {
    let mut set = ListenerSet::silent(1)?;
    let threads = Operation::THREADS;
    let rounds = Rounds::in_turn(worker, &mut set, &threads, |rounds, worker, set| {
        set.change_form(Situation::Processes, mask::FORK | mask::EXIT)?;
        for operation in threads {
            // The listener gets events of the tasks before each thread, and of the kernel's own tasks.
            rounds.measure(worker, operation, Situation::Processes, &mut |_| {
                set.drain(0, 0)
            })?;
        }
        Ok(())
    })?;
    for operation in threads {
        rounds.report(operation, Situation::Processes, 1)?;
    }
    Ok(())
}
