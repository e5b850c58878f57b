// SPDX-License-Identifier: GPL-2.0
//! Boots a kernel in QEMU and runs commands, the demonstration or the tests in it.
//!
//! Exit status: that of the command in the guest (`boot`, `run`), 0 or 1 (`load`, `test`, `count`, `bench`), 2 for wrong
//! usage, 3 when the virtual machine or what it needs failed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use machine::guard;
use machine::kernel::Kernel;
use machine::settings::{HostOptions, Settings};
use pages::{count, flavors};
use run::{commands, load, test_run};

mod bench;
mod machine;
mod pages;
mod results_file;
mod run;

/// Exit status if the virtual machine or what it needs failed, and not the guest's command or a test.
const INFRASTRUCTURE_FAILURE: u8 = 3;

/// Boots a kernel in QEMU and runs commands, the demonstration or the tests in it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The machine of a command that boots one.
#[derive(Args)]
struct OneMachine {
    /// Build directory of the kernel to boot.
    #[arg(long, value_name = "DIR")]
    kernel: PathBuf,
    /// The module to load first, unless the kernel has it built in.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Name of the kernel in messages.
    #[arg(long, value_name = "NAME", default_value = "release")]
    flavor_name: String,
    /// The machine's memory, in QEMU's format, instead of the size that tests get.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    #[command(flatten)]
    host: HostOptions,
}

impl OneMachine {
    /// Checks the kernel, and what it needs on the host.
    fn resolve(self) -> Result<(Settings, Kernel)> {
        let mut kernel = Kernel::new(self.flavor_name, self.kernel, self.module)?;
        kernel.memory = self.memory.unwrap_or(kernel.memory);
        Ok((Settings::new(&self.host, kernel.architecture)?, kernel))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run a command line in the virtual machine; without one, a shell on the terminal.
    Boot {
        #[command(flatten)]
        machine: OneMachine,
        /// Command line for /bin/sh; its standard input is empty.
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Run a load of the guest program: fuzz, storm, cycles, execs, tables, trees or containers.
    Load {
        #[command(flatten)]
        machine: OneMachine,
        /// Where to add the results.
        #[arg(long, value_name = "FILE")]
        results: Option<PathBuf>,
        /// The load, and its options.
        #[arg(last = true, required = true)]
        arguments: Vec<String>,
    },
    /// Print how many trials passed and failed; fail if any did, or none passed.
    Count {
        /// Print only the number of failures.
        #[arg(long)]
        failed: bool,
        /// Files that other commands wrote with `--results`.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Show the events of a small real scenario.
    Run {
        /// Build directory of the patched kernel.
        #[arg(long, value_name = "DIR")]
        kernel: PathBuf,
        /// The module, proc_events.ko.
        #[arg(long, value_name = "FILE")]
        module: Option<PathBuf>,
        #[command(flatten)]
        host: HostOptions,
    },
    /// Run the tests on the patched kernel, on the stock kernel, or on both.
    Test {
        /// Build directory of the patched kernel.
        #[arg(long, value_name = "DIR", required_unless_present = "stock_kernel")]
        kernel: Option<PathBuf>,
        /// The module, proc_events.ko, unless the patched kernel has it built in.
        #[arg(long, value_name = "FILE", requires = "kernel")]
        module: Option<PathBuf>,
        /// Build directory of the unpatched kernel, or of one that has to behave like it.
        #[arg(long, value_name = "DIR")]
        stock_kernel: Option<PathBuf>,
        /// Where to add the results, a line of JSON each, as they come.
        #[arg(long, value_name = "FILE")]
        results: Option<PathBuf>,
        /// Where to write the results for each line of the contract on both kernels, in Markdown.
        #[arg(
            long,
            value_name = "FILE",
            requires = "kernel",
            requires = "stock_kernel"
        )]
        table: Option<PathBuf>,
        #[command(flatten)]
        host: HostOptions,
        #[command(flatten)]
        selection: test_run::Selection,
    },
    /// Write the page with the results of several flavors.
    Flavors {
        /// Where to write it, in Markdown.
        #[arg(long, value_name = "FILE")]
        table: PathBuf,
        /// The results of a load, by its name.
        #[arg(long, value_name = "NAME=FILE")]
        load: Vec<flavors::Source>,
        /// The tests' results, by flavor.
        #[arg(required = true, value_name = "NAME=FILE")]
        results: Vec<flavors::Source>,
    },
    /// Measure what events cost, on four kernels of one version.
    Bench {
        /// Build directory of the patched kernel.
        #[arg(long, value_name = "DIR")]
        kernel: PathBuf,
        /// The module, proc_events.ko.
        #[arg(long, value_name = "FILE")]
        module: PathBuf,
        /// Build directory of the unpatched kernel.
        #[arg(long, value_name = "DIR")]
        stock_kernel: PathBuf,
        /// Build directory of the patched kernel without process events.
        #[arg(long, value_name = "DIR")]
        floor_kernel: PathBuf,
        /// Build directory of the patched kernel with cn_proc instead of a handler.
        #[arg(long, value_name = "DIR")]
        mainline_kernel: PathBuf,
        /// Program that records events with eBPF programs, for comparison.
        #[arg(long, value_name = "FILE")]
        peer: Option<PathBuf>,
        /// Where to write the figures as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Directory to write a page and its chart into.
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Fail if a target is missed, or was not measured.
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        host: HostOptions,
    },
    /// Run a program. Kill it and the programs that it started when the standard input ends.
    #[command(hide = true)]
    Guard {
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("proc-events-vm: {error:#}");
            ExitCode::from(INFRASTRUCTURE_FAILURE)
        }
    }
}

fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Boot { machine, command } => {
            let (settings, kernel) = machine.resolve()?;
            commands::boot(&settings, &kernel, &command)
        }
        Command::Load {
            machine,
            results,
            arguments,
        } => {
            let (settings, kernel) = machine.resolve()?;
            load::run(&settings, &kernel, results.as_deref(), &arguments)
        }
        Command::Count { failed, files } => Ok(count::run(&files, failed)),
        Command::Run {
            kernel,
            module,
            host,
        } => {
            let kernel = Kernel::new("patched".into(), kernel, module)?;
            commands::run(&Settings::new(&host, kernel.architecture)?, &kernel)
        }
        Command::Test {
            kernel,
            module,
            stock_kernel,
            results,
            table,
            host,
            selection,
        } => {
            let ours = kernel
                .map(|kernel| Kernel::new("ours".into(), kernel, module))
                .transpose()?;
            if let Some(ours) = &ours {
                ensure!(
                    ours.module.is_some() != ours.has_built_in,
                    "{} needs either the handler built in or --module, not both",
                    ours.directory.display()
                );
            }
            let stock = stock_kernel
                .map(|kernel| Kernel::new("stock".into(), kernel, None))
                .transpose()?;
            let Some(first) = ours.as_ref().or(stock.as_ref()) else {
                bail!("no kernel to test")
            };
            let settings = Settings::new(&host, first.architecture)?;
            test_run::run(
                &settings,
                ours.as_ref(),
                stock.as_ref(),
                test_run::Files {
                    results: results.as_deref(),
                    table: table.as_deref(),
                },
                &selection,
            )
        }
        Command::Flavors {
            table,
            load,
            results,
        } => flavors::write(&results, &load, &table).map(|()| 0),
        Command::Bench {
            kernel,
            module,
            stock_kernel,
            floor_kernel,
            mainline_kernel,
            peer,
            json,
            output,
            check,
            host,
        } => {
            let kernels = bench::BenchKernels {
                ours: Kernel::new("ours".into(), kernel, Some(module))?,
                stock: Kernel::new("stock".into(), stock_kernel, None)?,
                floor: Kernel::new("floor".into(), floor_kernel, None)?,
                mainline: Kernel::new("mainline".into(), mainline_kernel, None)?,
                peer,
            };
            let files = bench::Files {
                json: json.as_deref(),
                output: output.as_deref(),
            };
            let settings = Settings::new(&host, kernels.ours.architecture)?;
            bench::run(&settings, &kernels, &files, check)
        }
        Command::Guard { command } => guard::run(&command),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_do_not_clash() {
        Arguments::command().debug_assert();
    }
}
