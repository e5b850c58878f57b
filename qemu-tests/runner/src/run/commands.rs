// SPDX-License-Identifier: GPL-2.0
//! `boot` and `run`: one command in one virtual machine.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use protocol::{FromGuest, Job};

use super::terminal::{self, RawTerminal};
use crate::machine::kernel::Kernel;
use crate::machine::probe;
use crate::machine::settings::Settings;
use crate::machine::vm::{self, BOOT_LIMIT, Vm};

/// How long each step took.
#[derive(Default)]
struct Timing {
    module: Option<Duration>,
    first_output: Option<Duration>,
    command: Duration,
    power_off: Duration,
}

/// The result of a job.
struct Executed {
    status: u8,
    timing: Timing,
}

/// Runs a command line, or a shell without one. Returns its status.
pub fn boot(settings: &Settings, kernel: &Kernel, command: &[String]) -> Result<u8> {
    let interactive = command.is_empty();
    let terminal = if interactive {
        Some(terminal::prepare()?)
    } else {
        None
    };
    let words = match interactive {
        true => vec!["/bin/bash".to_owned()],
        false => vec!["/bin/sh".to_owned(), "-c".to_owned(), command.join(" ")],
    };
    let job = Job {
        terminal,
        ..vm::job(kernel, words)?
    };
    let accelerator = probe::choose_accelerator(settings, kernel)?;
    let vm = Vm::boot(settings, kernel, accelerator, BOOT_LIMIT)?;
    Ok(execute(vm, job)?.status)
}

/// Runs the demonstration, and prints how long everything took.
pub fn run(settings: &Settings, kernel: &Kernel) -> Result<u8> {
    let accelerator = probe::choose_accelerator(settings, kernel)?;
    eprintln!("booting the {} kernel", kernel.name);
    let vm = Vm::boot(settings, kernel, accelerator, BOOT_LIMIT)?;
    let boot_time = vm.boot_time;
    let guest = settings.guest.to_string_lossy().into_owned();
    let job = vm::job(kernel, vec![guest, "demo".to_owned()])?;
    let Executed { status, timing } = execute(vm, job)?;
    println!("\nHow long it took:");
    let row = |what: &str, time: Option<Duration>| match time {
        Some(time) => println!("  {what:<38} {:>8.3} s", time.as_secs_f64()),
        None => println!("  {what:<38} {:>10}", "-"),
    };
    row("boot, to the agent in the guest", Some(boot_time));
    row("module load, in the guest", timing.module);
    row("first event, after the job's start", timing.first_output);
    row("the whole scenario", Some(timing.command));
    row("power-off", Some(timing.power_off));
    Ok(status)
}

/// Runs one job, and shows its output.
fn execute(mut vm: Vm, job: Job) -> Result<Executed> {
    let raw = job
        .terminal
        .is_some()
        .then(|| RawTerminal::hand_over(vm.input()?))
        .transpose()?;
    let mut timing = Timing::default();
    let started = Instant::now();
    vm.start(job)?;
    let status = loop {
        match vm.next()? {
            FromGuest::ModuleLoaded(microseconds) => {
                timing.module = Some(Duration::from_micros(microseconds));
            }
            FromGuest::Output(bytes) => {
                timing.first_output.get_or_insert(started.elapsed());
                show(io::stdout(), &bytes)?;
            }
            FromGuest::Errors(bytes) => show(io::stderr(), &bytes)?,
            FromGuest::Exited(status) => break status,
            message => return Err(vm.failure(format!("the agent sent {message:?}"))),
        }
    };
    drop(raw);
    timing.command = started.elapsed();
    let ended = Instant::now();
    vm.finish()?;
    timing.power_off = ended.elapsed();
    Ok(Executed {
        status: u8::try_from(status).unwrap_or(u8::MAX),
        timing,
    })
}

/// Shows output of the guest immediately.
pub fn show(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}
