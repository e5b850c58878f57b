// SPDX-License-Identifier: GPL-2.0
//! `bench`: what events cost on our kernel, on the stock one, on one without process events, and on one
//! with the series but without its handler.
//!
//! Each kernel is booted on one emulated CPU whose clock counts instructions, so that a figure is
//! the same on any machine. What takes two CPUs is measured in another virtual machine, in the time
//! of the host, so that only the ratios mean anything.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use protocol::bench::BenchRecord;
use protocol::results::{Count, Record};
use protocol::{FromGuest, Job};

use crate::bench::figures::Figures;
pub use kernels::BenchKernels;

use crate::bench::kernels::BenchKernel;
use crate::bench::target::Target;
use crate::machine::accelerator::Accelerator;
use crate::machine::files::text;
use crate::machine::kernel::Kernel;
use crate::machine::probe;
use crate::machine::settings::Settings;
use crate::machine::vm::{self, BOOT_LIMIT, Vm};

mod batches;
mod chart;
mod figures;
mod flags;
mod kernels;
mod mainline;
mod page;
mod provenance;
mod state;
mod table;
mod target;
mod targets;

/// How long it may take until the next figure: figures that are measured in turn come together.
const FIGURE_LIMIT: Duration = Duration::from_secs(600);

/// How often the progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Where the results go, besides the terminal.
pub struct Files<'a> {
    /// For programs.
    pub json: Option<&'a Path>,
    /// The directory for a page in Markdown, and its chart.
    pub output: Option<&'a Path>,
}

/// Measures and reports. Returns 1 with `check` if a target is missed or was not measured, else 0.
pub fn run(
    settings: &Settings,
    kernels: &BenchKernels,
    files: &Files<'_>,
    check: bool,
) -> Result<u8> {
    let started = Instant::now();
    let mut figures = Figures::default();
    eprintln!("bench: four kernels on one emulated CPU each, a few minutes in all");
    for (kernel, lines) in count_all(settings, kernels)? {
        figures.add(kernel, lines);
    }
    let accelerator = probe::choose_accelerator(settings, &kernels.ours)?;
    for (id, kernel) in [
        (BenchKernel::Stock, &kernels.stock),
        (BenchKernel::Ours, &kernels.ours),
    ] {
        let lines = measure(settings, kernel, accelerator, vec!["--parallel".to_owned()])?;
        figures.add(id, lines);
    }
    let provenance =
        provenance::Provenance::new(settings, kernels, accelerator, started.elapsed())?;
    let targets = targets::all(&figures);
    let sections = page::sections(&figures, &targets, accelerator);
    print!("{}", table::text(&provenance, &sections));
    if let Some(json) = files.json {
        page::write_json(json, &provenance, &figures, &targets)?;
        println!("figures for programs: {}", json.display());
    }
    if let Some(output) = files.output {
        page::write_page(output, &provenance, &sections)?;
        chart::write(&output.join(page::CHART), &figures)?;
        println!("page and chart: {}", output.join(page::PAGE).display());
    }
    let outcomes: Vec<_> = targets.iter().map(Target::outcome).collect();
    let Count { passed, failed, .. } = Count::of(&outcomes);
    println!("targets: {passed} met, {failed} missed or not measured");
    Ok(u8::from(check && failed > 0))
}

/// The figures of each kernel's benchmark on a CPU that counts instructions. All run at the same time:
/// their speed makes no difference to what they count.
fn count_all(
    settings: &Settings,
    kernels: &BenchKernels,
) -> Result<Vec<(BenchKernel, Vec<BenchRecord>)>> {
    let runs = [
        (
            BenchKernel::Floor,
            &kernels.floor,
            vec!["--without-listeners".to_owned()],
        ),
        (BenchKernel::Stock, &kernels.stock, Vec::new()),
        (BenchKernel::Mainline, &kernels.mainline, Vec::new()),
        (
            BenchKernel::Ours,
            &kernels.ours,
            match &kernels.peer {
                Some(peer) => vec!["--peer".to_owned(), text(peer)?],
                None => Vec::new(),
            },
        ),
    ];
    let expected = runs.len();
    let (sender, results) = mpsc::channel();
    for (id, kernel, options) in runs {
        let (settings, kernel, sender) = (settings.clone(), kernel.clone(), sender.clone());
        thread::spawn(move || {
            let lines = measure(&settings, &kernel, Accelerator::Counting, options);
            // After the failure of another one, the receiver is gone.
            let _ = sender.send((id, lines));
        });
    }
    drop(sender);
    // The first failure ends this program, and with it the other virtual machines.
    let counted = results
        .iter()
        .map(|(id, lines)| Ok((id, lines?)))
        .collect::<Result<Vec<_>>>()?;
    ensure!(counted.len() == expected, "a kernel's benchmark panicked");
    Ok(counted)
}

/// Runs the guest's benchmark, and returns its records.
fn measure(
    settings: &Settings,
    kernel: &Kernel,
    accelerator: Accelerator,
    options: Vec<String>,
) -> Result<Vec<BenchRecord>> {
    let started = Instant::now();
    eprintln!("{}: booting ({})", kernel.name, accelerator.name());
    let mut vm = Vm::boot(settings, kernel, accelerator, BOOT_LIMIT)?;
    let mut command = vec![
        settings.guest.to_string_lossy().into_owned(),
        "bench".to_owned(),
    ];
    command.extend(options);
    vm.start(Job {
        results: true,
        ..vm::job(kernel, command)?
    })?;
    let mut output = Output::new(&kernel.name);
    let status = loop {
        match vm.next_until(Instant::now() + FIGURE_LIMIT)? {
            Some(FromGuest::Record(Record::Bench(line))) => output.take(line)?,
            Some(FromGuest::Output(bytes) | FromGuest::Errors(bytes)) => {
                eprint!("{}", String::from_utf8_lossy(&bytes))
            }
            Some(FromGuest::Exited(status)) => break status,
            Some(FromGuest::ModuleLoaded(_)) => {}
            Some(message) => return Err(vm.failure(format!("the agent sent {message:?}"))),
            None => {
                let limit = FIGURE_LIMIT.as_secs();
                return Err(vm.failure(format!("a figure took more than {limit} s")));
            }
        }
    };
    vm.finish()?;
    ensure!(
        status == 0,
        "{}: the benchmark ended with status {status}",
        kernel.name
    );
    ensure!(
        output.total > 0 && output.done == output.total,
        "{}: {} of {} figures came",
        kernel.name,
        output.done,
        output.total
    );
    let elapsed = started.elapsed().as_secs();
    eprintln!("{}: {} figures in {elapsed} s", kernel.name, output.done);
    Ok(output.lines)
}

/// The benchmark's output so far.
struct Output<'a> {
    name: &'a str,
    lines: Vec<BenchRecord>,
    total: u32,
    done: u32,
    started: Instant,
    next_progress: Instant,
}

impl<'a> Output<'a> {
    fn new(name: &'a str) -> Self {
        let started = Instant::now();
        Self {
            name,
            lines: Vec::new(),
            total: 0,
            done: 0,
            started,
            next_progress: started + PROGRESS_INTERVAL,
        }
    }

    fn take(&mut self, line: BenchRecord) -> Result<()> {
        self.count(line)?;
        if Instant::now() > self.next_progress && self.done > 0 {
            self.next_progress = Instant::now() + PROGRESS_INTERVAL;
            let elapsed = self.started.elapsed();
            let (name, done, total) = (self.name, self.done, self.total);
            let mut text = format!("{name}: {done} of {total} figures, {} s", elapsed.as_secs());
            // The first figures take longer than most, and would make the estimate far too long.
            if done >= total / 10 {
                let left = elapsed.mul_f64(f64::from(total - done) / f64::from(done));
                text += &format!(", about {} s left", left.as_secs());
            }
            eprintln!("{text}");
        }
        Ok(())
    }

    fn count(&mut self, line: BenchRecord) -> Result<()> {
        match &line {
            BenchRecord::Total(total) => self.total = *total,
            BenchRecord::Measurement(_)
            | BenchRecord::Reading(_)
            | BenchRecord::Burst(_)
            | BenchRecord::Flood(_)
            | BenchRecord::Latency(_)
            | BenchRecord::Many(_)
            | BenchRecord::Enumeration(_) => self.done += 1,
            BenchRecord::Missing { figures, .. } => self.done += figures,
        }
        if self.done > self.total {
            bail!(
                "{}: more figures than the {} announced",
                self.name,
                self.total
            );
        }
        self.lines.push(line);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use protocol::bench::Situation;

    use super::*;

    #[test]
    fn figures_that_were_not_announced_are_an_error() {
        let missing = |figures| BenchRecord::Missing {
            figures,
            situation: Situation::Ebpf,
            reason: "none".into(),
        };
        let mut output = Output::new("ours");
        output.take(BenchRecord::Total(2)).unwrap();
        output.take(missing(2)).unwrap();
        assert_eq!((output.total, output.done), (2, 2));
        assert!(output.take(missing(1)).is_err());
    }
}
