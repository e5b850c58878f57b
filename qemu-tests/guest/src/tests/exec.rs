// SPDX-License-Identifier: GPL-2.0
//! EXEC: a program is executed (C8).

use std::ffi::CString;
use std::thread;

use nix::errno::Errno;
use nix::unistd::execv;

use crate::child;
use crate::harness::{Declaration, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::{events_of, in_child, take_through_exit};
use crate::test;
use crate::wire::{Event, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C8]).of([
    test!(names_the_process[first_thread](|| i32::from(
        execute("/bin/true").is_err()
    ))),
    test!(names_the_process[another_thread](execute_by_a_thread)),
    test!(does_not_come_when_it_fails),
]);

/// The thread takes over the leader's id: the process keeps its pid.
fn execute_by_a_thread() -> i32 {
    let thread = thread::spawn(|| execute("/bin/true"));
    i32::from(thread.join().is_ok())
}

fn names_the_process(function: fn() -> i32) -> TestResult {
    let mut listener = Listener::listen(mask::EXEC | mask::EXIT)?;
    let child = child::fork(function)?;
    let pid = child.pid().as_raw();
    // A thread's EXIT may have the leader's id, too. The EXIT of the process comes last, and only
    // its program exits with success.
    let mut messages = take_through_exit(&mut listener, pid)?;
    if events_of(&messages, mask::EXEC, pid).is_empty() {
        messages.extend(take_through_exit(&mut listener, pid)?);
    }
    child.wait()?;
    let expected = Event::Exec {
        task: Task::leader(pid),
    };
    expect_eq(
        "events",
        events_of(&messages, mask::EXEC, pid),
        vec![expected],
    )
}

fn does_not_come_when_it_fails() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        expect_eq(
            "exec of a file that does not exist",
            execute("/nonexistent/program"),
            Err(Errno::ENOENT),
        )?;
        Ok(0)
    })?;
    expect_eq("events", scene.events(mask::EXEC), vec![])
}

fn execute(program: &str) -> nix::Result<()> {
    let program = CString::new(program).expect("the path has no NUL byte");
    execv(&program, &[&program]).map(drop)
}
