// SPDX-License-Identifier: GPL-2.0
//! The additional cost of an operation with listeners, compared to the same operation without
//! listeners. Both are measured in turn.
//!
//! The cost of an operation changes while a machine runs: tables of processes grow, and lists of free
//! pages change. A round measures everything with and without listeners within the same few seconds,
//! and the rounds show how much they differ.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use protocol::bench::{BenchRecord, Cost, Measurement, Operation, Situation};

use super::listener_set::ListenerSet;
use super::measure::{Measured, Times, median};
use super::report::report_line;
use super::worker::Worker;

/// How often everything is measured in turn, without and with listeners.
pub const ROUNDS: usize = 3;

/// The number of batches of an operation in a round.
pub const ROUND_BATCHES: usize = 5;

/// The same for batches of a given number of repetitions. These are short: with 64 listeners, 8 events
/// fill a batch. A slab that grows in one of them changes its cost by more than what is measured.
const SHORT_BATCHES: usize = 15;

/// Hooks that have no listener any more are switched off a second late.
pub const LINGER: Duration = Duration::from_millis(1500);

/// The measurements so far.
#[derive(Default)]
pub struct Rounds(BTreeMap<(Operation, Situation), Vec<Measured>>);

impl Rounds {
    /// Measures operations without listeners, and then calls `with` to measure with listeners. Both
    /// are done in turn, so that changes over time are in both. At the end of each turn, the
    /// listeners stop listening.
    pub fn in_turn(
        worker: &mut Worker,
        set: &mut ListenerSet,
        operations: &[Operation],
        mut with: impl FnMut(&mut Self, &mut Worker, &mut ListenerSet) -> Result<()>,
    ) -> Result<Self> {
        let mut rounds = Self::default();
        for _ in 0..ROUNDS {
            for operation in operations {
                rounds.measure(worker, *operation, Situation::NoListener, &mut |_| {
                    set.expect_nothing()
                })?;
            }
            with(&mut rounds, worker, set)?;
            set.ignore()?;
            thread::sleep(LINGER);
        }
        Ok(rounds)
    }

    /// Measures an operation for this round. `between` is called after each batch, with the number
    /// of repetitions.
    pub fn measure(
        &mut self,
        worker: &mut Worker,
        operation: Operation,
        situation: Situation,
        between: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut times = Times::default();
        times.take(
            ROUND_BATCHES,
            &mut |times| worker.run(operation, times),
            between,
        )?;
        self.add(operation, situation, times);
        Ok(())
    }

    /// The same in batches of this many repetitions, however long these take. This is for operations
    /// whose cost depends on the number of repetitions.
    pub fn measure_of(
        &mut self,
        repetitions: u64,
        worker: &mut Worker,
        operation: Operation,
        situation: Situation,
        between: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut operate = |times| worker.run(operation, times);
        // Warms up.
        Times::default().take_of(1, repetitions, &mut operate, between)?;
        let mut times = Times::default();
        times.take_of(SHORT_BATCHES, repetitions, &mut operate, between)?;
        self.add(operation, situation, times);
        Ok(())
    }

    fn add(&mut self, operation: Operation, situation: Situation, times: Times) {
        let rounds = self.0.entry((operation, situation)).or_default();
        rounds.push(times.measured());
    }

    /// Reports the figures of all rounds.
    pub fn report(&self, operation: Operation, situation: Situation, listeners: u32) -> Result<()> {
        let of = |situation| {
            let rounds = self.0.get(&(operation, situation));
            rounds.with_context(|| format!("{} was not measured", operation.name()))
        };
        let (with, baseline) = (of(situation)?, of(Situation::NoListener)?);
        let plain = situation.without_identity().map(of).transpose()?;
        let all = Measured::of_rounds(with);
        report_line(&BenchRecord::Measurement(Measurement {
            operation,
            situation,
            listeners,
            instructions: all.median,
            spread: all.spread,
            low: all.low,
            cost: Some(cost(operation, with, baseline)),
            added: plain.map(|plain| cost(operation, with, plain)),
        }))
    }
}

/// The additional cost of the rounds with listeners, compared to those without, or to those with
/// other listeners.
fn cost(operation: Operation, with: &[Measured], without: &[Measured]) -> Cost {
    let figure = |measured: &Measured| match operation.is_of_processes() {
        true => measured.low,
        false => measured.median,
    };
    let mut costs: Vec<_> = with
        .iter()
        .zip(without)
        .map(|(with, without)| figure(with) - figure(without))
        .collect();
    let instructions = median(&mut costs);
    let distances = costs.iter().map(|cost| (cost - instructions).abs());
    Cost {
        instructions,
        spread: distances.fold(0.0, f64::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(median: f64, low: f64) -> Measured {
        Measured {
            median,
            spread: 0.0,
            low,
        }
    }

    #[test]
    fn changes_over_time_are_in_both() {
        let baseline = [100.0, 130.0, 150.0].map(|time| measured(time, time - 10.0));
        let with = [110.0, 138.0, 161.0].map(|time| measured(time, time - 20.0));
        let expected = Cost {
            instructions: 10.0,
            spread: 2.0,
        };
        assert_eq!(cost(Operation::Comm, &with, &baseline), expected);
        let expected = Cost {
            instructions: 0.0,
            spread: 2.0,
        };
        assert_eq!(cost(Operation::ShortFork, &with, &baseline), expected);
    }
}
