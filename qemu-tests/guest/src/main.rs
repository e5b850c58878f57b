// SPDX-License-Identifier: GPL-2.0
//! The program that runs in the virtual machine: agent, tests, demonstration and listener.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use commands::{demo, listen, supervisor};
use harness::{Conclusion, Reporter};
use loads::{containers, cycles, execs, pictures, storm, trees};
use protocol::TEST_KILLED;
use reporter::{Ktap, Records};

mod agent;
mod bench;
mod cgroup_paths;
mod child;
mod commands;
mod cpus;
mod debugfs;
mod describe;
mod fuzz;
mod harness;
mod identities;
mod kernel;
mod listener;
mod loads;
mod picture;
mod proc_stat;
mod reporter;
mod results;
mod support;
mod tests;
mod timeouts;
mod wire;

/// Runs inside the virtual machine that proc-events-vm boots.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Do the job that the runner on the host sends over the virtio-serial port.
    Agent,
    /// List the tests.
    List {
        /// As JSON, with what the unpatched kernel is expected to do.
        #[arg(long)]
        json: bool,
    },
    /// Run tests and report them: to the runner, or in KTAP on the standard output.
    Test {
        /// What to multiply all time limits with, on a slow machine.
        #[arg(long, default_value_t = 1)]
        time_factor: u32,
        /// What to multiply the limits within tests with, on a kernel that checks itself.
        #[arg(long, default_value_t = 1)]
        kernel_time_factor: u32,
        /// Full names of the tests to run; without any, all of them.
        names: Vec<String>,
    },
    /// Show the events of a small real scenario.
    Demo,
    /// Measure what events cost, and report the figures to the runner.
    Bench(bench::Options),
    /// Send messages of every kind from everywhere, and check what becomes of each.
    Fuzz(fuzz::Options),
    /// Raise events of all kinds on all CPUs, and check that each is read or counted as lost.
    Storm(storm::Options),
    /// Load and unload the module, and kill listeners, again and again.
    Cycles(cycles::Options),
    /// Run programs from threads, and follow which numbers live.
    Execs(execs::Options),
    /// Begin pictures of all processes under load, lose events, and compare with /proc.
    Pictures(pictures::Options),
    /// Make trees of processes, and check that each process begins and ends once.
    Trees(trees::Options),
    /// Let thousands of containers listen, each for its own events.
    Containers(containers::Options),
    /// Show events as they happen, until interrupted.
    Listen(listen::Options),
    /// Keep a service running, and leave alone what detached from it.
    Supervise(supervisor::Options),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    match results::begin().and_then(|()| run(command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("proc-events-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Agent => agent::run().map(|()| ExitCode::SUCCESS),
        Command::List { json } => list(json).map(|()| ExitCode::SUCCESS),
        Command::Test {
            time_factor,
            kernel_time_factor,
            names,
        } => {
            timeouts::set_factor(kernel_time_factor);
            let reporter: &mut dyn Reporter = if results::are_wanted() {
                &mut Records
            } else {
                &mut Ktap::new(std::io::stdout())
            };
            let tests = select(&names)?;
            let mut kernel = kernel::Watched::new()?;
            let mut leaks = debugfs::leak_check();
            let conclusion = harness::run(&tests, time_factor, &mut leaks, &mut kernel, reporter)?;
            Ok(match conclusion {
                Conclusion::Passed => ExitCode::SUCCESS,
                Conclusion::Failed => ExitCode::FAILURE,
                Conclusion::Killed => ExitCode::from(TEST_KILLED),
            })
        }
        Command::Demo => demo::run(),
        Command::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Fuzz(options) => succeed(fuzz::run(&options)),
        Command::Storm(options) => succeed(storm::run(&options)),
        Command::Cycles(options) => succeed(cycles::run(&options)),
        Command::Execs(options) => succeed(execs::run(&options)),
        Command::Pictures(options) => succeed(pictures::run(&options)),
        Command::Trees(options) => succeed(trees::run(&options)),
        Command::Containers(options) => succeed(containers::run(&options)),
        Command::Listen(options) => listen::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Supervise(options) => supervisor::run(&options),
    }
}

fn succeed(result: harness::TestResult) -> Result<ExitCode> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(failure) => bail!("{failure}"),
    }
}

fn list(json: bool) -> Result<()> {
    let tests: Vec<_> = tests::all()
        .iter()
        .map(harness::Test::description)
        .collect();
    let mut output = std::io::stdout();
    if json {
        serde_json::to_writer(&mut output, &tests)?;
        writeln!(output)?;
    } else {
        for test in tests {
            writeln!(output, "{}", test.name)?;
        }
    }
    Ok(())
}

fn select(names: &[String]) -> Result<Vec<harness::Test>> {
    let all = tests::all();
    if names.is_empty() {
        return Ok(all);
    }
    let mut selected = Vec::new();
    for name in names {
        match all.iter().find(|test| test.full_name() == *name) {
            Some(test) => selected.push(*test),
            None => bail!("there is no test {name}; proc-events-guest list shows all"),
        }
    }
    Ok(selected)
}
