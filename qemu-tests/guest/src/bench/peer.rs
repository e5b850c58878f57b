// SPDX-License-Identifier: GPL-2.0
//! The cost of an event that an eBPF program records, instead of a listener that gets it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use protocol::bench::{EbpfAnswer, Operation, SOME_UNREAD, Situation};

use super::measure::{Measured, measure, repeated};
use super::operations::rename;
use super::report::{missing, report_figure};
use super::rounds::Rounds;
use super::worker::Worker;

/// The operations that are measured with an eBPF program that records their events.
const RECORDED: [Operation; 5] = [
    Operation::ShortFork,
    Operation::ShortExit,
    Operation::ShortExec,
    Operation::Sid,
    Operation::Comm,
];

/// How many figures there are: each kind, all of them, a system call, and reading.
pub const FIGURES: usize = RECORDED.len() + 3;

/// Measures each kind with only its own program, and all kinds with all programs.
pub fn run(worker: &mut Worker, program: &Path) -> Result<()> {
    let mut left = FIGURES;
    let mut rounds = Rounds::default();
    for operation in RECORDED {
        for _ in 0..ROUNDS {
            rounds.measure(worker, operation, Situation::NoListener, &mut |_| Ok(()))?;
            let mut peer = match Peer::start(program, &[operation]) {
                Ok(peer) => peer,
                Err(error) => return missing(left, Situation::Ebpf, format!("{error:#}")),
            };
            rounds.measure(worker, operation, Situation::Ebpf, &mut |times| {
                peer.drain(times)
            })?;
            peer.end()?;
        }
        rounds.report(operation, Situation::Ebpf, 1)?;
        left -= 1;
    }
    let mut peer = Peer::start(program, &[Operation::Sid])?;
    let system_call = Operation::SystemCall;
    let measured = measure(&mut |times| worker.run(system_call, times), &mut |_| Ok(()))?;
    report_figure(system_call, Situation::Ebpf, 1, measured)?;
    peer.end()?;
    peer = Peer::start(program, &[Operation::Comm])?;
    let measured = reading(&mut peer)?;
    report_figure(Operation::Read, Situation::Ebpf, 1, measured)?;
    peer.end()?;
    for _ in 0..ROUNDS {
        rounds.measure(worker, Operation::Storm, Situation::NoListener, &mut |_| {
            Ok(())
        })?;
        let mut peer = Peer::start(program, &RECORDED)?;
        rounds.measure(worker, Operation::Storm, Situation::Ebpf, &mut |times| {
            peer.drain(4 * times)
        })?;
        peer.end()?;
    }
    rounds.report(Operation::Storm, Situation::Ebpf, 1)
}

fn reading(peer: &mut Peer) -> Result<Measured> {
    const EVENTS: u64 = SOME_UNREAD as u64;
    let measured = measure(
        &mut repeated(|| {
            for _ in 0..EVENTS {
                rename()?;
            }
            let (records, instructions) = peer.read()?;
            ensure!(
                records == EVENTS,
                "eBPF recorded {records} of {EVENTS} events"
            );
            Ok(instructions)
        }),
        &mut |_| Ok(()),
    )?;
    Ok(measured.of_each(EVENTS))
}

/// How often each operation is measured in turn with and without its program.
const ROUNDS: usize = 3;

/// The process that has eBPF programs in the kernel.
struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it, and waits until the eBPF programs are in place.
    fn start(program: &Path, operations: &[Operation]) -> Result<Self> {
        let mut process = Command::new(program)
            .args(operations.iter().map(|operation| kind(*operation)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let mut peer = Self {
            process,
            input: input.context("it was piped")?,
            output: BufReader::new(output.context("it was piped")?),
        };
        match peer.answer().context("the eBPF programs do not load")? {
            EbpfAnswer::Ready => Ok(peer),
            answer => bail!("the eBPF programs' reader began with {answer:?}"),
        }
    }

    /// Reads all records. Expects at least this many.
    fn drain(&mut self, at_least: u64) -> Result<()> {
        let (records, _) = self.read()?;
        ensure!(
            records >= at_least,
            "eBPF recorded {records} of {at_least} events"
        );
        Ok(())
    }

    /// Reads all records. Returns their number, and how many instructions the read took.
    fn read(&mut self) -> Result<(u64, u64)> {
        writeln!(self.input, "read")?;
        match self.answer()? {
            EbpfAnswer::Read {
                records,
                instructions,
            } => Ok((records, instructions)),
            answer => bail!("the eBPF programs' reader answered {answer:?}"),
        }
    }

    fn answer(&mut self) -> Result<EbpfAnswer> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context("the eBPF programs' reader has ended: see above")
    }

    /// Ends the process, and with it its programs in the kernel.
    fn end(self) -> Result<()> {
        let Self {
            mut process, input, ..
        } = self;
        drop(input);
        let status = process.wait()?;
        ensure!(
            status.success(),
            "the eBPF programs' reader ended with {status}"
        );
        Ok(())
    }
}

/// The program's name for this kind.
fn kind(operation: Operation) -> &'static str {
    match operation {
        Operation::ShortFork => "fork",
        Operation::ShortExit => "exit",
        Operation::ShortExec => "exec",
        Operation::Sid => "sid",
        other => other.name(),
    }
}
