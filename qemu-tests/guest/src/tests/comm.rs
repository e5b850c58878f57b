// SPDX-License-Identifier: GPL-2.0
//! COMM: a task's name changes (C13).

use std::fs;
use std::thread;

use crate::child::{self, Gate, own_pid, own_tid};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::{comm, events_of, in_child, in_self, mark, own_task};
use crate::test;
use crate::wire::{Event, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C13]).of([
    test!(carries_the_name[short](|| rename("a name"), "a name")),
    test!(carries_the_name[cut_to_15](|| rename(LONG), &LONG[..15])),
    test!(carries_the_name[of_a_thread](rename_a_thread, "a thread")),
    test!(carries_the_name[written](write_name, "written")),
    test!(does_not_come_for_the_name_of_a_foreign_process),
]);

const LONG: &str = "abcdefghijklmnopqrstuvwxyz";

/// A child renames one of its threads. The event names that thread.
fn carries_the_name(rename: fn() -> Result<i32, Failure>, name: &str) -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, rename)?;
    let expected = Event::Comm {
        task: Task {
            pid: scene.number,
            tgid: scene.child.tgid,
        },
        comm: comm(name),
    };
    expect_eq(
        "event",
        scene.events(mask::COMM).first().copied(),
        Some(expected),
    )
}

fn rename(name: &str) -> Result<i32, Failure> {
    mark(name)?;
    Ok(own_tid())
}

fn rename_a_thread() -> Result<i32, Failure> {
    let renamed = thread::spawn(|| rename("a thread"));
    renamed.join().expect("renaming does not panic")
}

/// Another thread writes the name.
fn write_name() -> Result<i32, Failure> {
    let (started, written) = (Gate::new()?, Gate::new()?);
    thread::scope(|scope| {
        scope.spawn(|| started.open(own_tid()).and_then(|()| written.pass()));
        let tid = started.pass()?;
        fs::write(format!("/proc/self/task/{tid}/comm"), "written")?;
        written.open(0)?;
        Ok(tid)
    })
}

fn does_not_come_for_the_name_of_a_foreign_process() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let gate = Gate::new()?;
    let child = child::fork(|| i32::from(gate.pass().is_err()))?;
    let pid = child.pid().as_raw();
    let messages = in_self(&mut listener, || {
        let written = fs::write(format!("/proc/{pid}/comm"), "foreign");
        expect(written.is_err(), "writing another process's name to fail")
    })?;
    gate.open(0)?;
    child.wait()?;
    expect_eq(
        "events of the other process",
        events_of(&messages, mask::COMM, pid),
        vec![],
    )?;
    // The only one is the mark at the end.
    let own = events_of(&messages, mask::COMM, own_pid());
    expect_eq(
        "own events",
        own.iter().map(Event::subject).collect(),
        vec![own_task()],
    )
}
