// SPDX-License-Identifier: GPL-2.0
//! The module is loaded and unloaded, and listeners are killed, again and again. No listener is counted
//! at the end, and the kernel's memory is as before.

use std::time::Instant;

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;

use super::victim;
use crate::debugfs::Listing;
use crate::harness::{TestResult, expect_eq};
use crate::support::memory::{expect_growth_below, used_kb};
use crate::support::module;
use crate::wire::mask;

/// How much to do.
#[derive(Args)]
pub struct Options {
    /// How many times to load and unload the module under load.
    #[arg(long, default_value_t = 1000)]
    pub reloads: usize,
    /// How many listening processes to kill.
    #[arg(long, default_value_t = 10_000)]
    pub kills: usize,
}

/// How many processes are started and killed at one time.
const VICTIMS: usize = 8;

/// One in this many cycles fills the kernel's caches before its memory is compared.
const WARM_UP: usize = 10;

/// How much more of the kernel's memory may be in use after all cycles, because of other parts of the
/// kernel. A leak of one kilobyte per cycle reaches about this after 1,000 cycles.
const GROWTH_LIMIT_KB: i64 = 1024;

/// Runs the cycles, and prints the figures.
pub fn run(options: &Options) -> TestResult {
    repeat(
        "loads and unloads",
        options.reloads,
        module::reload_under_load,
    )?;
    repeat("listeners killed", options.kills, kill_listeners)
}

/// Runs a function this many times, and expects neither listeners nor memory to be left.
pub fn repeat(what: &str, times: usize, run: fn(usize) -> TestResult) -> TestResult {
    let warm_up = times / WARM_UP;
    run(warm_up)?;
    let started = Instant::now();
    let before = used_kb()?;
    run(times - warm_up)?;
    let growth = expect_growth_below(GROWTH_LIMIT_KB, before, &format!("after {times} {what}"))?;
    expect_eq("listeners at the end", Listing::read()?.count, 0)?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "cycles: {times} {what} ({seconds:.1} s), {growth} kB more in use, no listener is left"
    );
    Ok(())
}

/// Kills this many listening processes, some at a time, each at any point of its requests.
pub fn kill_listeners(times: usize) -> TestResult {
    let mut killed = 0;
    while killed < times {
        let number = (times - killed).min(VICTIMS);
        let victims = (0..number)
            .map(|_| victim::start(&[mask::EXEC, mask::ALL]))
            .collect::<Result<Vec<_>, _>>()?;
        for victim in &victims {
            kill(victim.pid(), Signal::SIGKILL)?;
        }
        for victim in victims {
            let pid = victim.pid();
            let ended = victim.wait()?;
            let by_signal = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
            expect_eq("the end of a listener", ended, by_signal)?;
            killed += 1;
        }
    }
    Ok(())
}
