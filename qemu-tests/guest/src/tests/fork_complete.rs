// SPDX-License-Identifier: GPL-2.0
//! When FORK is read, the child has all that it starts with (C47).
//!
//! The maker of the child and the reader share a CPU, and the reader preempts all other tasks there.
//! It runs as soon as FORK is queued, and looks before the maker goes on. If copy_process() does
//! something only after it reports the child, the reader finds it missing.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::{ptr, thread};

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::child::{self, Gate, pidfd};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::cgroup::{self, Group};
use crate::support::clone3::{CLONE_INTO_CGROUP, End, arguments, clone3};
use crate::support::perf::Records;
use crate::support::process::{status, succeed};
use crate::support::scheduling::{run_first, share_a_cpu};
use crate::test;
use crate::wire::{Event, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C47]).of([
    test!(a_child_is_in_its_parents_cgroup).stock_fails("the child is in the root still"),
    test!(a_thread_is_in_its_processs_cgroup).stock_fails("the thread is in the root still"),
    test!(a_child_of_clone_into_cgroup_is_in_that_cgroup)
        .stock_fails("the child is in the root still"),
    test!(an_oom_score_that_is_set_when_fork_is_read_stays)
        .stock_fails("the parent's is copied over it afterwards"),
    test!(perf_has_recorded_the_fork).stock_fails("it is recorded afterwards"),
    test!(the_pidfd_of_clone_pidfd_is_open),
]);

/// How many children are made in a test.
const ROUNDS: i32 = 5;

/// How long a child that shares its parent's memory waits for its end, in milliseconds.
const STAY_LIMIT: i32 = 10_000;

/// When the test looks.
#[derive(Clone, Copy, PartialEq)]
enum When {
    /// No child is made yet, so there is none to look at.
    Before,
    /// FORK was read, and the maker has not returned from its call.
    AtFork,
    /// The maker has returned.
    Afterwards,
}

/// Has a process make one child after the other, and looks at the maker and at the child. Each
/// child stays until the gate is opened.
fn follow(
    prepare: impl FnOnce() -> TestResult,
    make: impl Fn(&Gate) -> Result<End, Failure>,
    mut look: impl FnMut(When, i32, Task) -> TestResult,
) -> TestResult {
    let (ready, go) = (Gate::new()?, Gate::new()?);
    let (made, leave) = (Gate::new()?, Gate::new()?);
    share_a_cpu()?;
    let maker = child::fork(|| {
        status(|| {
            prepare()?;
            ready.open(0)?;
            while go.pass()? > 0 {
                let end = make(&leave)?;
                made.open(0)?;
                end()?;
            }
            Ok(())
        })
    })?;
    let pid = maker.pid().as_raw();
    ready.pass()?;
    let mut listener = Listener::listen(mask::FORK)?;
    // A reader that has to wait for a page of the program would let the maker go on.
    run_first()?;
    let mut round = || {
        look(When::Before, pid, Task::NONE)?;
        go.open(1)?;
        let fork = listener.wait_for("FORK", |received| match received.event {
            Event::Fork { parent, child } => parent.tgid == pid || child.tgid == pid,
            _ => false,
        })?;
        let child = fork.event.subject();
        let looked = look(When::AtFork, pid, child);
        made.pass()?;
        let looked = looked.and_then(|()| look(When::Afterwards, pid, child));
        leave.open(0)?;
        looked
    };
    let looked = (0..ROUNDS).try_for_each(|_| round());
    // Even after a failure, no process may stay in a cgroup.
    go.open(0)?;
    let ended = succeed(maker);
    looked.and(ended)
}

/// A process that waits until it may end.
fn fork(leave: &Gate) -> Result<End, Failure> {
    let child = child::fork(|| i32::from(leave.pass().is_err()))?;
    Ok(Box::new(|| succeed(child)))
}

/// A thread that waits until it may end.
fn start_thread(leave: &Gate) -> Result<End, Failure> {
    let leave = leave.duplicate()?;
    let thread = thread::spawn(move || leave.pass());
    Ok(Box::new(|| {
        thread.join().expect("waiting does not panic")?;
        Ok(())
    }))
}

/// A process in the caller's memory that waits until it may end.
fn share_memory(leave: &Gate) -> Result<End, Failure> {
    const STACK: usize = 64 << 10;
    let gate = ptr::without_provenance_mut(leave.as_fd().as_raw_fd() as usize);
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end.cast();
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: The function only makes system calls. Its stack is freed after its end, and its
    // argument is a number.
    let child = Errno::result(unsafe { libc::clone(pass_alone, top, flags, gate) })?;
    Ok(Box::new(move || {
        let ended = expect_end(Pid::from_raw(child));
        drop(stack);
        ended
    }))
}

/// Passes a gate with system calls only, as a process that shares another process's memory must.
/// Returns 0 on success.
extern "C" fn pass_alone(gate: *mut libc::c_void) -> libc::c_int {
    let gate = gate.addr() as RawFd;
    let mut number = [0u8; 4];
    let mut readable = libc::pollfd {
        fd: gate,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: The call writes to the one structure.
    let ready = unsafe { libc::poll(&raw mut readable, 1, STAY_LIMIT) };
    if ready != 1 {
        return 1;
    }
    // SAFETY: The call writes at most as many bytes as the array has.
    let length = unsafe { libc::read(gate, number.as_mut_ptr().cast(), number.len()) };
    i32::from(length != number.len() as isize)
}

fn expect_end(child: Pid) -> TestResult {
    let ended = waitpid(child, None)?;
    expect_eq("the child's end", ended, WaitStatus::Exited(child, 0))
}

/// Expects a process to be in a group, by all interfaces that show it.
fn expect_in(group: &Group, pid: i32) -> TestResult {
    let id = cgroup::id_of(&pidfd(Pid::from_raw(pid))?)?;
    expect_eq("id of the group", id, group.id()?)?;
    let line = cgroup::line_of(&pid.to_string())?;
    expect_eq("line", line, Some(group.line()))?;
    let processes = group.processes()?;
    expect(
        processes.contains(&pid),
        format!("{pid} in the group, got {processes:?}"),
    )
}

fn a_child_is_in_its_parents_cgroup() -> TestResult {
    let group = Group::new()?;
    follow(
        || Ok(group.enter()?),
        fork,
        |when, _, child| match when {
            When::Before => Ok(()),
            _ => expect_in(&group, child.tgid),
        },
    )
}

fn a_thread_is_in_its_processs_cgroup() -> TestResult {
    let group = Group::new()?;
    follow(
        || Ok(group.enter()?),
        start_thread,
        |when, maker, child| {
            if when == When::Before {
                return Ok(());
            }
            expect_eq("process of the thread", child.tgid, maker)?;
            let line = cgroup::line_of(&format!("{maker}/task/{}", child.pid))?;
            expect_eq("line", line, Some(group.line()))
        },
    )
}

fn a_child_of_clone_into_cgroup_is_in_that_cgroup() -> TestResult {
    let group = Group::new()?;
    let directory = group.open()?;
    let make = |leave: &Gate| {
        let mut arguments = arguments(CLONE_INTO_CGROUP);
        arguments.cgroup = directory.as_raw_fd() as u64;
        clone3(&arguments, leave)
    };
    follow(
        || Ok(()),
        make,
        |when, _, child| match when {
            When::Before => Ok(()),
            // The call still holds the lock of all cgroups, which a read of the file in /proc takes.
            // So the id is read first.
            When::AtFork => {
                let id = cgroup::id_of(&pidfd(Pid::from_raw(child.pid))?)?;
                expect_eq("id of the group", id, group.id()?)?;
                expect_in(&group, child.tgid)
            }
            When::Afterwards => expect_in(&group, child.tgid),
        },
    )
}

fn an_oom_score_that_is_set_when_fork_is_read_stays() -> TestResult {
    let file = |pid: i32| format!("/proc/{pid}/oom_score_adj");
    let score = |pid: i32| -> Result<i32, Failure> {
        Ok(fs::read_to_string(file(pid))?.trim_end().parse()?)
    };
    let mut wanted = 100;
    follow(
        || Ok(()),
        share_memory,
        |when, maker, child| match when {
            When::Before => {
                wanted += 1;
                Ok(())
            }
            When::AtFork => Ok(fs::write(file(child.tgid), wanted.to_string())?),
            // Processes that share memory share the score.
            When::Afterwards => expect_eq(
                "scores of parent and child",
                (score(maker)?, score(child.tgid)?),
                (wanted, wanted),
            ),
        },
    )
}

fn perf_has_recorded_the_fork() -> TestResult {
    let mut records = None;
    follow(
        || Ok(()),
        fork,
        |when, maker, child| match (when, &mut records) {
            (When::Before, None) => {
                records = Some(Records::of(Pid::from_raw(maker))?);
                Ok(())
            }
            (When::AtFork, Some(records)) => {
                expect_eq("recorded children", records.forks(), vec![child.pid])
            }
            _ => Ok(()),
        },
    )
}

fn the_pidfd_of_clone_pidfd_is_open() -> TestResult {
    let make = |leave: &Gate| {
        let mut pidfd: RawFd = -1;
        let mut arguments = arguments(libc::CLONE_PIDFD as u64);
        arguments.pidfd = (&raw mut pidfd) as u64;
        clone3(&arguments, leave)
    };
    follow(
        || Ok(()),
        make,
        |when, maker, child| match when {
            When::Before => Ok(()),
            _ => expect_pidfd(maker, child.pid),
        },
    )
}

/// Expects a process to have a pidfd of another process.
fn expect_pidfd(owner: i32, pid: i32) -> TestResult {
    let line = format!("Pid:\t{pid}");
    for entry in fs::read_dir(format!("/proc/{owner}/fdinfo"))? {
        let info = fs::read_to_string(entry?.path())?;
        if info.lines().any(|other| other == line) {
            return Ok(());
        }
    }
    Err(Failure::new(format!("{owner} has no pidfd of {pid}")))
}
