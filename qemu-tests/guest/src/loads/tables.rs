// SPDX-License-Identifier: GPL-2.0
//! Tables of the living processes, from state and events, beside a load on all CPUs. They are begun
//! and given up again and again, and restored after losses. Whenever the load pauses, each table has
//! to match what the kernel shows in /proc and by pidfds.

use std::time::Duration;

use clap::Args;

use super::rounds::{NO_LIMIT, rounds};
use crate::harness::{TestResult, expect, expect_eq};
use crate::results;
use crate::support::background_load::beside_load;
use crate::support::follower::Follower;
use crate::wire::{BATCH, PROCESSES};

/// How much to do.
#[derive(Args)]
pub struct Options {
    /// How many rounds begin tables.
    #[arg(long, default_value_t = 1000)]
    pub starts: usize,
    /// In how many rounds listeners lose events.
    #[arg(long, default_value_t = 1000)]
    pub losses: usize,
}

/// How many events of the load are read before it pauses.
pub const EVENTS: usize = 30;

/// Runs the rounds, and prints the figures.
pub fn run(options: &Options) -> TestResult {
    begin(options.starts, NO_LIMIT)?;
    lose(options.losses, NO_LIMIT)
}

/// Begins tables in this many rounds, but begins no round after this time. Each table is begun
/// while the load runs. Some of them are given up, and one is kept through all pauses.
pub fn begin(most: usize, time: Duration) -> TestResult {
    const FLAGS: [u32; 4] = [0, BATCH, PROCESSES, PROCESSES | BATCH];
    beside_load(|load| {
        let mut kept = Follower::new(PROCESSES | BATCH)?;
        let mut again = Follower::new(BATCH)?;
        kept.complete()?;
        let starts = rounds(
            ("tables", "rounds that begin tables"),
            most,
            time,
            |round| {
                // Given up in the middle, and begun anew.
                Follower::new(0)?.read(1)?;
                for _ in 0..2 {
                    again.begin_anew()?;
                    again.read(1)?;
                }
                let mut begun = Follower::new(FLAGS[round % FLAGS.len()])?;
                begun.complete()?;
                again.complete()?;
                begun.read(EVENTS)?;
                load.pause()?;
                for follower in [&mut begun, &mut again, &mut kept] {
                    follower.expect_exact()?;
                    expect_eq("losses", follower.table.losses(), 0)?;
                    expect_eq("states", follower.table.states(), 1)?;
                }
                load.resume()
            },
        )?;
        let living = kept.living().len();
        results::figure("rounds that begin tables", starts as f64);
        println!("tables: begun in {starts} rounds, {living} processes at last");
        Ok(())
    })
}

/// Makes listeners lose events in this many rounds, but begins no round after this time. The listeners
/// do not read while the load runs. Only the state restores their tables.
pub fn lose(most: usize, time: Duration) -> TestResult {
    const ROOM: usize = 4096;
    beside_load(|load| {
        let mut pace = Follower::new(0)?;
        let mut losers = Vec::new();
        for flags in [0, BATCH, PROCESSES | BATCH] {
            losers.push(Follower::with_little_room(flags, ROOM)?);
        }
        let mut losses = 0;
        let rounds = rounds(("tables", "rounds with losses"), most, time, |_| {
            let before: Vec<_> = losers.iter().map(|loser| loser.table.losses()).collect();
            // More events than fit, in any form.
            pace.read(10 * EVENTS)?;
            load.pause()?;
            pace.expect_exact()?;
            for (loser, before) in losers.iter_mut().zip(before) {
                loser.expect_exact()?;
                let lost = loser.table.losses() - before;
                expect(lost > 0, "a loss in each round")?;
                losses += lost;
            }
            load.resume()
        })?;
        results::figure("rounds with losses", rounds as f64);
        results::figure("losses", losses as f64);
        println!("tables: {losses} losses in {rounds} rounds");
        Ok(())
    })
}
