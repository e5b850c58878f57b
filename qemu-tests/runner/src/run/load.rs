// SPDX-License-Identifier: GPL-2.0
//! `load`: a load of the guest program, which the guest runs and reports like a test.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use protocol::results::{KernelUnderTest, Outcome, TestRecord, Trial};
use protocol::{StockExpectation, TestDescription};

use super::session::{Session, Work};
use super::test_run::{judged, show};
use crate::machine::kernel::Kernel;
use crate::machine::probe;
use crate::machine::settings::Settings;
use crate::pages::report::Report;
use crate::results_file::KERNEL_LOG;

/// Runs a load with these options, and adds its results to a file. Returns 1 if it failed.
pub fn run(
    settings: &Settings,
    kernel: &Kernel,
    file: Option<&Path>,
    arguments: &[String],
) -> Result<u8> {
    let load = describe(&settings.lister, arguments)?;
    let accelerator = probe::choose_accelerator(settings, kernel)?;
    let provenance = settings.origin.provenance(&[kernel])?;
    let mut report = Report::new(&[], provenance, accelerator, file)?;
    let work = Work::Load(arguments.to_vec());
    let mut session = Session::new(settings, kernel, accelerator, work);
    let mut add = |name: &str, (verdict, result): (Outcome, Option<TestRecord>)| {
        print!("{name}: ");
        show(&verdict, result.as_ref());
        report.add(Trial {
            name: name.to_owned(),
            kernel: Some(KernelUnderTest::Ours),
            verdict,
            result,
        })
    };
    let result = session.result_of(&load);
    add(&load.name, judged(result, &StockExpectation::Passes))?;
    add(KERNEL_LOG, (session.finish(), None))?;
    Ok(u8::from(report.count().failed > 0))
}

/// Asks the guest program, on the host, for the description of a load. Wrong options are an error
/// before anything is booted.
fn describe(guest: &Path, arguments: &[String]) -> Result<TestDescription> {
    let mut command = Command::new(guest);
    command.arg("--describe").args(arguments);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", guest.display()))?;
    let words = arguments.join(" ");
    ensure!(output.status.success(), "{words:?} is no load: see above");
    // If this is not a description, it is the text of --help.
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
