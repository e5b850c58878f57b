// SPDX-License-Identifier: GPL-2.0
//! `test`: each guest test on our kernel and on the stock one.
//!
//! The guest runs the selected tests in their order, and the results come in the same order. What a
//! test declares about the stock kernel is a claim, and the trial on that kernel checks it.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use protocol::results::{KernelUnderTest, Outcome, TestRecord, Trial};
use protocol::{StockExpectation, TestDescription};

use super::session::{NoResult, Session, Work};
use crate::machine::accelerator::Accelerator;
use crate::machine::kernel::Kernel;
use crate::machine::probe;
use crate::machine::settings::Settings;
use crate::pages::report::Report;
use crate::results_file::KERNEL_LOG;

/// Which tests to run.
#[derive(Args)]
pub struct Selection {
    /// Only the tests that have this in their names.
    filter: Option<String>,
    /// Only the test with exactly this name.
    #[arg(long)]
    exact: bool,
    /// Leave out the tests that have this in their names.
    #[arg(long, value_name = "FILTER")]
    skip: Vec<String>,
    /// List the tests, and run none.
    #[arg(long)]
    list: bool,
}

impl Selection {
    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| match self.exact {
            true => name == filter,
            false => name.contains(filter.as_str()),
        };
        self.filter.iter().all(matches) && !self.skip.iter().any(matches)
    }
}

/// Where the results go, besides the terminal.
pub struct Files<'a> {
    /// For programs, as they come.
    pub results: Option<&'a Path>,
    /// By the lines of the contract, in Markdown.
    pub table: Option<&'a Path>,
}

/// Runs the selected tests. Returns 0 if none failed, 1 otherwise.
pub fn run(
    settings: &Settings,
    ours: Option<&Kernel>,
    stock: Option<&Kernel>,
    files: Files<'_>,
    selection: &Selection,
) -> Result<u8> {
    let mut tests = list(&settings.lister)?;
    tests.retain(|test| selection.selects(&test.name));
    if selection.list {
        tests.iter().for_each(|test| println!("{}", test.name));
        return Ok(0);
    }
    ensure!(
        !tests.is_empty(),
        "no test has {:?} in its name: list all with --list",
        selection.filter.as_deref().unwrap_or_default()
    );
    let kernels: Vec<(KernelUnderTest, &Kernel)> = [
        (KernelUnderTest::Ours, ours),
        (KernelUnderTest::Stock, stock),
    ]
    .into_iter()
    .filter_map(|(under_test, kernel)| Some((under_test, kernel?)))
    .collect();
    let Some((_, first)) = kernels.first() else {
        bail!("no kernel to test")
    };
    let accelerator = probe::choose_accelerator(settings, first)?;
    let all = kernels.iter().map(|(_, kernel)| *kernel);
    let provenance = settings.origin.provenance(&all.collect::<Vec<_>>())?;
    let mut report = Report::new(&tests, provenance, accelerator, files.results)?;
    let started = Instant::now();
    for (under_test, kernel) in kernels {
        run_on(
            settings,
            under_test,
            kernel,
            accelerator,
            &tests,
            &mut report,
        )?;
    }
    report.print(started.elapsed())?;
    if let Some(table) = files.table {
        report.write_table(table)?;
    }
    Ok(u8::from(report.count().failed > 0))
}

/// Asks the guest program, on the host, for its tests.
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
    under_test: KernelUnderTest,
    kernel: &Kernel,
    accelerator: Accelerator,
    tests: &[TestDescription],
    report: &mut Report,
) -> Result<()> {
    let expectation = |test: &TestDescription| match under_test {
        KernelUnderTest::Ours => StockExpectation::Passes,
        KernelUnderTest::Stock => test.stock.clone(),
    };
    let applies =
        |test: &&TestDescription| !matches!(expectation(test), StockExpectation::NotApplicable(_));
    let wanted = tests.iter().filter(applies);
    let wanted: Vec<_> = wanted.map(|test| test.name.clone()).collect();
    let mut session = match wanted.first().cloned() {
        None => None,
        Some(first) => {
            let work = Work::Tests(wanted);
            let mut session = Session::new(settings, kernel, accelerator, work);
            session.boot_for(&first)?;
            Some(session)
        }
    };
    let names = tests.iter().map(|test| test.name.len());
    let width = names.chain([KERNEL_LOG.len()]).max().unwrap_or(0);
    let all = tests.len() + usize::from(session.is_some());
    let digits = all.to_string().len();
    let mut number = 0;
    let mut add = |name: &str, run: &mut dyn FnMut() -> (Outcome, Option<TestRecord>)| {
        number += 1;
        print!(
            "test [{}] {number:digits$}/{all} {name:width$} ... ",
            under_test.name()
        );
        std::io::stdout().flush()?;
        let (verdict, result) = run();
        show(&verdict, result.as_ref());
        report.add(Trial {
            name: name.to_owned(),
            kernel: Some(under_test),
            verdict,
            result,
        })
    };
    for test in tests {
        add(
            &test.name,
            &mut || match (expectation(test), &mut session) {
                (StockExpectation::NotApplicable(reason), _) => {
                    (Outcome::Skipped(format!("not applicable: {reason}")), None)
                }
                (expectation, Some(session)) => judged(session.result_of(test), &expectation),
                (_, None) => unreachable!("a machine is booted for each test that applies"),
            },
        )?;
    }
    if let Some(mut session) = session {
        add(KERNEL_LOG, &mut || (session.finish(), None))?;
    }
    Ok(())
}

/// The verdict on the result of a test, and the record, if there is one.
pub fn judged(
    result: std::result::Result<TestRecord, NoResult>,
    expectation: &StockExpectation,
) -> (Outcome, Option<TestRecord>) {
    match result {
        Ok(record) => (judge(&record, expectation), Some(record)),
        Err(NoResult::Failure(reason)) => (Outcome::Failed(reason), None),
        // The run has failed already, and the reason is shown with an earlier test.
        Err(NoResult::TooLate) => {
            let reason = "not run: too many virtual machines failed in earlier tests";
            (Outcome::Skipped(reason.to_owned()), None)
        }
    }
}

/// Shows a verdict on the terminal, and the details of a failure.
pub fn show(verdict: &Outcome, record: Option<&TestRecord>) {
    const GREEN: Style = AnsiColor::Green.on_default();
    const YELLOW: Style = AnsiColor::Yellow.on_default();
    const RED: Style = AnsiColor::Red.on_default().bold();
    match verdict {
        Outcome::Passed => anstream::println!("{GREEN}ok{GREEN:#}"),
        Outcome::Skipped(reason) => anstream::println!("{YELLOW}skipped{YELLOW:#}: {reason}"),
        Outcome::Failed(reason) => {
            anstream::println!("{RED}FAILED{RED:#}");
            let lines = record.map(|record| record.output.iter().chain(&record.kernel));
            for line in lines.into_iter().flatten().chain([reason]) {
                println!("{line}");
            }
        }
    }
}

/// Compares a result with what is expected. Only the test itself can be declared to fail: a hang, a
/// leak or a complaint of the kernel is trouble on every kernel.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn tests_are_selected_by_parts_of_their_names() {
        let selection = |filter: Option<&str>, exact, skip: &[&str]| Selection {
            filter: filter.map(str::to_owned),
            exact,
            skip: skip.iter().map(|skip| (*skip).to_owned()).collect(),
            list: false,
        };
        assert!(selection(None, false, &[]).selects("sid::a"));
        assert!(selection(Some("sid"), false, &[]).selects("sid::a"));
        assert!(!selection(Some("sid"), true, &[]).selects("sid::a"));
        assert!(selection(Some("sid::a"), true, &[]).selects("sid::a"));
        assert!(!selection(Some("fork"), false, &[]).selects("sid::a"));
        assert!(!selection(Some("sid"), false, &["fork", "::a"]).selects("sid::a"));
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
    fn trouble_is_a_failure_with_any_declaration() {
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
