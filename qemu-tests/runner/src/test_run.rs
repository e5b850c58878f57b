// SPDX-License-Identifier: GPL-2.0
//! `test`: each guest test as a test of the host, on our kernel and on the stock one.
//!
//! The guest runs the selected tests in their order, and each trial waits for its own result. What a
//! test declares about the stock kernel is a claim that its stock trial checks.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};
use protocol::{StockExpectation, TestDescription};

use crate::accelerator::{self, Accelerator};
use crate::ktap::{Outcome, TestResult};
use crate::report::{Column, Report, Row};
use crate::session::{NoResult, Session};
use crate::settings::{Kernel, Settings};

/// Name of the trial that fails when a kernel complained.
const KERNEL_LOG: &str = "kernel_log_is_clean";

/// Where the results go, besides the terminal.
pub struct Files<'a> {
    /// For programs.
    pub json: Option<&'a Path>,
    /// By the lines of the contract, in Markdown.
    pub table: Option<&'a Path>,
}

/// Runs the selected tests; 0 when none failed, 1 otherwise.
pub fn run(
    settings: &Settings,
    ours: Option<&Kernel>,
    stock: Option<&Kernel>,
    files: Files<'_>,
    arguments: &Arguments,
) -> Result<u8> {
    let tests = list(&settings.guest)?;
    let kernels: Vec<(Column, &Kernel)> = [(Column::Ours, ours), (Column::Stock, stock)]
        .into_iter()
        .filter_map(|(column, kernel)| Some((column, kernel?)))
        .collect();
    if arguments.list {
        let trials = kernels
            .iter()
            .flat_map(|(column, _)| {
                tests
                    .iter()
                    .map(|test| trial(*column, &test.name, || Ok(Completion::Completed)))
            })
            .collect();
        return Ok(u8::from(libtest_mimic::run(arguments, trials).has_failed()));
    }
    let Some((_, first)) = kernels.first() else {
        bail!("no kernel to test")
    };
    let selects = |column| {
        tests
            .iter()
            .any(|test| is_selected(arguments, column, test))
    };
    ensure!(
        kernels.iter().any(|(column, _)| selects(*column)),
        "no test has {:?} in its name: list all with --list",
        arguments.filter.as_deref().unwrap_or_default()
    );
    let accelerator = accelerator::choose(settings, first)?;
    let mut report = Report::new(&tests, accelerator, ours.is_some(), stock.is_some());
    let started = Instant::now();
    for (column, kernel) in kernels {
        let conclusion = run_column(
            settings,
            column,
            kernel,
            accelerator,
            &tests,
            arguments,
            &mut report,
        )?;
        report.count(&conclusion);
    }
    report.print(started.elapsed())?;
    if let Some(json) = files.json {
        report.write_json(json)?;
    }
    if let Some(table) = files.table {
        report.write_table(table)?;
    }
    Ok(u8::from(report.has_failures()))
}

/// Asks the guest program for its tests, which it can tell on the host too.
fn list(guest: &Path) -> Result<Vec<TestDescription>> {
    let output = Command::new(guest).args(["list", "--json"]).output();
    let output = output.with_context(|| format!("cannot run {}", guest.display()))?;
    ensure!(
        output.status.success(),
        "{} list --json: {}",
        guest.display(),
        output.status
    );
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "{} does not list its tests: build it again",
            guest.display()
        )
    })
}

fn run_column(
    settings: &Settings,
    column: Column,
    kernel: &Kernel,
    accelerator: Accelerator,
    tests: &[TestDescription],
    arguments: &Arguments,
    report: &mut Report,
) -> Result<Conclusion> {
    let selected: Vec<&TestDescription> = tests
        .iter()
        .filter(|test| is_selected(arguments, column, test))
        .collect();
    let wanted: Vec<String> = selected
        .iter()
        .filter(|test| !is_not_applicable(column, test))
        .map(|test| test.name.clone())
        .collect();
    let factor = accelerator.time_factor() * kernel.time_factor();
    let mut trials = Vec::new();
    let rows = Arc::new(Mutex::new(Vec::new()));
    let session = if wanted.is_empty() {
        None
    } else {
        let session = Session::start(settings, kernel, accelerator, factor, wanted)?;
        Some(Arc::new(Mutex::new(session)))
    };
    for test in &selected {
        let expectation = match column {
            Column::Ours => StockExpectation::Passes,
            Column::Stock => test.stock.clone(),
        };
        let limit = Duration::from_secs(test.limit_seconds) * factor;
        let (session, rows) = (session.clone(), Arc::clone(&rows));
        let name = test.name.clone();
        trials.push(trial(column, &test.name, move || {
            let Some(session) = session else {
                return not_applicable(&expectation);
            };
            if let StockExpectation::NotApplicable(_) = expectation {
                return not_applicable(&expectation);
            }
            let asked = Instant::now();
            let result = lock(&session).result_of(&name, limit);
            let seconds = asked.elapsed().as_secs_f64();
            let (outcome, diagnostics) = match &result {
                Ok(result) => (Some(result.outcome.clone()), result.diagnostics.clone()),
                Err(_) => (None, Vec::new()),
            };
            lock(&rows).push(Row {
                name,
                outcome,
                diagnostics,
                seconds,
            });
            match result {
                Ok(result) => judge(result, &expectation),
                Err(NoResult::Failure(reason)) => Err(reason.into()),
                // The run is red already; the reason stands with the test that broke it.
                Err(NoResult::TooLate) => Ok(Completion::ignored_with(
                    "not run: too many virtual machines failed in tests before",
                )),
            }
        }));
    }
    let clean = Arc::new(Mutex::new(false));
    if let Some(session) = session {
        let clean = Arc::clone(&clean);
        trials.push(trial(column, KERNEL_LOG, move || {
            lock(&session)
                .finish()
                .map_err(|error| Failed::from(format!("{error:#}")))?;
            *lock(&clean) = true;
            Ok(Completion::Completed)
        }));
    }
    // The selection is made already, and the results come in this order.
    let arguments = Arguments {
        filter: None,
        skip: Vec::new(),
        test_threads: Some(1),
        ..arguments.clone()
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let names = selected.iter().map(|test| test.name.clone()).collect();
    let rows = std::mem::take(&mut *lock(&rows));
    report.add(column, names, rows, *lock(&clean));
    Ok(conclusion)
}

fn trial<R>(column: Column, name: &str, run: R) -> Trial
where
    R: FnOnce() -> std::result::Result<Completion, Failed> + Send + 'static,
{
    Trial::ignorable_test(name, run).with_kind(column.name())
}

fn is_selected(arguments: &Arguments, column: Column, test: &TestDescription) -> bool {
    !arguments.is_filtered_out(&trial(column, &test.name, || Ok(Completion::Completed)))
}

fn is_not_applicable(column: Column, test: &TestDescription) -> bool {
    column == Column::Stock && matches!(test.stock, StockExpectation::NotApplicable(_))
}

fn not_applicable(expectation: &StockExpectation) -> std::result::Result<Completion, Failed> {
    match expectation {
        StockExpectation::NotApplicable(reason) => Ok(Completion::ignored_with(format!(
            "not applicable: {reason}"
        ))),
        _ => Err("no virtual machine was booted for this test".into()),
    }
}

/// Compares a result with what is expected.
fn judge(
    result: TestResult,
    expectation: &StockExpectation,
) -> std::result::Result<Completion, Failed> {
    let diagnostics = result.diagnostics.join("\n");
    match (result.outcome, expectation) {
        (Outcome::Skipped(reason), _) => Ok(Completion::ignored_with(reason)),
        (Outcome::Passed, StockExpectation::Fails(reason)) => Err(format!(
            "declared to fail on the stock kernel ({reason}), but it passes: correct the declaration"
        )
        .into()),
        (Outcome::Failed, StockExpectation::Passes) => Err(diagnostics.into()),
        _ => Ok(Completion::Completed),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no trial panics while it holds the session")
}
