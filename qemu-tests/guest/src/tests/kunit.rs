// SPDX-License-Identifier: GPL-2.0
//! The KUnit suites of the series' Rust abstractions. The kernel ran them while it booted, and the
//! tests read their results. One suite runs again while requests for its handler come in.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;

use crate::child::{self, Gate};
use crate::cpus::{cpus, pin};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::modprobe::Modprobe;
use crate::support::module::ModuleGuard;
use crate::support::process::status;
use crate::support::scenario::expect_count;
use crate::test;
use crate::timeouts;
use crate::wire::{Event, IGNORE, LISTEN, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_SUITE)
    .covers(&[Line::C41])
    .of([
        test!(all_cases_passed[rust_task]("rust_task")),
        test!(all_cases_passed[rust_pid]("rust_pid")),
        test!(all_cases_passed[rust_user_namespace]("rust_user_namespace")),
        test!(all_cases_passed[rust_proc_events]("rust_proc_events")),
        test!(a_suite_runs_again_while_requests_come_in)
            .limit(Duration::from_secs(160))
            .covers(&[Line::C32]),
    ]);

/// Where the kernel lists the suites, each with a file that runs it again.
const SUITES: &str = "/sys/kernel/debug/kunit";

const NO_SUITE: &str = "the series adds the abstractions, and the suites with them";

/// Each case of a suite ran when the kernel booted.
fn all_cases_passed(suite: &str) -> TestResult {
    let results = fs::read_to_string(format!("{SUITES}/{suite}/results"))?;
    print!("{results}");
    expect_all_passed(suite, &results)
}

#[track_caller]
fn expect_all_passed(suite: &str, results: &str) -> TestResult {
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

/// The least number of times that the suite runs again.
const RUNS: usize = 30;

/// How long it may take until requests have come in with the suite's handler and without one.
const RUNS_LIMIT: Duration = Duration::from_secs(140);

/// The suite's handler is registered for a moment, and answers nothing. Then there is no handler
/// again, and the memory of the suite's handler is free. All calls of it have to be over by then.
fn a_suite_runs_again_while_requests_come_in() -> TestResult {
    const SUITE: &str = "rust_proc_events";
    let directory = Path::new(SUITES).join(SUITE);
    if !directory.join("run").exists() {
        return Err(Failure::skip("the kernel has no CONFIG_KUNIT_DEBUGFS"));
    }
    let _modprobe = Modprobe::none()?;
    let unloaded = ModuleGuard::unloaded()?;
    let cpus = cpus()?;
    let met = Gate::new()?;
    let mut requesters = Vec::new();
    for cpu in &cpus {
        requesters.push(child::fork(|| status(|| send_requests(*cpu, &met)))?);
    }
    pin(cpus[0])?;
    let deadline = timeouts::deadline(RUNS_LIMIT);
    // On one CPU, a request at that moment cannot be expected.
    let (mut runs, mut is_met) = (0, cpus.len() == 1);
    while runs < RUNS || !is_met {
        expect(
            Instant::now() < deadline,
            format!("a request to meet the suite's handler in {runs} runs"),
        )?;
        fs::write(directory.join("run"), "again")?;
        let results = fs::read_to_string(directory.join("results"))?;
        expect_all_passed(SUITE, &results)?;
        runs += 1;
        is_met = is_met || met.pass_within(Duration::ZERO).is_ok();
    }
    println!("{runs} runs");
    for requester in requesters {
        let pid = requester.pid();
        kill(pid, Signal::SIGKILL)?;
        let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
        expect_eq("end of a requester", requester.wait()?, killed)?;
    }
    drop(unloaded);
    expect_count(0)?;
    let _listener = Listener::listen(mask::COMM)?;
    expect_count(1)
}

/// Sends requests and closes sockets until it is killed. Opens the gate once, when requests have met
/// both the suite's handler and no handler.
fn send_requests(cpu: usize, met: &Gate) -> TestResult {
    pin(cpu)?;
    let (mut swallowed, mut refused) = (0u64, 0u64);
    let mut is_reported = false;
    loop {
        let mut socket = Listener::open()?;
        for words in [&[LISTEN, mask::COMM] as &[u32], &[IGNORE]] {
            socket.request(words)?;
            let messages = socket.take_queued()?;
            match messages.as_slice() {
                [] => swallowed += 1,
                [answer] => {
                    let err = Errno::ENODEV as u32;
                    expect_eq("answer", answer.event, Event::Ack { err })?;
                    refused += 1;
                }
                more => return Err(Failure::new(format!("one answer, got {more:?}"))),
            }
        }
        drop(socket);
        if !is_reported && swallowed > 0 && refused > 0 {
            met.open(0)?;
            is_reported = true;
        }
    }
}
