// SPDX-License-Identifier: GPL-2.0
//! SESSION_END: the last thread of a session leader ends (C17).
//!
//! The event is sent before the parent can reap the leader. So all events have arrived when wait(2)
//! returns, and "once" and "none" need no further proof.

use std::env;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setpgid};

use crate::child::{self, Child};
use crate::debugfs::Listing;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::directory::Directory;
use crate::support::process::ignore_children;
use crate::support::scenario::{events, events_about, every_kind, take_through_exit};
use crate::support::sessions::{
    CORE_FLAG, SESSIONS, begin, end, fork_as, lead, lead_here, status_of,
};
use crate::support::stock::NO_SESSION_END;
use crate::test;
use crate::timeouts;
use crate::wire::{Event, LISTEN, Task, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_SESSION_END)
    .covers(&[Line::C17])
    .of([
        test!(comes_once_when_a_session_leader_ends),
        test!(has_the_status_that_wait_reports),
        test!(has_the_signal_that_the_parent_asked_for),
        test!(comes_for_a_leader_that_is_not_waited_for),
        test!(comes_before_the_number_is_used_again).limit(Duration::from_secs(30)),
        test!(does_not_come_for_a_process_that_leads_no_session),
        test!(does_not_come_unasked).stock_passes(),
        test!(comes_beside_everything_else_and_before_exit),
        test!(follows_the_mask).covers(&[Line::C18]),
        test!(a_session_costs_its_follower_two_events),
    ]);

fn comes_once_when_a_session_leader_ends() -> TestResult {
    let mut listener = Listener::listen(SESSIONS)?;
    for status in [0, 7, 255] {
        let child = lead(|| status)?;
        let pid = child.pid().as_raw();
        let code = status_of(child)?;
        expect_eq("status", code, (status as u32) << 8)?;
        let expected = vec![begin(pid)?, end(pid, code)];
        expect_eq("events", events(&mut listener)?, expected)?;
    }
    Ok(())
}

fn has_the_status_that_wait_reports() -> TestResult {
    let directory = Directory::new("core")?;
    let mut listener = Listener::listen(mask::SESSION_END)?;
    let deaths = [
        (Signal::SIGKILL, RLIM_INFINITY),
        (Signal::SIGTERM, 0),
        (Signal::SIGABRT, 0),
        (Signal::SIGABRT, RLIM_INFINITY),
    ];
    let mut codes = Vec::new();
    for (signal, core_limit) in deaths {
        let child = lead(|| {
            let prepared = setrlimit(Resource::RLIMIT_CORE, core_limit, core_limit).is_ok()
                && env::set_current_dir(directory.path()).is_ok();
            // Raising one of these signals does not return.
            i32::from(prepared && raise(signal).is_ok())
        })?;
        let pid = child.pid().as_raw();
        let code = status_of(child)?;
        expect_eq("events", events(&mut listener)?, vec![end(pid, code)])?;
        codes.push(code);
    }
    let abort = Signal::SIGABRT as u32;
    expect_eq("statuses", codes, vec![9, 15, abort, abort | CORE_FLAG])
}

fn has_the_signal_that_the_parent_asked_for() -> TestResult {
    let mut listener = Listener::listen(mask::SESSION_END)?;
    // SIGURG is ignored by default, so it does not end this process. With 0, the parent gets no signal.
    for signal in [libc::SIGURG, 0] {
        let child = child::clone_with(signal, || lead_here(|| 3))?;
        let expected = Event::SessionEnd {
            task: Task::leader(child.pid().as_raw()),
            code: 3 << 8,
            signal: signal as u32,
        };
        status_of(child)?;
        expect_eq("events", events(&mut listener)?, vec![expected])?;
    }
    Ok(())
}

/// Waits until the kernel has reaped all children.
fn await_no_children() -> TestResult {
    expect_eq("wait", waitpid(None, None), Err(Errno::ECHILD))
}

fn comes_for_a_leader_that_is_not_waited_for() -> TestResult {
    let mut listener = Listener::listen(SESSIONS)?;
    ignore_children()?;
    let pid = lead(|| 3)?.into_pid().as_raw();
    await_no_children()?;
    let expected = vec![begin(pid)?, end(pid, 3 << 8)];
    expect_eq("events", events(&mut listener)?, expected)
}

/// A session is identified by its leader's pid, so the end of one must not be reported after the
/// begin of the next one with the same pid.
fn comes_before_the_number_is_used_again() -> TestResult {
    const SESSIONS_IN_A_ROW: usize = 300;
    let deadline = timeouts::deadline(Duration::from_secs(20));
    let mut listener = Listener::listen(SESSIONS)?;
    ignore_children()?;
    let pid = lead(|| 0)?.into_pid().as_raw();
    for _ in 1..SESSIONS_IN_A_ROW {
        fork_as(pid, deadline, || lead_here(|| 0))?;
    }
    await_no_children()?;
    let expected = [begin(pid)?, end(pid, 0)].repeat(SESSIONS_IN_A_ROW);
    let events = events(&mut listener)?;
    let wrong = events
        .iter()
        .zip(&expected)
        .position(|(got, expected)| got != expected);
    expect_eq("first event out of its order", wrong, None)?;
    expect_eq("events", events.len(), expected.len())
}

fn does_not_come_for_a_process_that_leads_no_session() -> TestResult {
    let mut listener = Listener::listen(SESSIONS)?;
    let leader = lead(|| {
        let process = child::fork(|| 0);
        let group_leader = child::fork(|| {
            let own = Pid::from_raw(0);
            i32::from(setpgid(own, own).is_err())
        });
        let thread = std::thread::spawn(|| 0).join();
        let ended = [process, group_leader].map(|child| child.and_then(Child::wait));
        i32::from(thread.is_err() || ended.iter().any(Result::is_err))
    })?;
    let pid = leader.pid().as_raw();
    expect_eq("status", status_of(leader)?, 0)?;
    // The death of the session leader also does not make a leader of another process in the session.
    let expected = vec![begin(pid)?, end(pid, 0)];
    expect_eq("events", events(&mut listener)?, expected)
}

fn does_not_come_unasked() -> TestResult {
    // Because of this listener, there are events that the others must not get.
    let _asking = Listener::listen(SESSIONS)?;
    let mut listeners = Vec::new();
    for mask in [0, mask::ALL, mask::SID, mask::SID | mask::EXIT] {
        listeners.push((format!("mask {mask:#010x}"), Listener::listen(mask)?));
    }
    listeners.push(("four bytes".to_owned(), Listener::listen_all()?));
    let leader = lead(|| 0)?;
    let pid = leader.pid().as_raw();
    status_of(leader)?;
    for (request, mut listener) in listeners {
        let got = events(&mut listener)?;
        let about = |event: &&Event| event.subject().pid == pid;
        expect(
            got.iter().any(|event| about(&event)),
            format!("{request}: any event about {pid}"),
        )?;
        let unasked = got.iter().find(|event| event.bit() == mask::SESSION_END);
        expect_eq(&request, unasked, None)?;
    }
    Ok(())
}

fn comes_beside_everything_else_and_before_exit() -> TestResult {
    let mut everything = Listener::listen_all()?;
    let mut more = Listener::listen(mask::EVERYTHING)?;
    let (pid, messages) = every_kind(&mut everything)?;
    let mut expected = events_about(&messages, pid);
    let Some(Event::Exit { code, .. }) = expected.last().copied() else {
        return Err(Failure::new(format!(
            "expected EXIT last, got {expected:?}"
        )));
    };
    expected.insert(expected.len() - 1, end(pid, code));
    expect_eq(
        "events",
        events_about(&take_through_exit(&mut more, pid)?, pid),
        expected,
    )
}

fn follows_the_mask() -> TestResult {
    let mut listener = Listener::listen(mask::SID)?;
    let mut expected = Vec::new();
    for (asked_for, mask) in [(false, mask::SID), (true, SESSIONS), (false, 0), (true, !0)] {
        listener.request(&[LISTEN, mask])?;
        let leader = lead(|| 0)?;
        let pid = leader.pid().as_raw();
        status_of(leader)?;
        if asked_for {
            expected.push(end(pid, 0));
        }
    }
    let mut got = events(&mut listener)?;
    got.retain(|event| event.bit() == mask::SESSION_END);
    expect_eq("events", got, expected)
}

fn a_session_costs_its_follower_two_events() -> TestResult {
    const COUNT: usize = 10;
    let mut listener = Listener::listen(SESSIONS)?;
    for _ in 0..COUNT {
        let leader = lead(|| {
            let children = [0, 1].map(|status| child::fork(move || status));
            let ended = children.map(|child| child.and_then(Child::wait));
            i32::from(ended.iter().any(Result::is_err))
        })?;
        let pid = leader.pid().as_raw();
        expect_eq("status", status_of(leader)?, 0)?;
        let expected = vec![begin(pid)?, end(pid, 0)];
        expect_eq("events", events(&mut listener)?, expected)?;
        // Another session, whose leader raises events of every kind.
        every_kind(&mut Listener::listen_all()?)?;
        expect_eq("events", events(&mut listener)?.len(), 2)?;
    }
    let delivered = Listing::of(listener.port_id()?)?.delivered;
    expect_eq("delivered", delivered, 2 * 2 * COUNT as u64)
}
