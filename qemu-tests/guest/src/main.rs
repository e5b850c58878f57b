// SPDX-License-Identifier: GPL-2.0
//! The program that runs in the virtual machine: agent, tests, demonstration and listener.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use commands::{demo, listen, supervisor};
use harness::{Case, Conclusion, Reporter, TestResult};
use loads::{containers, cycles, execs, storm, tables, trees};
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
mod proc_stat;
mod process_table;
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
    /// Factor of all time limits of tests and loads, on a slow machine.
    #[arg(long, default_value_t = 1)]
    time_factor: u32,
    /// Factor of the time limits within them, on a kernel with debugging checks.
    #[arg(long, default_value_t = 1)]
    kernel_time_factor: u32,
    /// Describe a load with these options as JSON, and do not run it.
    #[arg(long)]
    describe: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Do the job that the runner on the host sends over the virtio-serial port.
    Agent,
    /// List the tests.
    List {
        /// Print JSON, with the result that is expected of the unpatched kernel.
        #[arg(long)]
        json: bool,
    },
    /// Run tests and report them: to the runner, or in KTAP on the standard output.
    Test {
        /// Full names of the tests to run. Without names, all tests are run.
        names: Vec<String>,
    },
    /// Show the events of a small real scenario.
    Demo,
    /// Measure the cost of events, and report the figures to the runner.
    Bench(bench::Options),
    /// Send messages of every kind from every environment, and check the result of each.
    Fuzz(fuzz::Options),
    /// Raise events of all kinds on all CPUs, and check that each is read or counted as lost.
    Storm(storm::Options),
    /// Load and unload the module, and kill listeners, again and again.
    Cycles(cycles::Options),
    /// Execute programs from threads, and track the pids that are in use.
    Execs(execs::Options),
    /// Begin tables of all processes under load, lose events, and compare with /proc.
    Tables(tables::Options),
    /// Make trees of processes, and check that each process begins and ends once.
    Trees(trees::Options),
    /// Let thousands of containers listen, each for its own events.
    Containers(containers::Options),
    /// Show events as they happen, until interrupted.
    Listen(listen::Options),
    /// Keep a service running, and do not touch processes that detached from it.
    Supervise(supervisor::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match results::begin().and_then(|()| run(arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("proc-events-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments {
        time_factor,
        kernel_time_factor,
        describe,
        command,
    } = arguments;
    if describe {
        let load = command.into_load()?.description();
        println!("{}", serde_json::to_string(&load)?);
        return Ok(ExitCode::SUCCESS);
    }
    timeouts::set_factor(kernel_time_factor);
    let load = match command {
        Command::Agent => return agent::run().map(|()| ExitCode::SUCCESS),
        Command::List { json } => return list(json).map(|()| ExitCode::SUCCESS),
        Command::Demo => return demo::run(),
        Command::Bench(options) => return bench::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Listen(options) => return listen::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Supervise(options) => return supervisor::run(&options),
        Command::Test { names } => {
            let tests: Vec<_> = select(&names)?.iter().map(Case::from).collect();
            return run_cases(&tests, time_factor);
        }
        load => load.into_load()?,
    };
    run_cases(&[load], time_factor)
}

impl Command {
    /// A load, with a limit that follows from its options.
    fn into_load(self) -> Result<Case> {
        Ok(match self {
            Self::Fuzz(options) => load(
                "fuzz",
                &[(options.messages as usize, 1)],
                options,
                fuzz::run,
            ),
            Self::Storm(options) => load(
                "storm",
                &[(options.seconds as usize, 1000)],
                options,
                storm::run,
            ),
            Self::Cycles(options) => {
                let parts = [(options.reloads, 500), (options.kills, 50)];
                load("cycles", &parts, options, cycles::run)
            }
            Self::Execs(options) => load("execs", &[(options.rounds, 100)], options, execs::run),
            Self::Tables(options) => {
                let parts = [(options.starts, 500), (options.losses, 500)];
                load("tables", &parts, options, tables::run)
            }
            Self::Trees(options) => load("trees", &[(options.trees, 100)], options, trees::run),
            Self::Containers(options) => load(
                "containers",
                &[(options.count, 100)],
                options,
                containers::run,
            ),
            _ => bail!("this command is not a load"),
        })
    }
}

/// A load, with the number of repetitions of each part, and the milliseconds that each repetition may
/// take. Its limit is several times the time that the load takes.
fn load<O: 'static>(
    name: &str,
    parts: &[(usize, u64)],
    options: O,
    run: fn(&O) -> TestResult,
) -> Case {
    /// How long a load may take to begin, to do little, and to end.
    const LEAST: Duration = Duration::from_secs(600);
    let parts = parts.iter().map(|(count, each)| *count as u64 * each);
    let limit = LEAST + Duration::from_millis(parts.sum());
    Case::load(name, limit, move || run(&options))
}

/// Runs tests, or a load, and reports them: to the runner, or in KTAP on the standard output.
fn run_cases(cases: &[Case], time_factor: u32) -> Result<ExitCode> {
    let reporter: &mut dyn Reporter = if results::are_wanted() {
        &mut Records
    } else {
        &mut Ktap::new(std::io::stdout())
    };
    let mut kernel = kernel::Watched::new()?;
    let mut leaks = debugfs::leak_check();
    let conclusion = harness::run(cases, time_factor, &mut leaks, &mut kernel, reporter)?;
    Ok(match conclusion {
        Conclusion::Passed => ExitCode::SUCCESS,
        Conclusion::Failed => ExitCode::FAILURE,
        Conclusion::Killed => ExitCode::from(TEST_KILLED),
    })
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

#[cfg(test)]
mod unit {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_do_not_clash() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_limit_of_a_load_follows_from_its_options() {
        let limit = |words: &[&str]| {
            let words = ["proc-events-guest"].iter().chain(words);
            let load = Arguments::parse_from(words).command.into_load();
            load.unwrap().description().limit_seconds
        };
        assert_eq!(limit(&["storm", "--seconds", "7200"]), 7800);
        assert_eq!(limit(&["cycles", "--reloads", "0", "--kills", "100"]), 605);
        for load in ["fuzz", "execs", "tables", "trees", "containers"] {
            assert!((900..7200).contains(&limit(&[load])), "{load}");
        }
    }

    #[test]
    fn a_command_that_is_no_load_is_not_described() {
        let listen = Arguments::parse_from(["proc-events-guest", "listen"]);
        assert!(listen.command.into_load().is_err());
    }
}
