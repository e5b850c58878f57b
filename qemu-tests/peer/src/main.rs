// SPDX-License-Identifier: GPL-2.0
//! Records the events that process events report, but with eBPF programs, for comparison in the
//! benchmark.
//!
//! It reports when the eBPF programs are in place. Then, for each line on its standard input, it
//! reads all records and answers how many there were. Each line of its output is an [`EbpfAnswer`].

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use libbpf_rs::{MapCore, ObjectBuilder, RingBufferBuilder};
use nix::mount::{MsFlags, mount};
use protocol::bench::EbpfAnswer;
use protocol::clock::instructions;

/// The programs in src/peer.bpf.c.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/peer.bpf.o"));

/// Records process events with eBPF programs.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Kinds to record: fork, exec, exit, sid, comm.
    #[arg(required = true)]
    kinds: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().kinds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proc-events-peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(kinds: &[String]) -> Result<()> {
    show_tracepoints()?;
    let mut object = ObjectBuilder::default().open_memory(OBJECT)?;
    for mut program in object.progs_mut() {
        let wanted = kinds.iter().any(|kind| is_for(program.name(), kind));
        program.set_autoload(wanted);
    }
    let object = object.load().context("the kernel rejects the programs")?;
    let mut links = Vec::new();
    for kind in kinds {
        let Some(program) = object
            .progs_mut()
            .find(|program| is_for(program.name(), kind))
        else {
            bail!("there is no program for {kind}");
        };
        links.push(
            program
                .attach()
                .with_context(|| format!("cannot attach {kind}"))?,
        );
    }
    let records = object.maps().find(|map| map.name() == "records");
    let records = records.context("the programs have no ring buffer")?;
    let count = Cell::new(0u64);
    let mut builder = RingBufferBuilder::new();
    builder.add(&records, |_| {
        count.set(count.get() + 1);
        0
    })?;
    let ring = builder.build()?;
    write_answer(&EbpfAnswer::Ready)?;
    for line in io::stdin().lock().lines() {
        line?;
        count.set(0);
        let started = instructions();
        ring.consume()?;
        let instructions = instructions() - started;
        let records = count.get();
        write_answer(&EbpfAnswer::Read {
            records,
            instructions,
        })?;
    }
    Ok(())
}

/// libbpf finds the tracepoints of system calls in tracefs, which may not be mounted.
fn show_tracepoints() -> Result<()> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    if Path::new(TRACEFS).join("events").exists() {
        return Ok(());
    }
    mount(
        Some("tracefs"),
        TRACEFS,
        Some("tracefs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("cannot mount {TRACEFS}"))
}

/// Whether a program records this kind of event.
fn is_for(program: &OsStr, kind: &str) -> bool {
    program.to_str().and_then(|name| name.strip_prefix("on_")) == Some(kind)
}

/// Writes an answer, as a line of JSON.
fn write_answer(answer: &EbpfAnswer) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(answer)?)?;
    Ok(output.flush()?)
}
