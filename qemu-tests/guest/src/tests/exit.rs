// SPDX-License-Identifier: GPL-2.0
//! EXIT: a task ends (C15).
//!
//! The event comes when the parent can already reap, so the tests wait for it before they reap.

use std::thread;

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::child::{self, Child, Gate, own_tid};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::process::{ignore_children, status, succeed};
use crate::support::scenario::{in_child, is_exit, own_task};
use crate::test;
use crate::wire::{Event, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C15]).of([
    test!(carries_the_status_and_the_parent),
    test!(carries_the_signal_that_killed),
    test!(carries_the_signal_that_the_parent_asked_for),
    test!(names_the_thread_that_ends),
    test!(names_the_parent_of_a_thread)
        .stock_fails("a thread is reaped immediately, and its parent is then reported as 0"),
    test!(names_the_parent_of_an_auto_reaped_child)
        .stock_fails("the parent of a child that is reaped immediately is reported as 0"),
    test!(comes_once_for_each_thread_of_a_killed_process).covers(&[Line::C45]),
    test!(comes_before_a_parent_can_reap_what_another_traces).covers(&[Line::C49, Line::C51]),
]);

const SIGCHLD: u32 = Signal::SIGCHLD as u32;

/// Exit signal of a task that notifies no process: -1.
const NO_SIGNAL: u32 = u32::MAX;

/// Waits for a child's EXIT, and only then reaps it.
fn exit_of(listener: &mut Listener, child: Child) -> Result<Event, Failure> {
    let pid = child.pid().as_raw();
    let received = listener.wait_for("EXIT", |received| is_exit(received, pid))?;
    waitpid(child.into_pid(), Some(WaitPidFlag::__WALL))?;
    Ok(received.event)
}

fn exit(task: i32, code: u32, signal: u32) -> Event {
    Event::Exit {
        task: Task::leader(task),
        code,
        signal,
        parent: own_task(),
    }
}

fn carries_the_status_and_the_parent() -> TestResult {
    let mut listener = Listener::listen_all()?;
    for status in [0, 7, 255] {
        let child = child::fork(|| status)?;
        let expected = exit(child.pid().as_raw(), (status as u32) << 8, SIGCHLD);
        expect_eq("event", exit_of(&mut listener, child)?, expected)?;
    }
    Ok(())
}

fn carries_the_signal_that_killed() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let gate = Gate::new()?;
    let child = child::fork(|| i32::from(gate.pass().is_err()))?;
    kill(child.pid(), Signal::SIGKILL)?;
    let expected = exit(child.pid().as_raw(), Signal::SIGKILL as u32, SIGCHLD);
    expect_eq("event", exit_of(&mut listener, child)?, expected)
}

fn carries_the_signal_that_the_parent_asked_for() -> TestResult {
    let mut listener = Listener::listen_all()?;
    // SIGURG is ignored by default, so it does not end this process. 0 sends no signal.
    for signal in [libc::SIGURG, 0] {
        let child = child::clone_with(signal, || 3)?;
        let expected = exit(child.pid().as_raw(), 3 << 8, signal as u32);
        expect_eq("event", exit_of(&mut listener, child)?, expected)?;
    }
    Ok(())
}

/// Returns the EXIT of a thread that ends while its process goes on, and the expected event.
fn exit_of_a_thread() -> Result<(Event, Event), Failure> {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        Ok(thread::spawn(own_tid)
            .join()
            .expect("gettid() does not panic"))
    })?;
    let task = Task {
        pid: scene.number,
        tgid: scene.child.tgid,
    };
    let wanted = |event| matches!(event, Event::Exit { task, .. } if task.pid == scene.number);
    let got = match scene
        .messages
        .iter()
        .find(|received| wanted(received.event))
    {
        Some(received) => received.event,
        None => {
            listener
                .wait_for("EXIT", |received| wanted(received.event))?
                .event
        }
    };
    Ok((
        got,
        Event::Exit {
            task,
            code: 0,
            signal: NO_SIGNAL,
            parent: own_task(),
        },
    ))
}

fn names_the_thread_that_ends() -> TestResult {
    let fields = |event| match event {
        Event::Exit {
            task, code, signal, ..
        } => Some((task, code, signal)),
        _ => None,
    };
    let (got, expected) = exit_of_a_thread()?;
    expect_eq("task, code and signal", fields(got), fields(expected))
}

fn names_the_parent_of_a_thread() -> TestResult {
    let (got, expected) = exit_of_a_thread()?;
    expect_eq("event", got, expected)
}

fn names_the_parent_of_an_auto_reaped_child() -> TestResult {
    let mut listener = Listener::listen_all()?;
    ignore_children()?;
    let pid = child::fork(|| 3)?.into_pid().as_raw();
    let received = listener.wait_for("EXIT", |received| is_exit(received, pid))?;
    expect_eq("event", received.event, exit(pid, 3 << 8, SIGCHLD))
}

fn comes_once_for_each_thread_of_a_killed_process() -> TestResult {
    let mut listener = Listener::listen(mask::FORK | mask::EXIT)?;
    let (ready, never) = (Gate::new()?, Gate::new()?);
    let child = child::fork(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| ready.open(own_tid()).and_then(|()| never.pass()));
            }
        });
        1
    })?;
    let pid = child.pid().as_raw();
    let mut expected = vec![pid, ready.pass()?, ready.pass()?];
    kill(child.pid(), Signal::SIGKILL)?;
    let mut ended = Vec::new();
    while ended.len() < expected.len() {
        let exit = listener.wait_for("EXIT of each thread", |received| {
            received.event.bit() == mask::EXIT && received.event.subject().tgid == pid
        })?;
        ended.push(exit.event.subject().pid);
    }
    child.wait()?;
    ended.sort_unstable();
    expected.sort_unstable();
    expect_eq("threads that ended", ended, expected)
}

/// The exception of ptrace(2): the parent can wait for a traced child only after the tracer has done so.
fn comes_before_a_parent_can_reap_what_another_traces() -> TestResult {
    let mut listener = Listener::listen(mask::EXIT)?;
    let (attached, end, reap) = (Gate::new()?, Gate::new()?, Gate::new()?);
    let child = child::fork(|| i32::from(end.pass().is_err()))?;
    let pid = child.pid();
    let tracer = child::fork(|| {
        status(|| {
            ptrace::seize(pid, Options::empty())?;
            attached.open(0)?;
            reap.pass()?;
            let ended = waitpid(pid, None)?;
            expect_eq("the tracee's end", ended, WaitStatus::Exited(pid, 0))
        })
    })?;
    attached.pass()?;
    end.open(0)?;
    listener.wait_for("EXIT", |received| is_exit(received, pid.as_raw()))?;

    let early = waitpid(pid, Some(WaitPidFlag::WNOHANG))?;
    expect_eq(
        "the end, before the tracer has waited",
        early,
        WaitStatus::StillAlive,
    )?;
    reap.open(0)?;
    succeed(tracer)?;
    succeed(child)
}
