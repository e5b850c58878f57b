// SPDX-License-Identifier: GPL-2.0
//! The KUnit suites of the series' Rust abstractions. The kernel ran them while it booted; here
//! are their results.

use std::fs;

use crate::harness::{Line, Test, TestResult, expect, expect_eq};
use crate::test;

pub const TESTS: &[Test] = &[
    test!(rust_task).not_on_stock(NO_SUITE).covers(&[Line::C41]),
    test!(rust_pid).not_on_stock(NO_SUITE).covers(&[Line::C41]),
    test!(rust_user_namespace)
        .not_on_stock(NO_SUITE)
        .covers(&[Line::C41]),
    test!(rust_rcu).not_on_stock(NO_SUITE).covers(&[Line::C41]),
    test!(rust_proc_events)
        .not_on_stock(NO_SUITE)
        .covers(&[Line::C41]),
];

const NO_SUITE: &str = "the series adds the abstractions, and the suites with them";

fn rust_task() -> TestResult {
    expect_passed("rust_task")
}

fn rust_pid() -> TestResult {
    expect_passed("rust_pid")
}

fn rust_user_namespace() -> TestResult {
    expect_passed("rust_user_namespace")
}

fn rust_rcu() -> TestResult {
    expect_passed("rust_rcu")
}

fn rust_proc_events() -> TestResult {
    expect_passed("rust_proc_events")
}

/// Expects that each case of a suite ran and passed.
#[track_caller]
fn expect_passed(suite: &str) -> TestResult {
    let results = fs::read_to_string(format!("/sys/kernel/debug/kunit/{suite}/results"))?;
    print!("{results}");
    let mut lines = results
        .lines()
        .skip_while(|line| line.trim_start() != format!("# Subtest: {suite}"))
        .map_while(|line| line.strip_prefix("    "));
    let planned = lines.find_map(|line| line.strip_prefix("1..")?.parse::<usize>().ok());
    let cases: Vec<_> = lines
        .filter(|line| line.starts_with("ok ") || line.starts_with("not ok "))
        .collect();
    expect_eq("cases that were run", Some(cases.len()), planned)?;
    let failed: Vec<_> = cases
        .iter()
        .filter(|case| !case.starts_with("ok ") || case.contains("# SKIP"))
        .collect();
    expect(
        !cases.is_empty() && failed.is_empty(),
        format!("all cases to pass, got {cases:?}"),
    )
}
