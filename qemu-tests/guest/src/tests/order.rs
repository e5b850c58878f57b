// SPDX-License-Identifier: GPL-2.0
//! Which order of events is promised, and which is not (C49).
//!
//! The tests force an order that is not promised and is otherwise rare: both sides share a CPU, and
//! one of them runs first whenever it can.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::{mem, thread};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, execv, pipe, setsid};

use crate::child::{self, Gate, own_tid};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::support::exec_variants::{self, Caller, ExecResult, FirstThread, Place, Variant};
use crate::support::scenario::{
    events, events_about, mark, own_task, take_through_exit, take_through_mark,
};
use crate::support::scheduling::run_first;
use crate::support::sessions::{end, fork_as, status_of};
use crate::support::stock::NO_SESSION_END;
use crate::test;
use crate::timeouts;
use crate::wire::{Event, Received, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C49]).of([
    test!(no_event_of_a_task_comes_before_its_fork),
    test!(threads_that_exec_ends_are_reported_before_it)
        .stock_fails("they end before exec continues, but report it when they run again")
        .covers(&[Line::C45]),
    test!(a_process_can_be_waited_for_when_its_end_is_reported),
    test!(an_end_may_be_reported_when_the_number_is_used_again),
    test!(the_parent_of_a_vfork_may_go_on_before_the_exec_is_reported),
    test!(the_end_of_a_session_is_reported_when_its_files_are_closed)
        .stock_fails(NO_SESSION_END)
        .covers(&[Line::C17]),
    test!(files_may_be_closed_before_the_end_of_a_session_is_reported)
        .stock_fails(NO_SESSION_END)
        .covers(&[Line::C17]),
    test!(files_may_be_closed_before_the_end_of_a_process_is_reported),
    test!(a_thread_may_be_joined_before_its_end_is_reported),
]);

/// How many rounds a test of a promised order has.
const ROUNDS: usize = 30;

/// The kinds of events about a process, in the order of the events.
fn kinds_of(messages: &[Received], tgid: i32) -> Vec<&'static str> {
    let events = events_about(messages, tgid);
    events.iter().map(Event::kind).collect()
}

/// Takes the messages that have arrived, and returns the events about a process. The kernel may start
/// threads of its own at any time.
fn taken_about(listener: &mut Listener, process: Pid) -> Result<Vec<Event>, ListenerError> {
    Ok(events_about(&listener.take_queued()?, process.as_raw()))
}

/// Each new task may begin on any CPU, and raises an event immediately.
fn no_event_of_a_task_comes_before_its_fork() -> TestResult {
    let mut listener = Listener::listen(mask::FORK | mask::COMM | mask::EXIT)?;
    for _ in 0..ROUNDS {
        let process = child::fork(|| {
            let marked = mark("process");
            let thread = thread::spawn(|| mark("thread")).join();
            i32::from(marked.is_err() || !matches!(thread, Ok(Ok(()))))
        })?;
        let pid = process.pid().as_raw();
        let messages = take_through_exit(&mut listener, pid)?;
        expect_eq("status", status_of(process)?, 0)?;
        let mut kinds = kinds_of(&messages, pid);
        // Another test counts the EXIT events.
        kinds.dedup();
        let expected = vec!["fork", "comm", "fork", "comm", "exit"];
        expect_eq("events", kinds, expected)?;
    }
    Ok(())
}

/// The caller goes on before a thread that exec ends has completed its exit.
fn threads_that_exec_ends_are_reported_before_it() -> TestResult {
    for caller in [Caller::First, Caller::Other(FirstThread::Waits)] {
        let variant = Variant {
            outcome: ExecResult::Runs,
            caller,
            bystanders: 2,
            hurried: true,
            traced: false,
            place: Place::Ordinary,
        };
        let observed = exec_variants::run(variant)?.outside;
        let exec = observed
            .events
            .iter()
            .position(|event| event.bit() == mask::EXEC);
        for thread in &observed.threads {
            let end = observed
                .events
                .iter()
                .position(|event| matches!(event, Event::Exit { task, .. } if task.pid == *thread));
            expect(
                end.is_some() && end < exec,
                format!("EXIT of {thread} before EXEC, got {:#?}", observed.events),
            )
            .map_err(|failure| failure.about(variant))?;
        }
    }
    Ok(())
}

fn a_process_can_be_waited_for_when_its_end_is_reported() -> TestResult {
    let mut listener = Listener::listen(mask::EXIT)?;
    for _ in 0..ROUNDS {
        let process = child::fork(|| 3)?.into_pid();
        take_through_exit(&mut listener, process.as_raw())?;
        let ended = waitpid(process, Some(WaitPidFlag::WNOHANG))?;
        expect_eq("wait", ended, WaitStatus::Exited(process, 3))?;
    }
    Ok(())
}

fn an_end_may_be_reported_when_the_number_is_used_again() -> TestResult {
    let mut listener = Listener::listen(mask::FORK | mask::EXIT)?;
    run_first()?;
    let process = child::fork(|| 3)?;
    let pid = process.pid();
    expect_eq("wait", process.wait()?, WaitStatus::Exited(pid, 3))?;
    let forked = Event::Fork {
        parent: own_task(),
        child: Task::leader(pid.as_raw()),
    };
    expect_eq("events", taken_about(&mut listener, pid)?, vec![forked])?;
    // Only this thread runs, and the number is free.
    fork_as(pid.as_raw(), timeouts::deadline(Duration::ZERO), || 4)?;
    expect_eq("events", taken_about(&mut listener, pid)?, vec![forked])?;
    expect_eq("wait", waitpid(pid, None)?, WaitStatus::Exited(pid, 4))?;
    let first = take_through_exit(&mut listener, pid.as_raw())?;
    let second = take_through_exit(&mut listener, pid.as_raw())?;
    let mut codes = Vec::new();
    for received in [first, second].concat() {
        if let Event::Exit { code, .. } = received.event {
            codes.push(code);
        }
    }
    // It is not specified which of the two goes on first.
    codes.sort_unstable();
    expect_eq("ends", codes, vec![3 << 8, 4 << 8])
}

/// Bytes of stack for a child that shares its parent's memory.
const STACK_SIZE: usize = 64 << 10;

extern "C" fn run_true(_: *mut c_void) -> c_int {
    i32::from(execv(c"/bin/true", &[c"true"]).is_err())
}

/// Starts /bin/true as vfork(2) does. Returns when the child has its own address space.
fn vfork_true() -> nix::Result<Pid> {
    let mut stack = vec![0u128; STACK_SIZE / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: The child uses the stack until it runs a program or ends, and the call waits for that.
    // The child does nothing else.
    let result = unsafe {
        let top = stack.as_mut_ptr_range().end.cast();
        libc::clone(run_true, top, flags, std::ptr::null_mut())
    };
    Errno::result(result).map(Pid::from_raw)
}

/// The name that a test takes when it does not wait any more.
const GOES_ON: &str = "goes on";

fn the_parent_of_a_vfork_may_go_on_before_the_exec_is_reported() -> TestResult {
    let mut listener = Listener::listen(mask::FORK | mask::EXEC | mask::COMM)?;
    run_first()?;
    let child = vfork_true()?;
    mark(GOES_ON)?;
    let task = Task::leader(child.as_raw());
    let before = take_through_mark(&mut listener, own_task(), GOES_ON)?;
    let kinds = kinds_of(&before, task.tgid);
    // Only events from before the child released the parent's memory come first.
    expect_eq("events before the parent goes on", kinds, vec!["fork"])?;
    expect_eq("wait", waitpid(child, None)?, WaitStatus::Exited(child, 0))?;
    listener.wait_for("EXEC", |received| received.event == Event::Exec { task })?;
    Ok(())
}

/// Forks a child that calls a function, ends with its result, and is the only process with a pipe's write
/// end. Returns the child and the read end.
fn fork_with_pipe(run: impl FnOnce() -> i32) -> Result<(child::Child, OwnedFd), Failure> {
    let (reader, writer) = pipe()?;
    let child = child::fork(|| {
        // It is closed when the child ends, not before.
        mem::forget(writer);
        run()
    })?;
    Ok((child, reader))
}

/// Starts a session whose leader ends when the gate opens. The rest is as for [`fork_with_pipe`].
fn lead_with_pipe(go: &Gate) -> Result<(child::Child, OwnedFd), Failure> {
    fork_with_pipe(|| i32::from(setsid().is_err() || go.pass().is_err()))
}

fn the_end_of_a_session_is_reported_when_its_files_are_closed() -> TestResult {
    let mut listener = Listener::listen(mask::SESSION_END | mask::EXIT)?;
    for _ in 0..ROUNDS {
        let go = Gate::new()?;
        let (leader, reader) = lead_with_pipe(&go)?;
        let pid = leader.pid().as_raw();
        go.open(0)?;
        let received = listener.wait_for("SESSION_END", |received| {
            received.event.bit() == mask::SESSION_END
        })?;
        expect_eq("event", received.event, end(pid, 0))?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let length = File::from(reader).read(&mut [0])?;
        expect_eq("bytes of a pipe that no other process has", length, 0)?;
        let messages = take_through_exit(&mut listener, pid)?;
        expect_eq("events", kinds_of(&messages, pid), vec!["exit"])?;
        expect_eq("status", status_of(leader)?, 0)?;
    }
    Ok(())
}

fn files_may_be_closed_before_the_end_of_a_session_is_reported() -> TestResult {
    let mut listener = Listener::listen(mask::SESSION_END)?;
    run_first()?;
    let go = Gate::new()?;
    let (leader, reader) = lead_with_pipe(&go)?;
    let pid = leader.pid().as_raw();
    go.open(0)?;
    expect_eq("bytes", File::from(reader).read(&mut [0])?, 0)?;
    expect_eq("events", events(&mut listener)?, vec![])?;
    expect_eq("status", status_of(leader)?, 0)?;
    expect_eq("events", events(&mut listener)?, vec![end(pid, 0)])
}

fn files_may_be_closed_before_the_end_of_a_process_is_reported() -> TestResult {
    let mut listener = Listener::listen(mask::EXIT)?;
    run_first()?;
    let (process, reader) = fork_with_pipe(|| 0)?;
    let pid = process.pid();
    expect_eq("bytes", File::from(reader).read(&mut [0])?, 0)?;
    expect_eq("events", taken_about(&mut listener, pid)?, vec![])?;
    let messages = take_through_exit(&mut listener, pid.as_raw())?;
    expect_eq("events", kinds_of(&messages, pid.as_raw()), vec!["exit"])?;
    expect_eq("status", status_of(process)?, 0)
}

fn a_thread_may_be_joined_before_its_end_is_reported() -> TestResult {
    let mut listener = Listener::listen(mask::COMM | mask::EXIT)?;
    run_first()?;
    let tid = thread::spawn(own_tid)
        .join()
        .map_err(|_| Failure::new("the thread panicked"))?;
    mark(GOES_ON)?;
    let before = take_through_mark(&mut listener, own_task(), GOES_ON)?;
    expect_eq(
        "events before the join",
        kinds_of(&before, own_task().tgid),
        vec!["comm"],
    )?;
    listener.wait_for(
        "EXIT of the thread",
        |received| matches!(received.event, Event::Exit { task, .. } if task.pid == tid),
    )?;
    Ok(())
}
