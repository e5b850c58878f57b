// SPDX-License-Identifier: GPL-2.0
//! When a process with several threads ends, and how often that is reported (C45).

use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::child::{self, Gate};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::process::{ignore_children, status, succeed};
use crate::support::scenario::{
    events_of, exit, is_exit, mark, own_task, take_through_exit, take_through_mark,
};
use crate::support::sessions::code_of;
use crate::support::stock::{FIRST_THREAD_ENDS_PROCESS, NO_FLAGS};
use crate::support::threads::{
    LastThread, THREADS_AT_ONCE, await_zombie, end_at_once, end_thread, reap, try_wait,
    without_first_thread,
};
use crate::test;
use crate::wire::{Event, PROCESSES, Received, Task, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(FIRST_THREAD_ENDS_PROCESS)
    .covers(&[Line::C45])
    .of([
        test!(the_end_of_a_first_thread_is_reported_when_its_process_ends).covers(&[Line::C15]),
        test!(an_end_waits_for_a_traced_thread[threads_too](0)),
        test!(an_end_waits_for_a_traced_thread[processes](PROCESSES))
            .not_on_stock(NO_FLAGS)
            .covers(&[Line::C51]),
        test!(a_process_whose_end_is_reported_can_be_waited_for[threads_too](0))
            .limit(Duration::from_secs(30)),
        test!(a_process_whose_end_is_reported_can_be_waited_for[processes](PROCESSES))
            .limit(Duration::from_secs(30))
            .not_on_stock(NO_FLAGS)
            .covers(&[Line::C51]),
        test!(a_process_that_is_not_waited_for_ends_once[threads_too](0))
            // The stock kernel fails either way: it has already released a first thread that ends last.
            .stock_fails("the first thread's end is reported before others, or without the parent"),
        test!(a_process_that_is_not_waited_for_ends_once[processes](
            PROCESSES
        ))
        .not_on_stock(NO_FLAGS)
        .covers(&[Line::C51]),
    ]);

/// Exit signal of a thread that notifies no process: -1.
const NO_SIGNAL: u32 = u32::MAX;

/// A listener for the ends of processes and threads, or with [`PROCESSES`] only of processes.
fn listen(flags: u32) -> Result<Listener, Failure> {
    Ok(match flags {
        // The form of the request that the unpatched kernel knows.
        0 => Listener::listen(mask::EXIT)?,
        flags => Listener::listen_with(mask::EXIT, flags)?,
    })
}

/// The ends of a process and its threads.
fn ends(messages: &[Received], tgid: i32) -> Vec<Event> {
    events_of(messages, mask::EXIT, tgid)
}

fn the_end_of_a_first_thread_is_reported_when_its_process_ends() -> TestResult {
    for last in [LastThread::Itself, LastThread::All, LastThread::Killed] {
        expect_one_end(last).map_err(|failure| failure.about(format!("when it is {last:?}")))?;
    }
    Ok(())
}

fn expect_one_end(last: LastThread) -> TestResult {
    let mut listener = Listener::listen_all()?;
    let mut failures = Listener::listen(mask::NONZERO_EXIT)?;
    let (ended, go_on) = (Gate::new()?, Gate::new()?);
    let process = without_first_thread(0, || {
        status(|| {
            mark("goes on")?;
            ended.open(child::own_tid())?;
            go_on.pass()?;
            last.act();
            Ok(())
        })
    })?;
    let tgid = process.pid().as_raw();
    let task = Task {
        pid: ended.pass()?,
        tgid,
    };
    // Any event of the first thread's end comes before another process has begun and ended.
    succeed(child::fork(|| 0)?)?;
    let before = take_through_mark(&mut listener, task, "goes on")?;
    expect_eq("ends before the process's", ends(&before, tgid), vec![])?;
    expect_eq("more of them", ends(&listener.take_queued()?, tgid), vec![])?;
    match last {
        LastThread::Killed => kill(process.pid(), Signal::SIGKILL)?,
        LastThread::Itself | LastThread::All => go_on.open(0)?,
    }
    let messages = take_through_exit(&mut listener, tgid)?;
    let code = last.code();
    expect_eq("status", reap(process.into_pid())?, code)?;
    let of_thread = Event::Exit {
        task,
        code,
        signal: NO_SIGNAL,
        parent: own_task(),
    };
    let expected = vec![of_thread, exit(Task::leader(tgid), code, own_task())];
    expect_eq("ends", ends(&messages, tgid), expected.clone())?;
    // The listener's filter checks the status of the process, and not that of its first thread.
    let messages = take_through_exit(&mut failures, tgid)?;
    expect_eq("failed ends", ends(&messages, tgid), expected)
}

/// Which of two threads ends first.
#[derive(Clone, Copy, Debug)]
enum Sooner {
    First,
    Traced,
}

/// How a tracer lets go of a thread that has ended.
#[derive(Clone, Copy, Debug)]
enum LetsGo {
    Reaps,
    Dies,
}

fn an_end_waits_for_a_traced_thread(flags: u32) -> TestResult {
    for sooner in [Sooner::First, Sooner::Traced] {
        for lets_go in [LetsGo::Reaps, LetsGo::Dies] {
            expect_end_when_let_go(flags, sooner, lets_go)
                .map_err(|failure| failure.about(format!("with {sooner:?}, {lets_go:?}")))?;
        }
    }
    Ok(())
}

fn expect_end_when_let_go(flags: u32, sooner: Sooner, lets_go: LetsGo) -> TestResult {
    // Once the process has ended, its status and that of all its threads is the last thread's.
    let last = match sooner {
        Sooner::First => 4,
        Sooner::Traced => 3,
    };
    let code = (last as u32) << 8;
    let mut listener = listen(flags)?;
    let mut witness = listen(0)?;
    let (ready, go, go_too) = (Gate::new()?, Gate::new()?, Gate::new()?);
    let process = child::fork(|| {
        let (first, other) = match sooner {
            Sooner::First => (&go, &go_too),
            Sooner::Traced => (&go_too, &go),
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let passed = ready.open(child::own_tid()).and_then(|()| other.pass());
                end_thread(if passed.is_ok() { 4 } else { 1 })
            });
            end_thread(if first.pass().is_ok() { 3 } else { 1 })
        })
    })?;
    let pid = process.pid();
    let thread = ready.pass()?;
    let (traced, let_go) = (Gate::new()?, Gate::new()?);
    let tracer = child::fork(|| {
        status(|| {
            ptrace::seize(Pid::from_raw(thread), ptrace::Options::empty())?;
            traced.open(0)?;
            let_go.pass()?;
            match lets_go {
                LetsGo::Reaps => expect_eq("status", reap(Pid::from_raw(thread))?, code),
                LetsGo::Dies => Ok(()),
            }
        })
    })?;
    traced.pass()?;
    let (first, other) = (pid.to_string(), format!("{pid}/task/{thread}"));
    let turns = match sooner {
        Sooner::First => [first, other],
        Sooner::Traced => [other, first],
    };
    for (gate, task) in [go, go_too].iter().zip(turns) {
        gate.open(0)?;
        await_zombie(&task)?;
    }
    // Now all threads have ended.
    let thread_listener = match flags {
        PROCESSES => &mut witness,
        _ => &mut listener,
    };
    thread_listener.wait_for("EXIT of the thread", |received| is_exit(received, thread))?;
    succeed(child::fork(|| 0)?)?;
    let early = ends(&listener.take_queued()?, pid.as_raw());
    expect_eq("ends before it is let go", early, vec![])?;
    expect_eq("wait", try_wait(pid)?, WaitStatus::StillAlive)?;
    let_go.open(0)?;
    let messages = take_through_exit(&mut listener, pid.as_raw())?;
    expect_eq("wait", try_wait(pid)?, WaitStatus::Exited(pid, last))?;
    let expected = exit(Task::leader(pid.as_raw()), code, own_task());
    expect_eq("ends", ends(&messages, pid.as_raw()), vec![expected])?;
    succeed(tracer)?;
    expect_eq(
        "more of them",
        ends(&listener.take_queued()?, pid.as_raw()),
        vec![],
    )
}

fn a_process_whose_end_is_reported_can_be_waited_for(flags: u32) -> TestResult {
    const ROUNDS: usize = 150;
    let mut listener = listen(flags)?;
    for round in 0..ROUNDS {
        let process = end_at_once(round)?.into_pid();
        if round % 3 == 2 {
            kill(process, Signal::SIGKILL)?;
        }
        let pid = process.as_raw();
        let received = listener.wait_for("EXIT", |received| is_exit(received, pid))?;
        let code = code_of(try_wait(process)?);
        let Event::Exit { code: reported, .. } = received.event else {
            return Err(Failure::new("expected EXIT"));
        };
        expect_eq(&format!("status in round {round}"), Some(reported), code)?;
        let of_threads = ends(&listener.take_queued()?, pid);
        let is_right = flags != PROCESSES || of_threads.is_empty();
        expect(is_right, format!("no ends of threads, got {of_threads:?}"))?;
    }
    Ok(())
}

fn a_process_that_is_not_waited_for_ends_once(flags: u32) -> TestResult {
    const ROUNDS: usize = 60;
    let mut listener = listen(flags)?;
    let expected = match flags {
        PROCESSES => 1,
        _ => THREADS_AT_ONCE,
    };
    ignore_children()?;
    // The number of each process is in use until the process has ended.
    for round in 0..ROUNDS {
        let process = end_at_once(3 * round + round % 2)?.into_pid();
        let pid = process.as_raw();
        expect_eq("wait", waitpid(process, None), Err(Errno::ECHILD))?;
        let mut messages = take_through_exit(&mut listener, pid)?;
        // A second report would come before another process has begun and ended.
        let marker = child::fork(|| 0)?.into_pid();
        messages.extend(take_through_exit(&mut listener, marker.as_raw())?);
        expect_eq("wait", waitpid(marker, None), Err(Errno::ECHILD))?;
        let reported = ends(&messages, pid);
        let whole = reported.iter().filter(|event| event.subject().pid == pid);
        expect_eq(&format!("ends of {pid}"), whole.count(), 1)?;
        expect_eq("ends with those of its threads", reported.len(), expected)?;
        let code = match round % 2 {
            0 => LastThread::Itself.code(),
            _ => LastThread::All.code(),
        };
        // The end of the process comes last, and names the parent although the process was reaped
        // immediately.
        let end = exit(Task::leader(pid), code, own_task());
        expect_eq("last end", reported.last().copied(), Some(end))?;
    }
    Ok(())
}
