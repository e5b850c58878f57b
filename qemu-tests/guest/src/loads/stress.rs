// SPDX-License-Identifier: GPL-2.0
//! Many listeners come and go while others fork, execute, lead sessions and exit on all CPUs.
//!
//! At the end no listener is counted that is gone, and the account of each listener that stayed
//! balances: what was sent to it is what it read, and what the kernel calls lost is what its numbers miss.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setsid};

use super::counted_listener::{Comparison, CountedListener, read, settle};
use super::victim;
use crate::child::{self, Child, Gate, execute_true};
use crate::cpus::{cpus, pin};
use crate::debugfs::{ListenerLine, Listing};
use crate::listener::{Listener, ListenerError};
use crate::timeouts;
use crate::wire::{BATCH, IGNORE, LISTEN, mask, proc_listen};

/// How much is to happen.
#[derive(Args)]
pub struct Options {
    /// How long, in seconds.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Threads that start, change and end listeners, in each of two processes.
    #[arg(long, default_value_t = 8)]
    pub threads: usize,
}

/// What is counted where it is raised, too.
const COUNTED: u32 = mask::SID | mask::EXEC;

/// Masks and flags of the listeners that stay; the last ones overrun.
const STAYING: [(u32, u32); 6] = [
    (mask::ALL, 0),
    (COUNTED, 0),
    (COUNTED, BATCH),
    (mask::FORK | mask::EXIT, BATCH),
    (mask::ALL, BATCH),
    (mask::ALL, 0),
];

/// How many overrun.
const OVERRUN: usize = 2;

/// Room of a listener that overruns, in bytes.
const SMALL_BUFFER: usize = 4096;

/// The last ones read in one of so many rounds.
const SLOW_ROUNDS: usize = 10;

/// Workers beside those that raise events: two with threads, one that kills.
const OTHER_WORKERS: usize = 3;

/// How long a listener in a process of its own runs before it is killed.
const LISTENER_TIME: Duration = Duration::from_millis(20);

/// How long the last events may take to come.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// How long the workers have for their last round.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Runs it, prints the figures, and fails when one of them is wrong.
pub fn run(options: &Options) -> Result<()> {
    let cpus = cpus()?;
    let mut staying = Vec::new();
    for (index, (mask, flags)) in STAYING.into_iter().enumerate() {
        let mut listener = Listener::open()?;
        if index + OVERRUN >= STAYING.len() {
            listener.socket().set_rx_buf_sz(SMALL_BUFFER as u32)?;
        }
        listener.request(&proc_listen(LISTEN, mask, flags))?;
        staying.push(CountedListener::new(listener, mask)?);
    }
    let stop = Instant::now() + Duration::from_secs(options.seconds);
    let (raised, operated) = (Gate::new()?, Gate::new()?);
    let mut workers = Vec::new();
    // Forked before any thread is started here.
    for cpu in &cpus {
        workers.push(child::fork(|| {
            send_report(&raised, raise_events(*cpu, stop))
        })?);
    }
    for _ in 1..OTHER_WORKERS {
        workers.push(child::fork(|| {
            send_report(&operated, churn(options.threads, stop))
        })?);
    }
    workers.push(child::fork(|| {
        send_report(&operated, kill_listeners(stop))
    })?);
    read_until(&mut staying, &workers, stop + timeouts::scaled(END_LIMIT))?;
    for worker in workers {
        let ended = worker.wait()?;
        ensure!(
            matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 0)),
            "a worker failed: {ended:?}"
        );
    }
    let mut done = WorkDone::default();
    for _ in &cpus {
        done.raised += u64::try_from(raised.pass()?)?;
    }
    for _ in 0..OTHER_WORKERS {
        done.operations += u64::try_from(operated.pass()?)?;
    }
    // One more event on each CPU, so that a loss at the end has a number behind it.
    read(&mut staying)?;
    for cpu in &cpus {
        pin(*cpu)?;
        child::fork(|| i32::from(setsid().is_err() || execute_true().is_err()))?.wait()?;
        done.raised += 2;
        read(&mut staying)?;
    }
    settle(&mut staying, SETTLE_LIMIT, |staying| {
        compare(staying, &done)
    })?
    .report("stress")
}

/// What the workers did.
#[derive(Default)]
struct WorkDone {
    /// Events that [`COUNTED`] asks for.
    raised: u64,
    /// Requests, and sockets opened and closed.
    operations: u64,
}

/// Reads for the listeners that stay until all workers have ended.
fn read_until(staying: &mut [CountedListener], workers: &[Child], limit: Instant) -> Result<()> {
    let mut rounds = 0;
    for worker in workers {
        let end = child::pidfd(worker.pid())?;
        while !child::has_ended(&end, Duration::from_millis(50))? {
            // The last ones read seldom: they overrun, again and again.
            rounds += 1;
            let reading = match rounds % SLOW_ROUNDS {
                0 => staying.len(),
                _ => staying.len() - OVERRUN,
            };
            read(&mut staying[..reading])?;
            ensure!(Instant::now() < limit, "the workers do not end");
        }
    }
    Ok(())
}

/// Compares the kernel's accounts with what the listeners read.
fn compare(staying: &[CountedListener], done: &WorkDone) -> Result<Comparison> {
    let Listing { count, .. } = Listing::read()?;
    let WorkDone { raised, operations } = done;
    let lines = vec![
        format!("{raised} new sessions and programs, {operations} operations of listeners"),
        format!("{count} listeners at the end"),
    ];
    let mut comparison = Comparison {
        lines,
        ..Comparison::default()
    };
    let Comparison {
        lines,
        totals,
        wrong,
    } = &mut comparison;
    if count != staying.len() {
        wrong.push(format!(
            "{count} listeners are counted and {} are there",
            staying.len()
        ));
    }
    for listener in staying {
        let ListenerLine {
            delivered, lost, ..
        } = Listing::of(listener.port_id)?;
        let CountedListener {
            mask,
            events,
            missing,
            overruns,
            ..
        } = *listener;
        let generated = events + missing;
        totals.generated += generated;
        totals.delivered += delivered;
        totals.lost += lost;
        lines.push(format!(
            "mask {mask:#010x}: generated {generated}, delivered {delivered}, lost {lost}, \
             ENOBUFS {overruns}"
        ));
        if delivered != events || lost != missing {
            wrong.push(format!(
                "mask {mask:#010x}: read {events} of {delivered}, missed {missing} of {lost}"
            ));
        }
        if mask == COUNTED && generated != *raised {
            wrong.push(format!(
                "mask {mask:#010x}: {raised} events were raised and {generated} generated"
            ));
        }
    }
    Ok(comparison)
}

/// Sends a worker's report, which says how much it did. Returns the worker's exit status.
fn send_report(reports: &Gate, operations: Result<u64>) -> i32 {
    let sent = operations.and_then(|operations| {
        let operations = i32::try_from(operations)?;
        reports.open(operations).context("cannot send the report")
    });
    match sent {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("stress: {error:#}");
            1
        }
    }
}

/// Forks, leads a session, executes, renames and exits, on one CPU. Counts what [`COUNTED`] asks
/// for.
fn raise_events(cpu: usize, stop: Instant) -> Result<u64> {
    pin(cpu)?;
    let mut raised = 0;
    while Instant::now() < stop {
        let executing = raised % 3 == 0;
        child::fork(|| {
            let failed = setsid().is_err()
                || prctl::set_name(c"stress").is_err()
                || (executing && execute_true().is_err());
            i32::from(failed)
        })?
        .wait()?;
        raised += 1 + u64::from(executing);
    }
    Ok(raised)
}

/// Starts, changes and ends listeners in many threads, also two at one socket.
fn churn(threads: usize, stop: Instant) -> Result<u64> {
    let operations = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..threads {
            let (operations, failed) = (&operations, &failed);
            scope.spawn(move || {
                let mut round = thread;
                while Instant::now() < stop && !failed.load(Ordering::Relaxed) {
                    round += 1;
                    match churn_once(round) {
                        Ok(count) => _ = operations.fetch_add(count, Ordering::Relaxed),
                        Err(error) => {
                            eprintln!("stress: {error}");
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    ensure!(!failed.into_inner(), "a thread failed");
    Ok(operations.into_inner())
}

/// Opens, uses and closes a socket, in a way that depends on the round. Returns the number of operations.
fn churn_once(round: usize) -> Result<u64, ListenerError> {
    const MASKS: [u32; 5] = [mask::SID, mask::ALL, mask::COMM, mask::FORK, 0];
    let listener = Listener::open_unprivileged()?;
    let masks = MASKS.iter().cycle().skip(round).take(1 + round % 3);
    let mut operations = 2;
    for (index, mask) in masks.enumerate() {
        let flags = if index % 2 == 0 { BATCH } else { 0 };
        listener.request(&proc_listen(LISTEN, *mask, flags))?;
        operations += 1;
    }
    match round % 4 {
        0 => {}
        1 => listener.request(&[IGNORE])?,
        2 => {
            listener.request(&[IGNORE])?;
            listener.request(&[LISTEN])?;
        }
        _ => thread::scope(|scope| {
            let other = scope.spawn(|| listener.request(&[LISTEN, mask::EXIT]));
            let ignored = listener.request(&[IGNORE]);
            other.join().expect("a request does not panic").and(ignored)
        })?,
    }
    Ok(operations + (round % 4) as u64)
}

/// Lets processes listen and kills them.
fn kill_listeners(stop: Instant) -> Result<u64> {
    let mut killed = 0;
    while Instant::now() < stop {
        let victim = victim::start(&[mask::EXEC])?;
        let pid = victim.pid();
        if child::has_ended(&child::pidfd(pid)?, LISTENER_TIME)? {
            bail!("a listener ended by itself: {:?}", victim.wait()?);
        }
        kill_and_reap(pid)?;
        killed += 1;
    }
    Ok(killed)
}

fn kill_and_reap(pid: Pid) -> nix::Result<()> {
    kill(pid, Signal::SIGKILL)?;
    waitpid(pid, None).map(drop)
}
