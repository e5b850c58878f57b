// SPDX-License-Identifier: GPL-2.0
//! The benchmark: the cost of each event for the task that raises it, in instructions.
//!
//! It needs a virtual machine with one CPU whose clock counts instructions, and fails in any other one.
//! Each measurement is of an operation with some listeners. The same operation without listeners is a
//! measurement of its own, which the runner subtracts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, bail};
use clap::Args;
use nix::sys::resource::{Resource, setrlimit};
use protocol::bench::{BESIDE, BenchRecord, LISTENER_COUNTS, Operation, Situation};

use crate::bench::burst::TOO_MANY;
use crate::bench::listener_set::ListenerSet;
use crate::bench::measure::{Times, measure};
use crate::bench::report::{missing, report_figure, report_line};
use crate::bench::rounds::{LINGER, ROUND_BATCHES, ROUNDS, Rounds};
use crate::bench::worker::Worker;
use crate::child::allow_descriptors;
use crate::cpus::{cpus, pin};
use crate::debugfs;
use crate::listener::Listener;
use crate::wire::{LISTEN, mask};

mod batches;
mod burst;
mod clock;
mod containers;
mod flags;
mod flood;
mod latency;
mod layout;
mod listener_set;
mod many;
mod measure;
mod operations;
mod peer;
mod reader;
mod reading;
mod report;
mod requests;
mod rounds;
mod short;
mod state;
mod tiny;
mod worker;

/// The numbers of sockets that have never listened, and must get nothing.
const SOCKETS: [u32; 2] = [1, 64];

/// The operations that are measured after a listener died.
const AFTER_DEATH: [Operation; 4] = [
    Operation::Comm,
    Operation::ShortFork,
    Operation::ShortExec,
    Operation::ShortExit,
];

/// What is to be measured.
#[derive(Args)]
pub struct Options {
    /// The program that lets eBPF programs record events, for comparison.
    #[arg(long, value_name = "FILE")]
    peer: Option<PathBuf>,
    /// Measure only the cost of each operation without listeners.
    #[arg(long)]
    without_listeners: bool,
    /// Measure, in time, what needs two CPUs: one that raises events and one that reads them.
    #[arg(long)]
    parallel: bool,
}

/// Measures, and reports the figures as records.
pub fn run(options: &Options) -> Result<()> {
    if options.parallel {
        return in_parallel();
    }
    layout::without_random_addresses()?;
    clock::check()?;
    clock::no_preemption()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    report_line(&BenchRecord::Total(total(options)))?;
    let mut worker = Worker::start()?;
    measure_baseline(&mut worker)?;
    if options.without_listeners {
        return Ok(());
    }
    for others in BESIDE {
        beside(others, requests::REQUESTS, requests::requests)?;
    }
    sockets_that_never_listened(&mut worker)?;
    for count in LISTENER_COUNTS {
        many_listeners(&mut worker, count)?;
    }
    batches::run(&mut worker)?;
    flags::run(&mut worker)?;
    reading::run(Situation::Everything)?;
    burst::run(Situation::Everything)?;
    listener_that_never_reads(&mut worker)?;
    thread::sleep(LINGER);
    containers::run()?;
    thread::sleep(LINGER);
    if let Some(peer) = &options.peer {
        peer::run(&mut worker, peer)?;
    }
    // This comes late, because an unpatched kernel counts closed listeners forever.
    dead_listener(&mut worker)?;
    for others in BESIDE {
        beside(others, requests::CLOSING, requests::closing)?;
    }
    // This comes last, because so many processes take memory and pids that other measurements need.
    state::run()
}

/// Runs the measurements that need two CPUs.
fn in_parallel() -> Result<()> {
    const FLOODS: usize = 20;
    const LATENCIES: usize = 5;
    const LISTENING: usize = 3;
    let [reader, writer, ..] = cpus()?[..] else {
        bail!("a reader needs a CPU of its own");
    };
    pin(reader)?;
    let total = 2 * FLOODS + LATENCIES + LISTENING;
    report_line(&BenchRecord::Total(u32::try_from(total)?))?;
    for _ in 0..FLOODS {
        report_line(&BenchRecord::Flood(flood::run(
            writer,
            Situation::Everything,
        )?))?;
    }
    if !batches::are_missing(FLOODS)? {
        for _ in 0..FLOODS {
            report_line(&BenchRecord::Flood(flood::run(writer, Situation::Batch)?))?;
        }
    }
    for _ in 0..LATENCIES {
        report_line(&BenchRecord::Latency(latency::run(writer)?))?;
    }
    for _ in 0..LISTENING {
        report_line(&BenchRecord::Many(many::run()?))?;
    }
    Ok(())
}

/// How many figures there will be.
fn total(options: &Options) -> u32 {
    let baseline = baseline().count();
    if options.without_listeners {
        return baseline as u32;
    }
    let many_listeners = 2 * LISTENER_COUNTS.len() * Operation::KINDS.len();
    let whole = 2 * Operation::WHOLE.len();
    let requests = (requests::REQUESTS + requests::CLOSING) * BESIDE.len();
    let burst_and_never_reading = 2;
    let containers = 1 + LISTENER_COUNTS.len() + 1;
    let peer = options.peer.iter().count() * peer::FIGURES;
    (baseline
        + many_listeners
        + batches::FIGURES
        + flags::FIGURES
        + reading::FIGURES
        + whole
        + requests
        + SOCKETS.len()
        + burst_and_never_reading
        + AFTER_DEATH.len()
        + state::FIGURES
        + containers
        + peer) as u32
}

/// The operations that are measured without listeners.
fn baseline() -> impl Iterator<Item = Operation> {
    let kinds = Operation::KINDS.into_iter();
    kinds.chain(Operation::WHOLE).chain([Operation::SystemCall])
}

/// Measures without listeners. This is done in rounds, because for a while the allocators may have to
/// fetch more memory in each fork or exec.
fn measure_baseline(worker: &mut Worker) -> Result<()> {
    let mut times: BTreeMap<_, Times> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for operation in baseline() {
            times.entry(operation).or_default().take(
                ROUND_BATCHES,
                &mut |times| worker.run(operation, times),
                &mut |_| Ok(()),
            )?;
        }
    }
    for (operation, times) in times {
        report_figure(operation, Situation::NoListener, 0, times.measured())?;
    }
    Ok(())
}

fn sockets_that_never_listened(worker: &mut Worker) -> Result<()> {
    for count in SOCKETS {
        let mut sockets = ListenerSet::silent(count)?;
        let measured = measure(&mut |times| worker.run(Operation::Comm, times), &mut |_| {
            sockets.expect_nothing()
        })?;
        report_figure(Operation::Comm, Situation::NeverListened, count, measured)?;
    }
    Ok(())
}

/// Measures with this many listeners: for all events, and for none of those that are raised.
fn many_listeners(worker: &mut Worker, count: u32) -> Result<()> {
    let mut set = ListenerSet::silent(count)?;
    let mut operations = Operation::KINDS.to_vec();
    if count == LISTENER_COUNTS[0] {
        operations.extend(Operation::WHOLE);
    }
    let rounds = Rounds::in_turn(worker, &mut set, &operations, |rounds, worker, set| {
        set.change(mask::ALL)?;
        for operation in &operations {
            let kind = kind_of(*operation);
            rounds.measure(worker, *operation, Situation::Everything, &mut |times| {
                set.drain(kind, times)
            })?;
        }
        for (other, is_meant) in [(mask::SID, false), (mask::UID, true)] {
            set.change(other)?;
            thread::sleep(LINGER);
            for operation in &operations {
                if (*operation == Operation::Sid) == is_meant {
                    rounds.measure(worker, *operation, Situation::Filtered, &mut |_| {
                        set.expect_nothing()
                    })?;
                }
            }
        }
        Ok(())
    })?;
    for operation in operations {
        for situation in [Situation::Everything, Situation::Filtered] {
            rounds.report(operation, situation, count)?;
        }
    }
    Ok(())
}

/// Measures what a listener does, with this many others that listen for other events.
fn beside(others: u32, figures: usize, run: fn(&[Listener]) -> Result<()>) -> Result<()> {
    // The unpatched kernel sends each answer to all of them, and their queues would take the memory.
    const TOO_MANY: u32 = 1000;
    if others > TOO_MANY && !debugfs::is_there() {
        let reason = format!("each request is answered to all of {others} others");
        return missing(figures, Situation::Everything, reason);
    }
    allow_descriptors(others as usize)?;
    let set = ListenerSet::listening(others, mask::UID)?;
    run(set.listeners())?;
    set.ignore()?;
    thread::sleep(LINGER);
    Ok(())
}

fn listener_that_never_reads(worker: &mut Worker) -> Result<()> {
    let listener = Listener::open_unprivileged()?;
    listener.request(&[LISTEN, mask::COMM])?;
    worker.run(Operation::Comm, TOO_MANY)?;
    let measured = measure(&mut |times| worker.run(Operation::Comm, times), &mut |_| {
        Ok(())
    })?;
    report_figure(Operation::Comm, Situation::NeverReads, 1, measured)?;
    listener.ignore()?;
    Ok(())
}

fn dead_listener(worker: &mut Worker) -> Result<()> {
    let mut rounds = Rounds::default();
    for operation in AFTER_DEATH {
        rounds.measure(worker, operation, Situation::NoListener, &mut |_| Ok(()))?;
    }
    drop(Listener::listen(mask::SID)?);
    thread::sleep(LINGER);
    for operation in AFTER_DEATH {
        rounds.measure(worker, operation, Situation::Dead, &mut |_| Ok(()))?;
        rounds.report(operation, Situation::Dead, 1)?;
    }
    Ok(())
}

/// The bit of the event that an operation raises. It is that of EXIT for operations with several.
fn kind_of(operation: Operation) -> u32 {
    match operation {
        Operation::Fork | Operation::ShortFork => mask::FORK,
        Operation::Exec | Operation::ShortExec => mask::EXEC,
        Operation::Uid => mask::UID,
        Operation::Gid => mask::GID,
        Operation::Sid => mask::SID,
        Operation::Ptrace => mask::PTRACE,
        Operation::Comm => mask::COMM,
        Operation::Coredump | Operation::ShortCoredump => mask::COREDUMP,
        _ => mask::EXIT,
    }
}
