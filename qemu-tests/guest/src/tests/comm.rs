// SPDX-License-Identifier: GPL-2.0
//! COMM: a task's name changes (C13).

use std::fs;
use std::thread;

use crate::child::{self, Gate, own_pid, own_tid};
use crate::harness::{Declaration, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::{comm, events_of, in_child, in_self, mark, own_task};
use crate::test;
use crate::wire::{Event, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C13]).of([
    test!(carries_the_new_name),
    test!(carries_fifteen_characters_of_a_longer_name),
    test!(names_the_thread_that_renames_itself),
    test!(names_the_renamed_thread_when_another_one_writes_its_name),
    test!(does_not_come_for_the_name_of_a_foreign_process),
]);

fn carries_the_new_name() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        mark("a name")?;
        Ok(0)
    })?;
    let events = scene.events(mask::COMM);
    let expected = Event::Comm {
        task: scene.child,
        comm: comm("a name"),
    };
    expect_eq("event", events.first().copied(), Some(expected))
}

fn carries_fifteen_characters_of_a_longer_name() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        mark("abcdefghijklmnopqrstuvwxyz")?;
        Ok(0)
    })?;
    let expected = Event::Comm {
        task: scene.child,
        comm: comm("abcdefghijklmno"),
    };
    expect_eq(
        "event",
        scene.events(mask::COMM).first().copied(),
        Some(expected),
    )
}

fn names_the_thread_that_renames_itself() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        let renamed = thread::spawn(|| mark("a thread").map(|()| own_tid()));
        Ok(renamed.join().expect("renaming does not panic")?)
    })?;
    let task = Task {
        pid: scene.number,
        tgid: scene.child.tgid,
    };
    let expected = Event::Comm {
        task,
        comm: comm("a thread"),
    };
    expect_eq(
        "event",
        scene.events(mask::COMM).first().copied(),
        Some(expected),
    )
}

fn names_the_renamed_thread_when_another_one_writes_its_name() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        let (told, written) = (Gate::new()?, Gate::new()?);
        let tid = thread::scope(|scope| {
            scope.spawn(|| told.open(own_tid()).and_then(|()| written.pass()));
            let tid = told.pass()?;
            fs::write(format!("/proc/self/task/{tid}/comm"), "written")?;
            written.open(0)?;
            Ok::<_, std::io::Error>(tid)
        })?;
        Ok(tid)
    })?;
    let task = Task {
        pid: scene.number,
        tgid: scene.child.tgid,
    };
    let expected = Event::Comm {
        task,
        comm: comm("written"),
    };
    expect_eq(
        "event",
        scene.events(mask::COMM).first().copied(),
        Some(expected),
    )
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
        "events of the other",
        events_of(&messages, mask::COMM, pid),
        vec![],
    )?;
    // Only the mark at the end.
    let own = events_of(&messages, mask::COMM, own_pid());
    expect_eq(
        "own events",
        own.iter().map(Event::subject).collect(),
        vec![own_task()],
    )
}
