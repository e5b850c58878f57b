// SPDX-License-Identifier: GPL-2.0
//! Tests the test framework: whatever a test does, it is reported as what it is.
//!
//! A program of its own without the usual test harness, because forking needs a single thread.

#![expect(dead_code, reason = "parts of the guest program are taken out of it")]

use std::time::Duration;

use harness::{Conclusion, Failure, TestResult, expect_eq};
use nix::unistd::{pause, setsid};

#[path = "../src/child.rs"]
mod child;
#[path = "../src/harness.rs"]
mod harness;
#[path = "../src/patience.rs"]
mod patience;
#[path = "../src/proc_stat.rs"]
mod proc_stat;

/// Where [`fails`] finds out that it does.
const FAILING_LINE: u32 = 32;

fn passes() -> TestResult {
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

/// Would pass, if it were run behind one that is killed.
fn is_not_run() -> TestResult {
    Ok(())
}

/// Passes by itself; [`main`] says that it left something.
fn leaves_something_in_the_kernel() -> TestResult {
    Ok(())
}

fn main() {
    let tests = [
        test!(passes),
        test!(fails),
        test!(fails_by_an_error),
        test!(is_skipped),
        test!(panics),
        test!(exits),
        test!(leaves_a_daemon),
        test!(leaves_something_in_the_kernel),
        test!(hangs).limit(Duration::from_millis(300)),
        test!(is_not_run),
    ];
    let mut report = Vec::new();
    let mut ended = 0;
    let mut remains = || {
        ended += 1;
        if ended == 8 {
            Err("1 thing is left".to_owned())
        } else {
            Ok(())
        }
    };
    let conclusion =
        harness::run(&tests, 1, &mut remains, &mut report).expect("the framework itself works");
    assert_eq!(conclusion, Conclusion::Killed);
    let report = String::from_utf8(report).expect("a report is text");
    println!("{report}");
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(
        &lines[..3],
        ["KTAP version 1", "1..10", "ok 1 harness::passes"]
    );
    let index = |start: &str| {
        lines
            .iter()
            .position(|line| line.starts_with(start))
            .expect(start)
    };
    let failed = index("not ok 2 harness::fails");
    assert_eq!(lines[failed - 2], "# a line of its own");
    let place = format!("# harness.rs:{FAILING_LINE}: ");
    assert_eq!(lines[failed - 1], place + "sum: expected 3, got 2");
    let error = lines[index("not ok 3 harness::fails_by_an_error") - 1];
    assert!(error.contains(": No such file"), "{error}");
    index("ok 4 harness::is_skipped # SKIP nothing to test");
    let panic = &lines[..index("not ok 5 harness::panics")];
    assert!(panic.iter().any(|line| line.contains("on purpose")));
    assert!(lines[index("not ok 6 harness::exits") - 1].contains("ended early"));
    let left = index("ok 7 harness::leaves_a_daemon");
    let daemon = lines[left - 1].trim_start_matches("# ");
    assert!(
        !std::path::Path::new("/proc").join(daemon).exists(),
        "the daemon {daemon} is left"
    );
    let left = index("not ok 8 harness::leaves_something_in_the_kernel");
    assert_eq!(lines[left - 1], "# 1 thing is left");
    assert!(lines[index("not ok 9 harness::hangs") - 1].contains("timed out after 300ms"));
    assert!(!report.contains("is_not_run"));
    println!("the framework reports all of them as what they are");
}
