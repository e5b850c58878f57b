// SPDX-License-Identifier: GPL-2.0
//! `boot`, `run` and `load`: one command in one virtual machine.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use protocol::results::{Entry, Figure, KernelUnderTest, Outcome, Record, TestRecord, Trial};
use protocol::{FromGuest, Job};

use super::terminal::{self, RawTerminal};
use crate::machine::kernel::Kernel;
use crate::machine::probe;
use crate::machine::settings::Settings;
use crate::machine::vm::{self, BOOT_LIMIT, Vm};
use crate::results_file::ResultsFile;

/// How long each step took.
#[derive(Default)]
struct Timing {
    module: Option<Duration>,
    first_output: Option<Duration>,
    command: Duration,
    power_off: Duration,
}

/// What became of a job.
struct Executed {
    status: u8,
    timing: Timing,
    figures: Vec<Figure>,
}

/// Runs a command line, or a shell without one; its status.
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

/// Runs a load of the guest program; 1 when it failed. Its results are added to a file.
pub fn load(
    settings: &Settings,
    kernel: &Kernel,
    file: Option<&Path>,
    arguments: &[String],
) -> Result<u8> {
    let [name, ..] = arguments else {
        bail!("no load is named")
    };
    let mut command = vec![settings.guest.to_string_lossy().into_owned()];
    command.extend_from_slice(arguments);
    let job = Job {
        results: true,
        ..vm::job(kernel, command)?
    };
    let accelerator = probe::choose_accelerator(settings, kernel)?;
    let mut file = file.map(ResultsFile::open).transpose()?;
    let vm = Vm::boot(settings, kernel, accelerator, BOOT_LIMIT);
    let executed = vm.and_then(|vm| execute(vm, job));
    let (outcome, figures, time) = match &executed {
        Ok(Executed {
            status: 0,
            timing,
            figures,
        }) => (Outcome::Passed, figures.clone(), timing.command),
        Ok(Executed { status, .. }) => {
            let reason = format!("it ended with status {status}");
            (Outcome::Failed(reason), Vec::new(), Duration::ZERO)
        }
        Err(error) => {
            let reason = format!("{error:#}");
            (Outcome::Failed(reason), Vec::new(), Duration::ZERO)
        }
    };
    if let Some(file) = &mut file {
        file.add_machine(accelerator)?;
        file.add(&Entry::Trial(Trial {
            name: name.clone(),
            subject: Some(KernelUnderTest::Ours),
            verdict: outcome.clone(),
            result: Some(TestRecord {
                name: name.clone(),
                outcome: Some(outcome),
                trouble: Vec::new(),
                figures,
                output: Vec::new(),
                kernel: Vec::new(),
                dumped: false,
                seconds: time.as_secs_f64(),
            }),
        }))?;
    }
    Ok(executed?.status)
}

/// Runs the demonstration and tells how long everything took.
pub fn run(settings: &Settings, kernel: &Kernel) -> Result<u8> {
    let accelerator = probe::choose_accelerator(settings, kernel)?;
    eprintln!("booting the {} kernel", kernel.name);
    let vm = Vm::boot(settings, kernel, accelerator, BOOT_LIMIT)?;
    let boot_time = vm.boot_time;
    let guest = settings.guest.to_string_lossy().into_owned();
    let job = vm::job(kernel, vec![guest, "demo".to_owned()])?;
    let Executed { status, timing, .. } = execute(vm, job)?;
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

/// Runs one job and shows what it says.
fn execute(mut vm: Vm, job: Job) -> Result<Executed> {
    let raw = job
        .terminal
        .is_some()
        .then(|| RawTerminal::hand_over(vm.input()?))
        .transpose()?;
    let (mut timing, mut figures) = (Timing::default(), Vec::new());
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
            FromGuest::Record(Record::Figure(figure)) => figures.push(figure),
            FromGuest::Exited(status) => break status,
            message => return Err(vm.failure(format!("the agent said {message:?}"))),
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
        figures,
    })
}

fn show(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}
