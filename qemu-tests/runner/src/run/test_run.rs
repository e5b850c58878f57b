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
use libtest_mimic::{Arguments, Completion, Failed};
use protocol::results::{KernelUnderTest, Outcome, TestRecord, Trial};
use protocol::{StockExpectation, TestDescription};

use super::session::{NoResult, Session};
use crate::machine::accelerator::Accelerator;
use crate::machine::kernel::Kernel;
use crate::machine::probe;
use crate::machine::settings::Settings;
use crate::pages::report::Report;
use crate::results_file::KERNEL_LOG;

/// Where the results go, besides the terminal.
pub struct Files<'a> {
    /// For programs, as they come.
    pub results: Option<&'a Path>,
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
    let tests = list(&settings.lister)?;
    let kernels: Vec<(KernelUnderTest, &Kernel)> = [
        (KernelUnderTest::Ours, ours),
        (KernelUnderTest::Stock, stock),
    ]
    .into_iter()
    .filter_map(|(subject, kernel)| Some((subject, kernel?)))
    .collect();
    if arguments.list {
        let trials = kernels
            .iter()
            .flat_map(|(subject, _)| {
                tests
                    .iter()
                    .map(|test| trial(*subject, &test.name, || Ok(Completion::Completed)))
            })
            .collect();
        return Ok(u8::from(libtest_mimic::run(arguments, trials).has_failed()));
    }
    let Some((_, first)) = kernels.first() else {
        bail!("no kernel to test")
    };
    let selects = |subject| {
        tests
            .iter()
            .any(|test| is_selected(arguments, subject, test))
    };
    ensure!(
        kernels.iter().any(|(subject, _)| selects(*subject)),
        "no test has {:?} in its name: list all with --list",
        arguments.filter.as_deref().unwrap_or_default()
    );
    let accelerator = probe::choose_accelerator(settings, first)?;
    let report = Report::new(&tests, accelerator, files.results)?;
    let report = Arc::new(Mutex::new(report));
    let started = Instant::now();
    for (subject, kernel) in kernels {
        run_on(
            settings,
            subject,
            kernel,
            accelerator,
            &tests,
            arguments,
            &report,
        )?;
    }
    let report = lock(&report);
    report.print(started.elapsed())?;
    if let Some(table) = files.table {
        report.write_table(table)?;
    }
    Ok(u8::from(report.count().failed > 0))
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

/// Runs the tests on one kernel.
fn run_on(
    settings: &Settings,
    subject: KernelUnderTest,
    kernel: &Kernel,
    accelerator: Accelerator,
    tests: &[TestDescription],
    arguments: &Arguments,
    report: &Arc<Mutex<Report>>,
) -> Result<()> {
    let selected: Vec<&TestDescription> = tests
        .iter()
        .filter(|test| is_selected(arguments, subject, test))
        .collect();
    let wanted: Vec<String> = selected
        .iter()
        .filter(|test| !is_not_applicable(subject, test))
        .map(|test| test.name.clone())
        .collect();
    let factor = accelerator.time_factor() * kernel.time_factor();
    let session = if wanted.is_empty() {
        None
    } else {
        let session = Session::start(settings, kernel, accelerator, factor, wanted)?;
        Some(Arc::new(Mutex::new(session)))
    };
    let mut trials = Vec::new();
    for test in selected {
        let (session, test, name) = (session.clone(), test.clone(), test.name.clone());
        let limit = Duration::from_secs(test.limit_seconds) * factor;
        let run = move || {
            let expectation = match subject {
                KernelUnderTest::Ours => StockExpectation::Passes,
                KernelUnderTest::Stock => test.stock,
            };
            if let StockExpectation::NotApplicable(reason) = expectation {
                let reason = format!("not applicable: {reason}");
                return (Outcome::Skipped(reason), None);
            }
            let session = session.expect("a machine was booted for each test that applies");
            match lock(&session).result_of(&test.name, limit) {
                Ok(record) => (judge(&record, &expectation), Some(record)),
                Err(NoResult::Failure(reason)) => (Outcome::Failed(reason), None),
                // The run is red already; the reason stands with the test that broke it.
                Err(NoResult::TooLate) => {
                    let reason = "not run: too many virtual machines failed in tests before";
                    (Outcome::Skipped(reason.to_owned()), None)
                }
            }
        };
        trials.push(reported(report, subject, name, run));
    }
    if let Some(session) = session {
        let run = move || match lock(&session).finish() {
            Ok(()) => (Outcome::Passed, None),
            Err(error) => (Outcome::Failed(format!("{error:#}")), None),
        };
        trials.push(reported(report, subject, KERNEL_LOG.to_owned(), run));
    }
    // The selection is made already, and the results come in this order.
    let arguments = Arguments {
        filter: None,
        skip: Vec::new(),
        test_threads: Some(1),
        ..arguments.clone()
    };
    let expected = lock(report).len() + trials.len();
    // The report has the trials, and counts them.
    let _ = libtest_mimic::run(&arguments, trials);
    // One that panicked is not in it.
    let reported = lock(report).len();
    ensure!(
        reported == expected,
        "{} of {expected} trials are not in the report",
        expected - reported
    );
    Ok(())
}

/// A trial that is in the report when it has ended.
fn reported<R>(
    report: &Arc<Mutex<Report>>,
    subject: KernelUnderTest,
    name: String,
    run: R,
) -> libtest_mimic::Trial
where
    R: FnOnce() -> (Outcome, Option<TestRecord>) + Send + 'static,
{
    let report = Arc::clone(report);
    let own_name = name.clone();
    trial(subject, &name, move || {
        let (verdict, result) = run();
        let shown = completion(&verdict, result.as_ref());
        lock(&report).add(Trial {
            name: own_name,
            subject: Some(subject),
            verdict,
            result,
        })?;
        shown
    })
}

/// A verdict, as the terminal shows it.
fn completion(
    verdict: &Outcome,
    record: Option<&TestRecord>,
) -> std::result::Result<Completion, Failed> {
    match verdict {
        Outcome::Passed => Ok(Completion::Completed),
        Outcome::Skipped(reason) => Ok(Completion::ignored_with(reason)),
        Outcome::Failed(reason) => {
            let mut lines = Vec::new();
            if let Some(record) = record {
                lines.extend(record.output.iter().map(String::as_str));
                lines.extend(record.kernel.iter().map(String::as_str));
            }
            lines.push(reason);
            Err(lines.join("\n").into())
        }
    }
}

fn trial<R>(subject: KernelUnderTest, name: &str, run: R) -> libtest_mimic::Trial
where
    R: FnOnce() -> std::result::Result<Completion, Failed> + Send + 'static,
{
    libtest_mimic::Trial::ignorable_test(name, run).with_kind(subject.name())
}

fn is_selected(arguments: &Arguments, subject: KernelUnderTest, test: &TestDescription) -> bool {
    !arguments.is_filtered_out(&trial(subject, &test.name, || Ok(Completion::Completed)))
}

fn is_not_applicable(subject: KernelUnderTest, test: &TestDescription) -> bool {
    subject == KernelUnderTest::Stock && matches!(test.stock, StockExpectation::NotApplicable(_))
}

/// Compares a result with what is expected. What is declared to fail is the test itself: a hang, a
/// leak or a complaint of the kernel is trouble on each kernel.
fn judge(record: &TestRecord, expectation: &StockExpectation) -> Outcome {
    match (record.overall(), expectation) {
        (Outcome::Passed, StockExpectation::Fails(reason)) => Outcome::Failed(format!(
            "declared to fail on the stock kernel ({reason}), but it passes: correct the declaration"
        )),
        (Outcome::Failed(_), StockExpectation::Fails(_)) if record.trouble.is_empty() => {
            Outcome::Passed
        }
        (outcome, _) => outcome,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no trial panics while it holds the session")
}

#[cfg(test)]
mod tests {
    use protocol::results::Trouble;

    use super::*;

    fn record(outcome: Option<Outcome>, trouble: Vec<Trouble>) -> TestRecord {
        TestRecord {
            name: "a::b".to_owned(),
            outcome,
            trouble,
            figures: Vec::new(),
            output: Vec::new(),
            kernel: Vec::new(),
            dumped: false,
            seconds: 1.0,
        }
    }

    fn passes(
        outcome: &Option<Outcome>,
        trouble: Vec<Trouble>,
        declared: &StockExpectation,
    ) -> bool {
        judge(&record(outcome.clone(), trouble), declared) == Outcome::Passed
    }

    #[test]
    fn what_is_declared_has_to_happen() {
        let fails = StockExpectation::Fails("no such event".to_owned());
        let (passed, failed) = (Some(Outcome::Passed), Some(Outcome::Failed("a".to_owned())));
        assert!(passes(&passed, Vec::new(), &StockExpectation::Passes));
        assert!(!passes(&failed, Vec::new(), &StockExpectation::Passes));
        assert!(!passes(&passed, Vec::new(), &fails));
        assert!(passes(&failed, Vec::new(), &fails));
        let skipped = Some(Outcome::Skipped("no program".to_owned()));
        assert_eq!(
            Some(judge(&record(skipped.clone(), Vec::new()), &fails)),
            skipped
        );
    }

    #[test]
    fn trouble_is_a_failure_whatever_is_declared() {
        let declared = [
            StockExpectation::Passes,
            StockExpectation::Fails("no such event".to_owned()),
        ];
        let failed = Some(Outcome::Failed("a".to_owned()));
        for expectation in &declared {
            for trouble in [
                Trouble::TimedOut(Duration::from_secs(10)),
                Trouble::Died("by SIGSEGV".to_owned()),
                Trouble::Leak("a listener".to_owned()),
                Trouble::Kernel("WARNING".to_owned()),
                Trouble::NoDump("no key".to_owned()),
            ] {
                for outcome in [&None, &failed, &Some(Outcome::Passed)] {
                    assert!(!passes(outcome, vec![trouble.clone()], expectation));
                }
            }
        }
        let Outcome::Failed(reason) = judge(
            &record(failed, vec![Trouble::Kernel("WARNING".to_owned())]),
            &declared[1],
        ) else {
            panic!("trouble passes")
        };
        assert_eq!(reason, "a\nWARNING");
    }
}
