// SPDX-License-Identifier: GPL-2.0
//! The guest program's own listener, `proc-events-guest listen`.

use nix::sys::signal::Signal;
use nix::unistd::setsid;
use serde_json::Value;

use crate::child::{self, own_pid};
use crate::harness::{Line, Test, TestResult, expect, expect_eq};
use crate::support::container::{PID, without_proc};
use crate::support::idle_processes::{MANY_IDLE, start_many_idle};
use crate::support::program::RunningProgram;
use crate::support::stock::NO_STATE;
use crate::test;

pub const TESTS: &[Test] = &[test!(shows_the_existing_processes_first)
    .not_on_stock(NO_STATE)
    .covers(&[Line::C21, Line::C55])];

/// The listener shows the processes before the answer to its request, and the events that happen
/// meanwhile among them. It needs no /proc.
fn shows_the_existing_processes_first() -> TestResult {
    let program = std::env::current_exe()?;
    let program = program.to_string_lossy().into_owned();
    without_proc(PID, || {
        start_many_idle(MANY_IDLE)?;
        let options = ["listen", "--state", "--json", "--mask", "sid,exit"];
        let mut listener = RunningProgram::start(&[&[&*program], &options[..]].concat())?;
        listener.wait_for_line("the answer", |line| of_kind(line, "ack"))?;
        let mut shown: Vec<i64> = listener
            .output()
            .lines()
            .filter_map(|line| of_kind(line, "process"))
            .collect();
        shown.sort_unstable();
        let first = i64::from(own_pid());
        // The container has only its first process, the idle ones, and the listener.
        let expected: Vec<i64> = (first..).take(MANY_IDLE + 2).collect();
        expect_eq("processes", shown, expected)?;

        let leader = child::fork(|| setsid().map_or(1, |_| 0))?;
        let pid = i64::from(leader.pid().as_raw());
        leader.wait()?;
        for kind in ["sid", "exit"] {
            listener.wait_for_line(kind, |line| {
                of_kind(line, kind).filter(|subject| *subject == pid)
            })?;
        }
        let said = listener.stop(Signal::SIGTERM)?;
        let late = said
            .lines()
            .skip_while(|line| of_kind(line, "sid").is_none());
        expect(
            late.filter_map(|line| of_kind(line, "process")).count() == 0,
            format!("no process after the answer in:\n{said}"),
        )
    })
}

/// The pid of the process that a line's event is about, if the event is of this kind.
fn of_kind(line: &str, kind: &str) -> Option<i64> {
    let event: Value = serde_json::from_str(line).ok()?;
    (event["kind"] == kind).then(|| event["pid"].as_i64())?
}
