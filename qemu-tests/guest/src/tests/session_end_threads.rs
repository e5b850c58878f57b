// SPDX-License-Identifier: GPL-2.0
//! SESSION_END of processes with threads: once, whichever thread is the last (C17).

use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::execv;

use crate::child::{Child, Gate};
use crate::harness::{Declaration, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::events;
use crate::support::sessions::{SESSIONS, begin, end, lead, status_of};
use crate::support::stock::NO_SESSION_END;
use crate::support::threads::{
    ORDERS, await_end_of_thread, end_in_turn, end_thread, end_thread_as, status_of_thread,
};
use crate::test;
use crate::wire::mask;

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_SESSION_END)
    .covers(&[Line::C17])
    .of([
        test!(comes_when_the_last_thread_ends_in_any_order),
        test!(comes_once_when_threads_end_at_once),
        test!(comes_once_when_a_thread_ends_them_all),
        test!(comes_once_when_all_are_killed),
        test!(does_not_come_when_a_thread_runs_another_program),
        test!(does_not_come_when_the_leader_ends_and_a_thread_runs_another_program),
    ]);

fn comes_when_the_last_thread_ends_in_any_order() -> TestResult {
    let mut listener = Listener::listen(SESSIONS)?;
    for order in ORDERS {
        let leader = lead(|| {
            for index in [1, 2] {
                thread::spawn(move || end_in_turn(order, index));
            }
            end_in_turn(order, 0)
        })?;
        let code = (status_of_thread(order[2]) as u32) << 8;
        expect_session(&mut listener, leader, code)?;
    }
    Ok(())
}

/// Expects a leader to end with a status, and only its session's begin and end to be reported.
fn expect_session(listener: &mut Listener, leader: Child, code: u32) -> TestResult {
    let pid = leader.pid().as_raw();
    expect_eq("status", status_of(leader)?, code)?;
    let expected = vec![begin(pid)?, end(pid, code)];
    expect_eq("events", events(listener)?, expected)
}

fn comes_once_when_threads_end_at_once() -> TestResult {
    let mut listener = Listener::listen(SESSIONS)?;
    for _ in 0..50 {
        let leader = lead(|| {
            for index in 1..4 {
                thread::spawn(move || end_thread(status_of_thread(index)));
            }
            end_thread(status_of_thread(0))
        })?;
        let pid = leader.pid().as_raw();
        // Only the kernel knows which of them was the last.
        let code = status_of(leader)?;
        let expected = vec![begin(pid)?, end(pid, code)];
        expect_eq("events", events(&mut listener)?, expected)?;
    }
    Ok(())
}

/// Leads a session with some threads that wait for ever, and one that calls a function.
fn lead_threads(function: impl FnOnce() -> i32 + Send) -> nix::Result<Child> {
    let never = Gate::new()?;
    lead(|| {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| never.pass());
            }
            scope.spawn(function);
        });
        1
    })
}

fn comes_once_when_a_thread_ends_them_all() -> TestResult {
    let mut listener = Listener::listen(SESSIONS)?;
    let leader = lead_threads(|| std::process::exit(9))?;
    expect_session(&mut listener, leader, 9 << 8)
}

fn comes_once_when_all_are_killed() -> TestResult {
    let mut listener = Listener::listen(SESSIONS)?;
    let ready = Gate::new()?;
    let leader = lead_threads(|| i32::from(ready.open(0).is_err()))?;
    ready.pass()?;
    kill(leader.pid(), Signal::SIGKILL)?;
    expect_session(&mut listener, leader, Signal::SIGKILL as u32)
}

/// Replaces the whole process with a shell.
fn run_shell() -> i32 {
    let shell = [c"/bin/sh", c"-c", c"exit 5"];
    i32::from(execv(shell[0], &shell).is_err())
}

/// Expects a session to end only after its leader ran the shell.
fn expect_end_after_exec(listener: &mut Listener, leader: Child) -> TestResult {
    let pid = leader.pid().as_raw();
    expect_eq("status", status_of(leader)?, 5 << 8)?;
    let kinds: Vec<_> = events(listener)?
        .iter()
        .map(|event| (event.subject().pid, event.kind()))
        .collect();
    let expected = ["sid", "exec", "session-end"].map(|kind| (pid, kind));
    expect_eq("events", kinds, expected.to_vec())
}

fn does_not_come_when_a_thread_runs_another_program() -> TestResult {
    let mut listener = Listener::listen(SESSIONS | mask::EXEC)?;
    let leader = lead_threads(run_shell)?;
    expect_end_after_exec(&mut listener, leader)
}

fn does_not_come_when_the_leader_ends_and_a_thread_runs_another_program() -> TestResult {
    let mut listener = Listener::listen(SESSIONS | mask::EXEC)?;
    let leader = lead(|| {
        thread::spawn(|| {
            await_end_of_thread(0);
            run_shell()
        });
        end_thread_as(0, 3)
    })?;
    expect_end_after_exec(&mut listener, leader)
}
