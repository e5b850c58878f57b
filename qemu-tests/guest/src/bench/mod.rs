// SPDX-License-Identifier: GPL-2.0
//! The benchmark: what each event costs who raises it, in instructions.
//!
//! It wants a virtual machine with one CPU whose clock counts instructions, and says so if it has
//! another one. Each figure is of an operation with somebody listening; what the same operation
//! takes with nobody listening is a figure of its own, and subtracted by who reads them.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use nix::sys::resource::{Resource, setrlimit};
use protocol::bench::{Figure, Line, Operation, Situation};

use crate::bench::crowd::Crowd;
use crate::bench::measure::{Measured, measure};
use crate::bench::operations::rename;
use crate::bench::worker::Worker;
use crate::listener::Listener;
use crate::stress::{cpus, pin};
use crate::wire::{LISTEN, mask};

mod clock;
mod containers;
mod crowd;
mod flood;
mod latency;
mod layout;
mod measure;
mod operations;
mod peer;
mod requests;
mod tiny;
mod worker;

/// How many listeners there are, in turn.
const CROWDS: [u32; 4] = [1, 8, 64, 256];

/// What listeners are there for that nothing is to reach.
const SOCKETS: [u32; 2] = [1, 64];

/// Operations other than those of one kind.
const OTHERS: [Operation; 3] = [Operation::ForkExit, Operation::Storm, Operation::SystemCall];

/// What is measured with an eBPF program that records it.
const RECORDED: [Operation; 5] = [
    Operation::Fork,
    Operation::Exit,
    Operation::Exec,
    Operation::Sid,
    Operation::Comm,
];

/// Hooks that nobody waits for any more are switched off a second late.
const LINGER: Duration = Duration::from_millis(1500);

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

/// Measures, and writes the figures to the standard output.
pub fn run(options: &Options) -> Result<()> {
    if options.parallel {
        return in_parallel();
    }
    layout::without_random_addresses()?;
    clock::check()?;
    clock::no_preemption()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    say(&Line::Total(total(options)))?;
    let mut worker = Worker::start()?;
    nobody(&mut worker)?;
    if options.nobody {
        return Ok(());
    }
    requests::run(&[])?;
    thread::sleep(LINGER);
    sockets_that_never_listened(&mut worker)?;
    for count in CROWDS {
        crowd(&mut worker, count)?;
    }
    reading()?;
    listener_that_never_reads(&mut worker)?;
    thread::sleep(LINGER);
    containers::run()?;
    thread::sleep(LINGER);
    if let Some(peer) = &options.peer {
        peer::run(&mut worker, peer)?;
    }
    // The last, because an unpatched kernel counts it for ever.
    dead_listener(&mut worker)
}

/// Measures what takes two CPUs.
fn in_parallel() -> Result<()> {
    const FLOODS: u32 = 20;
    const LATENCIES: u32 = 5;
    let [reader, writer, ..] = cpus()?[..] else {
        bail!("a reader needs a CPU of its own");
    };
    pin(reader)?;
    say(&Line::Total(FLOODS + LATENCIES))?;
    for _ in 0..FLOODS {
        say(&Line::Flood(flood::run(writer)?))?;
    }
    for _ in 0..LATENCIES {
        say(&Line::Latency(latency::run(writer)?))?;
    }
    Ok(())
}

/// How many figures there will be.
fn total(options: &Options) -> u32 {
    let nobody = Operation::KINDS.len() + OTHERS.len();
    if options.nobody {
        return nobody as u32;
    }
    let crowds = 2 * CROWDS.len() * Operation::KINDS.len();
    let storms = 2;
    let requests = 2 * 2;
    let reading_and_never_reading = 2;
    let dead = 2;
    let containers = 1 + CROWDS.len();
    let peer = options.peer.iter().count() * peer::FIGURES;
    (nobody
        + crowds
        + storms
        + requests
        + SOCKETS.len()
        + reading_and_never_reading
        + dead
        + containers
        + peer) as u32
}

fn nobody(worker: &mut Worker) -> Result<()> {
    for operation in Operation::KINDS.into_iter().chain(OTHERS) {
        let measured = measure(&mut || worker.run(operation), &mut |_| Ok(()))?;
        tell(operation, Situation::Nobody, 0, measured)?;
    }
    Ok(())
}

fn sockets_that_never_listened(worker: &mut Worker) -> Result<()> {
    for count in SOCKETS {
        let mut sockets = Crowd::silent(count)?;
        let measured = measure(&mut || worker.run(Operation::Comm), &mut |_| {
            sockets.expect_nothing()
        })?;
        tell(Operation::Comm, Situation::NeverListened, count, measured)?;
    }
    Ok(())
}

/// That many listeners: for everything, and for nothing of what happens.
fn crowd(worker: &mut Worker, count: u32) -> Result<()> {
    let mut crowd = Crowd::listening(count, mask::ALL)?;
    let mut operations = Operation::KINDS.to_vec();
    if count == CROWDS[0] {
        operations.push(Operation::Storm);
    }
    for operation in &operations {
        let kind = kind_of(*operation);
        let measured = measure(&mut || worker.run(*operation), &mut |times| {
            crowd.drain(kind, times)
        })?;
        tell(*operation, Situation::Everything, count, measured)?;
    }
    crowd.change(mask::SID)?;
    thread::sleep(LINGER);
    for operation in operations
        .iter()
        .filter(|operation| **operation != Operation::Sid)
    {
        let measured = measure(&mut || worker.run(*operation), &mut |_| {
            crowd.expect_nothing()
        })?;
        tell(*operation, Situation::Filtered, count, measured)?;
    }
    crowd.change(mask::UID)?;
    thread::sleep(LINGER);
    let measured = measure(&mut || worker.run(Operation::Sid), &mut |_| {
        crowd.expect_nothing()
    })?;
    tell(Operation::Sid, Situation::Filtered, count, measured)?;
    if count == CROWDS[CROWDS.len() - 1] {
        requests::run(crowd.listeners())?;
    }
    crowd.end()?;
    thread::sleep(LINGER);
    Ok(())
}

/// What one event costs its reader.
fn reading() -> Result<()> {
    const EVENTS: u64 = 64;
    let mut crowd = Crowd::listening(1, mask::COMM)?;
    let measured = measure(
        &mut || {
            for _ in 0..EVENTS {
                rename()?;
            }
            let started = clock::instructions();
            crowd.drain(mask::COMM, EVENTS)?;
            Ok(clock::instructions() - started)
        },
        &mut |_| Ok(()),
    )?;
    let measured = measured.of_each(EVENTS);
    tell(Operation::Read, Situation::Everything, 1, measured)?;
    crowd.end()
}

fn listener_that_never_reads(worker: &mut Worker) -> Result<()> {
    /// More than any default buffer holds.
    const TOO_MANY: u32 = 4096;
    let listener = Listener::open_unprivileged()?;
    listener.request(&[LISTEN, mask::COMM])?;
    for _ in 0..TOO_MANY {
        worker.run(Operation::Comm)?;
    }
    let measured = measure(&mut || worker.run(Operation::Comm), &mut |_| Ok(()))?;
    tell(Operation::Comm, Situation::NeverReads, 1, measured)?;
    listener.ignore()?;
    Ok(())
}

fn dead_listener(worker: &mut Worker) -> Result<()> {
    drop(Listener::listen(mask::SID)?);
    thread::sleep(LINGER);
    for operation in [Operation::Comm, Operation::Storm] {
        let measured = measure(&mut || worker.run(operation), &mut |_| Ok(()))?;
        tell(operation, Situation::Dead, 1, measured)?;
    }
    Ok(())
}

/// The bit of the event that an operation raises; 0 if it is several.
fn kind_of(operation: Operation) -> u32 {
    match operation {
        Operation::Fork => mask::FORK,
        Operation::Exec => mask::EXEC,
        Operation::Uid => mask::UID,
        Operation::Gid => mask::GID,
        Operation::Sid => mask::SID,
        Operation::Ptrace => mask::PTRACE,
        Operation::Comm => mask::COMM,
        Operation::Coredump => mask::COREDUMP,
        _ => mask::EXIT,
    }
}

fn tell(
    operation: Operation,
    situation: Situation,
    listeners: u32,
    measured: Measured,
) -> Result<()> {
    say(&Line::Figure(Figure {
        operation,
        situation,
        listeners,
        instructions: measured.median,
        spread: measured.spread,
        low: measured.low,
    }))
}

fn missing(figures: usize, situation: Situation, reason: String) -> Result<()> {
    let figures = u32::try_from(figures)?;
    say(&Line::Missing {
        figures,
        situation,
        reason,
    })
}

fn say(line: &Line) -> Result<()> {
    let line = serde_json::to_string(line)?;
    println!("{line}");
    Ok(())
}

/// Runs a function in a child process and takes the number that it computes.
fn in_child(function: impl FnOnce() -> Result<u64>) -> Result<u64> {
    use crate::child::{Gate, fork};
    let gate = Gate::new()?;
    let child = fork(|| {
        let told = function().and_then(|number| Ok(gate.open(i32::try_from(number)?)?));
        match told {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("bench: {error:#}");
                1
            }
        }
    })?;
    let number = gate
        .pass()
        .map_err(|error| anyhow!("a child tells nothing: {error}"));
    child.wait().context("cannot wait for a child")?;
    Ok(u64::try_from(number?)?)
}
