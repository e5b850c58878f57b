// SPDX-License-Identifier: GPL-2.0
//! The benchmark: what each event costs the task that raises it, in instructions.
//!
//! It needs a virtual machine with one CPU whose clock counts instructions, and fails in another one.
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

/// What listeners are there for that nothing is to reach.
const SOCKETS: [u32; 2] = [1, 64];

/// What is measured after a listener died.
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
    /// Measure only what everything costs when nobody listens.
    #[arg(long)]
    nobody: bool,
    /// Measure, in time, what takes a CPU that raises events and one that reads them.
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
    nobody(&mut worker)?;
    if options.nobody {
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
    // At the end, because an unpatched kernel counts for ever who was closed.
    dead_listener(&mut worker)?;
    for others in BESIDE {
        beside(others, requests::CLOSING, requests::closing)?;
    }
    // So many processes take memory that others would miss, and numbers that tasks want.
    state::run()
}

/// Measures what takes two CPUs.
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
    let nobody = alone().count();
    if options.nobody {
        return nobody as u32;
    }
    let many_listeners = 2 * LISTENER_COUNTS.len() * Operation::KINDS.len();
    let whole = 2 * Operation::WHOLE.len();
    let requests = (requests::REQUESTS + requests::CLOSING) * BESIDE.len();
    let burst_and_never_reading = 2;
    let containers = 1 + LISTENER_COUNTS.len() + 1;
    let peer = options.peer.iter().count() * peer::FIGURES;
    (nobody
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

/// What is measured with nobody listening.
fn alone() -> impl Iterator<Item = Operation> {
    let kinds = Operation::KINDS.into_iter();
    kinds.chain(Operation::WHOLE).chain([Operation::SystemCall])
}

/// In rounds, since the allocators may for a while be at a point where each fork or exec has to
/// fetch more.
fn nobody(worker: &mut Worker) -> Result<()> {
    let mut times: BTreeMap<_, Times> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for operation in alone() {
            times.entry(operation).or_default().take(
                ROUND_BATCHES,
                &mut |times| worker.run(operation, times),
                &mut |_| Ok(()),
            )?;
        }
    }
    for (operation, times) in times {
        report_figure(operation, Situation::Nobody, 0, times.measured())?;
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

/// Measures with that many listeners: for everything, and for nothing of what happens.
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

/// What a listener does, with so many others that listen for something else.
fn beside(others: u32, figures: usize, run: fn(&[Listener]) -> Result<()>) -> Result<()> {
    // The unpatched kernel shows each answer to all of them, whose queues would take the memory.
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
        rounds.measure(worker, operation, Situation::Nobody, &mut |_| Ok(()))?;
    }
    drop(Listener::listen(mask::SID)?);
    thread::sleep(LINGER);
    for operation in AFTER_DEATH {
        rounds.measure(worker, operation, Situation::Dead, &mut |_| Ok(()))?;
        rounds.report(operation, Situation::Dead, 1)?;
    }
    Ok(())
}

/// The bit of the event that an operation raises; 0 if it is several.
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
