// SPDX-License-Identifier: GPL-2.0
//! PTRACE: a tracer attaches and detaches (C12).

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::child::{self, Gate};
use crate::harness::{Declaration, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::process::succeed;
use crate::support::scenario::{events_of, in_self, own_task};
use crate::test;
use crate::wire::{Event, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C12]).of([
    test!(names_tracee_and_tracer_when_it_attaches),
    test!(names_tracee_and_tracer_when_it_seizes),
    test!(has_no_tracer_when_it_detaches),
    test!(does_not_come_when_attaching_fails),
]);

/// Calls `before` and then `function` with a child that waits. Expects one event of `function` for each
/// of these tracers.
fn expect_tracers(
    before: impl FnOnce(Pid) -> TestResult,
    function: impl FnOnce(Pid) -> TestResult,
    tracers: &[Task],
) -> TestResult {
    let mut listener = Listener::listen_all()?;
    let gate = Gate::new()?;
    let child = child::fork(|| i32::from(gate.pass().is_err()))?;
    let pid = child.pid();
    before(pid)?;
    let messages = in_self(&mut listener, || function(pid))?;
    let task = Task::leader(pid.as_raw());
    let expected: Vec<_> = tracers
        .iter()
        .map(|tracer| Event::Ptrace {
            task,
            tracer: *tracer,
        })
        .collect();
    expect_eq(
        "events",
        events_of(&messages, mask::PTRACE, pid.as_raw()),
        expected,
    )?;
    gate.open(0)?;
    succeed(child)
}

fn nothing(_: Pid) -> TestResult {
    Ok(())
}

fn names_tracee_and_tracer_when_it_attaches() -> TestResult {
    // The scenario includes the detaching: a tracee that stays stopped cannot end.
    expect_tracers(nothing, attach_and_detach, &[own_task(), Task::NONE])
}

fn attach_and_detach(pid: Pid) -> TestResult {
    ptrace::attach(pid)?;
    let stopped = waitpid(pid, None)?;
    expect(
        matches!(stopped, WaitStatus::Stopped(..)),
        format!("a stop, got {stopped:?}"),
    )?;
    Ok(ptrace::detach(pid, None)?)
}

fn names_tracee_and_tracer_when_it_seizes() -> TestResult {
    // A seized tracee runs on, and goes on untraced when its tracer ends.
    expect_tracers(
        nothing,
        |pid| Ok(ptrace::seize(pid, Options::empty())?),
        &[own_task()],
    )
}

fn has_no_tracer_when_it_detaches() -> TestResult {
    let stop = |pid| {
        ptrace::seize(pid, Options::empty())?;
        ptrace::interrupt(pid)?;
        waitpid(pid, None)?;
        Ok(())
    };
    expect_tracers(stop, |pid| Ok(ptrace::detach(pid, None)?), &[Task::NONE])
}

fn does_not_come_when_attaching_fails() -> TestResult {
    let attach_twice = |pid| {
        ptrace::seize(pid, Options::empty())?;
        expect_eq("second attach", ptrace::attach(pid), Err(Errno::EPERM))
    };
    expect_tracers(nothing, attach_twice, &[own_task()])
}
