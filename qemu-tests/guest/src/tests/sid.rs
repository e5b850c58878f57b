// SPDX-License-Identifier: GPL-2.0
//! SID: a process becomes a session leader (C11).

use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::unistd::{Pid, getpgrp, getsid, setpgid, setsid};

use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::{events_of, in_child, own_task, take_through_exit};
use crate::test;
use crate::wire::{Event, Left, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C11]).of([
    test!(comes_exactly_once_for[the_first_thread](call_setsid)),
    test!(comes_exactly_once_for[two_calls](call_twice)),
    test!(does_not_come_for_a_process_group_leader),
    test!(comes_exactly_once_for[another_thread](call_by_a_thread)),
    test!(comes_for_the_setsid_program),
    test!(has_the_parent_the_session_and_the_group_that_were_left)
        .stock_fails("the event has no such fields"),
]);

fn leaders(events: &[Event]) -> Vec<Task> {
    events.iter().map(Event::subject).collect()
}

/// The event names the process, whichever of its threads calls setsid().
fn comes_exactly_once_for(become_leader: fn() -> Result<i32, Failure>) -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, become_leader)?;
    expect_eq("session", scene.number, scene.child.pid)?;
    expect_eq(
        "new leaders",
        leaders(&scene.events(mask::SID)),
        vec![scene.child],
    )
}

fn call_setsid() -> Result<i32, Failure> {
    Ok(setsid()?.as_raw())
}

fn call_twice() -> Result<i32, Failure> {
    let session = call_setsid()?;
    expect_eq("second setsid()", setsid(), Err(Errno::EPERM))?;
    Ok(session)
}

fn does_not_come_for_a_process_group_leader() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        expect_eq("setsid()", setsid(), Err(Errno::EPERM))?;
        Ok(0)
    })?;
    expect_eq("events", scene.events(mask::SID), vec![])
}

fn call_by_a_thread() -> Result<i32, Failure> {
    let called = thread::spawn(call_setsid).join();
    called.expect("setsid() does not panic")
}

fn comes_for_the_setsid_program() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let mut program = Command::new("setsid").arg("true").spawn()?;
    let pid = program.id() as i32;
    let messages = take_through_exit(&mut listener, pid)?;
    expect_eq("success", program.wait()?.success(), true)?;
    let events = events_of(&messages, mask::SID, pid);
    expect_eq("new leaders", leaders(&events), vec![Task::leader(pid)])
}

fn has_the_parent_the_session_and_the_group_that_were_left() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let parent = own_task();
    // The child inherits both from this process.
    let (session, process_group) = (getsid(None)?.as_raw(), getpgrp().as_raw());
    let scene = in_child(&mut listener, || Ok(setsid()?.as_raw()))?;
    let left = Left {
        parent_pid: parent.pid,
        parent_tgid: parent.tgid,
        session,
        process_group,
    };
    expect_eq(
        "events",
        scene.events(mask::SID),
        vec![Event::Sid {
            task: scene.child,
            left,
        }],
    )
}
