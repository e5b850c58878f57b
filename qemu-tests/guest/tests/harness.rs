// SPDX-License-Identifier: GPL-2.0
//! Tests the test framework: it has to report each outcome of a test correctly.
//!
//! This is a program without Rust's test harness, because forking needs a single thread.

#![expect(dead_code, reason = "only parts of the guest program are used")]

use std::io;
use std::time::Duration;

use harness::{
    Case, Complaint, Conclusion, Declaration, Failure, KernelWatch, Line, Reporter, Test,
    TestResult, expect_eq,
};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{pause, setsid};
use protocol::StockExpectation;
use protocol::results::{Outcome, TestRecord, Trouble};

#[path = "../src/child.rs"]
mod child;
#[path = "../src/harness.rs"]
mod harness;
#[path = "../src/proc_stat.rs"]
mod proc_stat;
#[path = "../src/reporter.rs"]
mod reporter;
#[path = "../src/results.rs"]
mod results;
#[path = "../src/timeouts.rs"]
mod timeouts;

/// The line at which [`fails`] fails.
const FAILING_LINE: u32 = 49;

fn passes() -> TestResult {
    results::figure("things", 1.0);
    let child = child::fork(|| {
        results::figure("things", 2.0);
        0
    })?;
    child.wait()?;
    Ok(())
}

fn fails() -> TestResult {
    println!("a line of its own");
    const { assert!(FAILING_LINE == line!() + 1) };
    expect_eq("sum", 1 + 1, 3)
}

fn fails_by_an_error() -> TestResult {
    std::fs::read("/nonexistent")?;
    Ok(())
}

fn is_skipped() -> TestResult {
    Err(Failure::skip("nothing to test"))
}

fn panics() -> TestResult {
    panic!("on purpose")
}

fn exits() -> TestResult {
    child::exit(|| 0)
}

fn hangs() -> TestResult {
    loop {
        pause();
    }
}

/// Leaves a process behind that is in another session and holds all pipes open.
fn leaves_a_daemon() -> TestResult {
    let gate = child::Gate::new()?;
    let daemon = child::fork(|| {
        if setsid().is_ok() && gate.open(0).is_ok() {
            pause();
        }
        1
    })?;
    gate.pass()?;
    println!("{}", daemon.into_pid());
    Ok(())
}

/// Passes, but [`FakeKernel`] reports a complaint.
fn makes_the_kernel_warn() -> TestResult {
    Ok(())
}

/// The same, but the test itself fails as well.
fn fails_and_makes_the_kernel_warn() -> TestResult {
    Err(Failure::new("on purpose"))
}

/// Passes in one variant, and fails in the other.
fn has_variants(number: u32) -> TestResult {
    expect_eq("number", number, 1)
}

/// Would pass, but is not run, because the test before it is killed.
fn is_not_run() -> TestResult {
    Ok(())
}

/// Passes, but [`main`] reports a leak.
fn leaves_something_in_the_kernel() -> TestResult {
    Ok(())
}

/// A list in which one test has other declarations.
const LIST: &[Test] = &Declaration::new()
    .not_on_stock("no reason")
    .limit(Duration::from_secs(3))
    .covers(&[Line::C1])
    .of([
        test!(passes),
        test!(fails)
            .stock_passes()
            .limit(Duration::from_secs(4))
            .covers(&[Line::C2]),
    ]);

fn a_list_declares_what_its_tests_do_not() {
    let [passes, fails] = [0, 1].map(|index| LIST[index].description());
    let not_on_stock = StockExpectation::NotApplicable("no reason".to_owned());
    assert_eq!(passes.stock, not_on_stock);
    assert_eq!(fails.stock, StockExpectation::Passes);
    assert_eq!((passes.limit_seconds, fails.limit_seconds), (3, 4));
    assert_eq!(passes.covers, [Line::C1]);
    assert_eq!(fails.covers, [Line::C2, Line::C1]);
}

fn main() {
    a_list_declares_what_its_tests_do_not();
    let tests = [
        test!(passes),
        test!(fails),
        test!(fails_by_an_error),
        test!(is_skipped),
        test!(panics),
        test!(exits),
        test!(leaves_a_daemon),
        test!(leaves_something_in_the_kernel),
        test!(makes_the_kernel_warn),
        test!(fails_and_makes_the_kernel_warn),
        test!(has_variants[one](1)),
        test!(has_variants[two](2)),
        test!(hangs).limit(Duration::from_millis(300)),
        test!(is_not_run),
    ];
    let mut report = Kept::default();
    let mut ended = 0;
    let mut leak_check = || {
        ended += 1;
        if ended == 8 {
            Err("1 thing is left".to_owned())
        } else {
            Ok(())
        }
    };
    let mut kernel = FakeKernel::default();
    let cases = tests.each_ref().map(Case::from);
    let conclusion = harness::run(&cases, 1, &mut leak_check, &mut kernel, &mut report)
        .expect("the framework itself works");
    assert_eq!(conclusion, Conclusion::Killed);
    let names = tests.iter().map(Test::full_name);
    let began = names.take(tests.len() - 1).chain([String::new()]);
    assert_eq!(kernel.began, began.collect::<Vec<_>>());
    assert_eq!(report.planned, tests.len());
    let result = |name: &str| {
        let name = format!("harness::{name}");
        let mut records = report.records.iter();
        records.find(|record| record.name == name).expect(&name)
    };
    let reason = |name: &str| match result(name).overall() {
        Outcome::Failed(reason) => reason,
        outcome => panic!("{name}: {outcome:?}"),
    };
    let passed = result("passes");
    assert_eq!(passed.overall(), Outcome::Passed);
    assert_eq!(passed.figures.len(), 1);
    assert_eq!(passed.figures[0].value, 3.0);
    assert_eq!(result("fails").output, ["a line of its own"]);
    let place = format!("harness.rs:{FAILING_LINE}: ");
    assert_eq!(reason("fails"), place + "sum: expected 3, got 2");
    let error = reason("fails_by_an_error");
    assert!(error.contains(": No such file"), "{error}");
    let skipped = Outcome::Skipped("nothing to test".into());
    assert_eq!(result("is_skipped").overall(), skipped);
    let trouble = |name: &str| result(name).trouble.as_slice();
    for name in ["passes", "fails", "is_skipped", "leaves_a_daemon"] {
        assert_eq!(trouble(name), [], "{name}");
    }
    let panic = result("panics");
    assert!(panic.output.iter().any(|line| line.contains("on purpose")));
    assert!(reason("panics").contains("ended early"));
    assert!(reason("exits").contains("ended early"));
    assert_eq!(result("exits").outcome, None);
    assert!(matches!(trouble("exits"), [Trouble::Died(_)]));
    let left = result("leaves_a_daemon");
    assert_eq!(left.overall(), Outcome::Passed);
    let daemon = &left.output[0];
    assert!(
        !std::path::Path::new("/proc").join(daemon).exists(),
        "the daemon {daemon} is left"
    );
    let left = "leaves_something_in_the_kernel";
    assert_eq!(reason(left), "1 thing is left");
    // The test's own outcome is separate from the leak.
    assert_eq!(result(left).outcome, Some(Outcome::Passed));
    assert_eq!(trouble(left), [Trouble::Leak("1 thing is left".into())]);
    let warned = result("makes_the_kernel_warn");
    assert_eq!(reason("makes_the_kernel_warn"), "it warned");
    assert_eq!(warned.kernel, ["WARNING: at something"]);
    assert!(!warned.dumped);
    assert_eq!(warned.trouble, [Trouble::Kernel("it warned".into())]);
    let both = "fails_and_makes_the_kernel_warn";
    assert!(matches!(&result(both).outcome, Some(Outcome::Failed(_))));
    assert_eq!(trouble(both), [Trouble::Kernel("it warned".into())]);
    assert!(reason(both).ends_with(": on purpose\nit warned"));
    assert_eq!(result("has_variants[one]").overall(), Outcome::Passed);
    assert!(reason("has_variants[two]").ends_with("number: expected 1, got 2"));
    assert_eq!(reason("hangs"), "timed out after 300ms");
    let limit = Duration::from_millis(300);
    assert_eq!(result("hangs").outcome, None);
    assert_eq!(trouble("hangs"), [Trouble::TimedOut(limit)]);
    assert_eq!(result("hangs").kernel, ["it sleeps"]);
    assert!(result("hangs").dumped);
    assert_eq!(report.records.len(), tests.len() - 1);
    println!("{}", ktap(&report));
    a_load_has_a_limit_and_is_reported_as_a_test_is();
}

fn a_load_has_a_limit_and_is_reported_as_a_test_is() {
    let milliseconds = Duration::from_millis;
    let (ends, hangs_itself) = (|| fails_by_an_error(), || hangs());
    let loads = [
        Case::load("ends", milliseconds(60_000), ends),
        Case::load("hangs", milliseconds(300), hangs_itself),
    ];
    assert_eq!(loads[0].description().limit_seconds, 60);
    let (mut report, mut kernel) = (Kept::default(), FakeKernel::default());
    let mut leak_check = || Ok(());
    let conclusion = harness::run(&loads, 1, &mut leak_check, &mut kernel, &mut report)
        .expect("the framework itself works");
    assert_eq!(conclusion, Conclusion::Killed);
    assert_eq!(kernel.began, ["ends", "hangs", ""]);
    let [ends, hangs] = report.records.try_into().expect("both are reported");
    assert!(matches!(ends.outcome, Some(Outcome::Failed(_))));
    assert_eq!(hangs.trouble, [Trouble::TimedOut(milliseconds(300))]);
    assert!(hangs.dumped);
}

/// The results, in the order in which they were reported.
#[derive(Default)]
struct Kept {
    planned: usize,
    records: Vec<TestRecord>,
}

impl Reporter for Kept {
    fn plan(&mut self, tests: usize) -> io::Result<()> {
        self.planned = tests;
        Ok(())
    }

    fn test(&mut self, record: TestRecord) -> io::Result<()> {
        self.records.push(record);
        Ok(())
    }
}

/// A kernel that complains about some tests, and the calls that it got.
#[derive(Default)]
struct FakeKernel {
    /// The tests that began, and an empty string when the last one had ended.
    began: Vec<String>,
}

impl KernelWatch for FakeKernel {
    fn test_begins(&mut self, test: &str) -> io::Result<()> {
        self.began.push(test.to_owned());
        Ok(())
    }

    fn test_ended(&mut self) -> io::Result<Option<Complaint>> {
        let last = self.began.last().expect("a test began");
        Ok(last.ends_with("makes_the_kernel_warn").then(|| Complaint {
            reason: "it warned".to_owned(),
            log: vec!["WARNING: at something".to_owned()],
        }))
    }

    fn tests_ended(&mut self) -> io::Result<()> {
        self.began.push(String::new());
        Ok(())
    }

    fn dump(&mut self, test: &str) -> io::Result<Vec<String>> {
        assert!(test.ends_with("hangs"));
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        assert_eq!(
            waitid(Id::All, flags),
            Ok(WaitStatus::StillAlive),
            "it was killed"
        );
        Ok(vec!["it sleeps".to_owned()])
    }
}

/// Returns the results as KTAP, after a check of this text.
fn ktap(kept: &Kept) -> String {
    let mut text = Vec::new();
    let mut ktap = reporter::Ktap::new(&mut text);
    ktap.plan(kept.planned).expect("it is written into memory");
    for record in &kept.records {
        let written = ktap.test(record.clone());
        written.expect("it is written into memory");
    }
    let text = String::from_utf8(text).expect("KTAP is text");
    for expected in [
        "KTAP version 1\n1..14\n# things: 3\nok 1 harness::passes\n",
        ": sum: expected 3, got 2\nnot ok 2 harness::fails\n",
        "\nok 4 harness::is_skipped # SKIP nothing to test\n",
        "\n# it sleeps\n# timed out after 300ms\nnot ok 13 harness::hangs\n",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    text
}
