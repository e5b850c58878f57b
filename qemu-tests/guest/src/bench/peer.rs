// SPDX-License-Identifier: GPL-2.0
//! What it costs when an eBPF program records an event, instead of a listener that gets it.

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

/// What is measured with an eBPF program that records it.
const RECORDED: [Operation; 5] = [
    Operation::ShortFork,
    Operation::ShortExit,
    Operation::ShortExec,
    Operation::Sid,
    Operation::Comm,
];

/// How many figures there are: each kind, all of them, a system call, and reading.
pub const FIGURES: usize = RECORDED.len() + 3;

/// Measures each kind with its program alone, and all with all of them.
pub fn run(worker: &mut Worker, program: &Path) -> Result<()> {
    let mut left = FIGURES;
    let mut rounds = Rounds::default();
    for operation in RECORDED {
        for _ in 0..ROUNDS {
            rounds.measure(worker, operation, Situation::Nobody, &mut |_| Ok(()))?;
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
        rounds.measure(worker, Operation::Storm, Situation::Nobody, &mut |_| Ok(()))?;
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

/// How often each is measured in turn with and without its program.
const ROUNDS: usize = 3;

/// The program that has eBPF programs in the kernel.
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

    /// Reads all records, of which there have to be at least so many.
    fn drain(&mut self, at_least: u64) -> Result<()> {
        let (records, _) = self.read()?;
        ensure!(
            records >= at_least,
            "eBPF recorded {records} of {at_least} events"
        );
        Ok(())
    }

    /// Reads all records: how many there were, and how many instructions that took.
    fn read(&mut self) -> Result<(u64, u64)> {
        writeln!(self.input, "read")?;
        match self.answer()? {
            EbpfAnswer::Read {
                records,
                instructions,
            } => Ok((records, instructions)),
            answer => bail!("the eBPF programs' reader said {answer:?}"),
        }
    }

    fn answer(&mut self) -> Result<EbpfAnswer> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).context("the eBPF programs' reader has ended: see above")
    }

    /// Ends it, and with it its programs in the kernel.
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

/// What the program calls this kind.
fn kind(operation: Operation) -> &'static str {
    match operation {
        Operation::ShortFork => "fork",
        Operation::ShortExit => "exit",
        Operation::ShortExec => "exec",
        Operation::Sid => "sid",
        other => other.name(),
    }
}
