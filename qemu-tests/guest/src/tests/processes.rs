// SPDX-License-Identifier: GPL-2.0
//! Forks and exits of processes only, if the listener asks for it (C51): a listener with
//! `PROC_CN_LISTEN_PROCESSES` gets FORK when a process begins, and EXIT when all its threads have
//! ended. See also the `trees` command.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, execv, setsid};

use crate::child::{self, Child, Gate, own_tid};
use crate::cpus::{cpus, pin};
use crate::debugfs::Listing;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{EVENT_LIMIT, Listener};
use crate::loads::trees;
use crate::support::clone3::{arguments, clone3};
use crate::support::container::{ALL, Container, Handover};
use crate::support::directory::Directory;
use crate::support::exec_variants::FirstThread;
use crate::support::fault_injection::has_checkers;
use crate::support::polling::poll_until_done;
use crate::support::process::{pause_for_ever, status, succeed};
use crate::support::scenario::{
    bodies, events, events_about, events_of, exit, is_exit, mark, own_task, take_through_exit,
};
use crate::support::sequence_numbers::SequenceNumbers;
use crate::support::sessions::{CORE_FLAG, status_of};
use crate::support::threads::{await_zombie, end_all, end_thread, without_first_thread};
use crate::support::tracer::trace;
use crate::test;
use crate::timeouts;
use crate::wire::{BATCH, Event, LISTEN, PROCESSES, Received, Task, mask, proc_listen};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(UNKNOWN_TO_STOCK)
    .covers(&[Line::C51])
    .of([
        test!(each_new_process_is_reported_however_it_is_made).covers(&[Line::C7]),
        test!(threads_are_reported_neither_when_they_begin_nor_when_they_end),
        test!(an_event_that_is_not_sent_takes_no_number).covers(&[Line::C5]),
        test!(a_thread_that_ends_its_process_ends_it_once),
        test!(a_process_whose_first_thread_ended_long_before_ends_once),
        test!(an_exec_by_another_thread_ends_nothing),
        test!(a_process_that_is_killed_ends_once),
        test!(a_process_ends_with_the_signal_of_another_thread),
        test!(a_process_that_dumps_core_ends_with_the_status_that_says_so).covers(&[Line::C14]),
        test!(failures_are_those_of_processes).covers(&[Line::C16]),
        test!(the_end_of_a_pid_namespace_ends_each_process_in_it_once)
            .limit(Duration::from_secs(20))
            .covers(&[Line::C21]),
        test!(other_events_are_reported_for_threads_too),
        test!(listening_again_changes_whether_threads_are_reported).covers(&[Line::C18, Line::C50]),
        test!(listening_again_loses_no_process)
            .limit(Duration::from_secs(60))
            .covers(&[Line::C5, Line::C18]),
        test!(thousands_of_processes_begin_and_end_once)
            .limit(Duration::from_secs(120))
            .covers(&[Line::C5, Line::C54]),
    ]);

const UNKNOWN_TO_STOCK: &str = "every listener gets the forks and exits of threads";

/// The events in the life of a process.
const LIFE: u32 = mask::FORK | mask::EXEC | mask::EXIT;

/// The events that begin and end a process.
const ENDS: u32 = mask::FORK | mask::EXIT;

fn listen(mask: u32) -> Result<Listener, Failure> {
    Ok(Listener::listen_with(mask, PROCESSES)?)
}

/// Takes the events about a process, from its begin to its end, and then until another process has
/// begun and ended: a duplicate event has arrived by then.
fn life_of(listener: &mut Listener, pid: i32) -> Result<Vec<Event>, Failure> {
    let mut messages = take_through_exit(listener, pid)?;
    let marker = child::fork(|| 0)?;
    messages.extend(take_through_exit(listener, marker.pid().as_raw())?);
    // This fails if the kernel has reaped it.
    let _ = marker.wait();
    Ok(events_about(&messages, pid))
}

/// The life of this process's child, with the events between its begin and its end.
fn life(pid: i32, between: &[Event], code: u32) -> Vec<Event> {
    let (parent, child) = (own_task(), Task::leader(pid));
    let begin = Event::Fork { parent, child };
    [&[begin], between, &[exit(child, code, parent)]].concat()
}

/// Waits for a process, which has to end with this status. Expects one event for its begin, one for
/// its end, and only these events in between.
#[track_caller]
fn expect_life(
    listener: &mut Listener,
    process: Child,
    between: &[Event],
    code: u32,
) -> TestResult {
    let pid = process.pid().as_raw();
    expect_eq("status", status_of(process)?, code)?;
    let reported = life_of(listener, pid)?;
    expect_eq("events", reported, life(pid, between, code))
}

fn each_new_process_is_reported_however_it_is_made() -> TestResult {
    let mut listener = listen(mask::FORK | mask::EXIT)?;
    let made = Gate::new()?;
    let maker = child::fork(|| status(|| make_in_all_ways(&made)))?;
    let (parent, own) = (Task::leader(maker.pid().as_raw()), own_task());
    succeed(maker)?;
    let messages = take_through_exit(&mut listener, parent.pid)?;
    let mut forks = events_of(&messages, mask::FORK, parent.pid);
    let mut expected = vec![Event::Fork {
        parent: own,
        child: parent,
    }];
    for _ in 0..WAYS {
        // A thread of the maker, or 0 if this process is the parent.
        let thread = made.pass()?;
        let child = Task::leader(made.pass()?);
        let parent = match thread {
            0 => own,
            pid => Task { pid, ..parent },
        };
        expected.push(Event::Fork { parent, child });
        forks.extend(events_of(&messages, mask::FORK, child.tgid));
    }
    expect_eq("forks", forks, expected)?;
    // The sibling is a child of this process, which has not waited for it.
    waitpid(None, None)?;
    Ok(())
}

/// How many processes [`make_in_all_ways`] makes.
const WAYS: usize = 9;

/// Makes processes one after the other. For each, sends the thread that is its parent, or 0 if that
/// is this process's parent, and then its number.
fn make_in_all_ways(made: &Gate) -> TestResult {
    let send = |parent: i32, pid: i32| -> TestResult {
        made.open(parent)?;
        Ok(made.open(pid)?)
    };
    let clone = |flags: i32| -> Result<i32, Failure> {
        let child = child::clone_with(flags, || 0)?;
        let pid = child.pid().as_raw();
        expect_eq("status", status_of(child)?, 0)?;
        Ok(pid)
    };
    let fork = child::fork(|| 0)?;
    let pid = fork.pid().as_raw();
    succeed(fork)?;
    send(own_tid(), pid)?;
    for flags in [
        libc::CLONE_VFORK | libc::SIGCHLD,
        libc::CLONE_FILES | libc::CLONE_FS | libc::SIGCHLD,
        libc::SIGURG,
        0,
    ] {
        send(own_tid(), clone(flags)?)?;
    }
    let mut pid: libc::pid_t = 0;
    let mut arguments = arguments(libc::CLONE_PARENT_SETTID as u64);
    arguments.parent_tid = (&raw mut pid) as u64;
    let leave = Gate::new()?;
    let end = clone3(&arguments, &leave)?;
    leave.open(0)?;
    end()?;
    send(own_tid(), pid)?;
    // It uses its parent's memory until it executes the program, like a child of vfork(2).
    let mut spawned = Command::new("/bin/true").spawn()?;
    send(own_tid(), spawned.id() as i32)?;
    spawned.wait()?;
    let by_another = thread::spawn(move || -> Result<_, Failure> {
        // The child has its own copy of the stack, and only ends.
        let child = child::clone_with(libc::SIGCHLD, || 0)?;
        let pid = child.pid().as_raw();
        succeed(child)?;
        Ok((own_tid(), pid))
    });
    let (thread, pid) = by_another.join().expect("cloning does not panic")?;
    send(thread, pid)?;
    let sibling = child::clone_with(libc::CLONE_PARENT | libc::SIGCHLD, || 0)?;
    send(0, sibling.into_pid().as_raw())
}

/// Starts a thread that starts another one, and waits for both.
fn run_threads() {
    let thread = thread::spawn(|| thread::spawn(|| {}).join());
    let joined = thread.join().expect("joining does not panic");
    joined.expect("an empty function does not panic");
}

fn threads_are_reported_neither_when_they_begin_nor_when_they_end() -> TestResult {
    let mut listener = listen(LIFE)?;
    let process = child::fork(|| {
        for _ in 0..5 {
            run_threads();
        }
        0
    })?;
    expect_life(&mut listener, process, &[], 0)
}

fn an_event_that_is_not_sent_takes_no_number() -> TestResult {
    let mut listener = listen(ENDS | mask::COMM)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let process = child::fork(|| {
        status(|| {
            for cpu in cpus()?.repeat(3) {
                pin(cpu)?;
                mark("before threads")?;
                run_threads();
                mark("after threads")?;
            }
            Ok(())
        })
    })?;
    let pid = process.pid().as_raw();
    let messages = take_through_exit(&mut listener, pid)?;
    succeed(process)?;
    let marks = events_of(&messages, mask::COMM, pid);
    expect_eq("marks", marks.len(), 6 * cpus()?.len())?;
    expect_eq("missing numbers", first.missing(&messages)?, 0)
}

/// Status of a first thread that ends before others.
const ENDED_FIRST: i32 = 3;

/// Starts a process in which one thread calls a function, and all others wait for ever. The first
/// thread may have ended before.
fn start(first: FirstThread, function: impl FnOnce() -> i32 + Send) -> nix::Result<Child> {
    if first == FirstThread::EndedBefore {
        return without_first_thread(ENDED_FIRST, function);
    }
    child::fork(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| pause_for_ever());
            }
            scope.spawn(move || end_thread(function()));
            pause_for_ever()
        })
    })
}

fn a_thread_that_ends_its_process_ends_it_once() -> TestResult {
    let mut listener = listen(LIFE)?;
    let process = start(FirstThread::Waits, || end_all(7))?;
    expect_life(&mut listener, process, &[], 7 << 8)
}

fn a_process_whose_first_thread_ended_long_before_ends_once() -> TestResult {
    let mut listener = listen(LIFE)?;
    // The last thread ends itself only, or all threads.
    let ways: [(fn() -> i32, u32); 2] = [(|| 4, 4 << 8), (|| end_all(7), 7 << 8)];
    for (way, code) in ways {
        expect_life(
            &mut listener,
            without_first_thread(ENDED_FIRST, way)?,
            &[],
            code,
        )?;
    }
    Ok(())
}

/// Starts a process in which a thread other than the first executes a program that ends with 5.
fn executing(first: FirstThread) -> nix::Result<Child> {
    child::fork(|| {
        let both = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let failed = status(|| {
                    match first {
                        FirstThread::EndedBefore => await_zombie("self")?,
                        FirstThread::Waits | FirstThread::EndsMeanwhile => _ = both.wait(),
                    }
                    execv(c"/bin/sh", &[c"sh", c"-c", c"exit 5"])?;
                    Ok(())
                });
                end_all(failed)
            });
            match first {
                FirstThread::EndedBefore => end_thread(ENDED_FIRST),
                FirstThread::EndsMeanwhile => {
                    both.wait();
                    end_thread(ENDED_FIRST)
                }
                FirstThread::Waits => {
                    both.wait();
                    pause_for_ever()
                }
            }
        })
    })
}

fn an_exec_by_another_thread_ends_nothing() -> TestResult {
    let mut listener = listen(LIFE)?;
    for first in [
        FirstThread::Waits,
        FirstThread::EndedBefore,
        FirstThread::EndsMeanwhile,
    ] {
        let process = executing(first)?;
        let task = Task::leader(process.pid().as_raw());
        expect_life(&mut listener, process, &[Event::Exec { task }], 5 << 8)
            .map_err(|failure| failure.about(format!("when the first thread {first:?}")))?;
    }
    Ok(())
}

fn a_process_that_is_killed_ends_once() -> TestResult {
    let mut listener = listen(LIFE)?;
    let ready = Gate::new()?;
    for first in [FirstThread::Waits, FirstThread::EndedBefore] {
        let process = start(first, || match ready.open(0) {
            Ok(()) => pause_for_ever(),
            Err(_) => 1,
        })?;
        ready.pass()?;
        kill(process.pid(), Signal::SIGKILL)?;
        expect_life(&mut listener, process, &[], Signal::SIGKILL as u32)
            .map_err(|failure| failure.about(format!("when the first thread {first:?}")))?;
    }
    Ok(())
}

fn a_process_ends_with_the_signal_of_another_thread() -> TestResult {
    let mut listener = listen(LIFE)?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGQUIT] {
        let process = without_first_thread(ENDED_FIRST, || {
            let prepared = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            // Does not return.
            i32::from(prepared.and_then(|()| raise(signal)).is_err())
        })?;
        expect_life(&mut listener, process, &[], signal as u32)
            .map_err(|failure| failure.about(format!("with {signal}")))?;
    }
    Ok(())
}

fn a_process_that_dumps_core_ends_with_the_status_that_says_so() -> TestResult {
    let directory = Directory::new("core")?;
    let mut listener = listen(LIFE | mask::COREDUMP)?;
    let abort = || {
        let prepared = setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY).is_ok()
            && env::set_current_dir(directory.path()).is_ok()
            && mark("dumps core").is_ok();
        if prepared {
            // Does not return.
            let _ = raise(Signal::SIGABRT);
        }
        1
    };
    for first in [FirstThread::Waits, FirstThread::EndedBefore] {
        let process = start(first, abort)?;
        let pid = process.pid().as_raw();
        let code = status_of(process)?;
        expect_eq("status", code, Signal::SIGABRT as u32 | CORE_FLAG)?;
        let mut reported = life_of(&mut listener, pid)?;
        // No FORK reported the number of the thread that dumps core.
        let dumps = reported
            .iter()
            .position(|event| event.bit() == mask::COREDUMP);
        let dump = dumps.map(|index| reported.remove(index).subject());
        expect(
            dump.is_some_and(|task| task.tgid == pid && task.pid != pid),
            format!("COREDUMP of another thread, got {dump:?}"),
        )?;
        expect_eq("events", reported, life(pid, &[], code))?;
    }
    Ok(())
}

fn failures_are_those_of_processes() -> TestResult {
    let mut failures = listen(mask::NONZERO_EXIT)?;
    // A thread fails, and its process does not.
    let threads = child::fork(|| {
        thread::scope(|scope| {
            scope.spawn(|| end_thread(9));
            end_all(status(await_only_thread))
        })
    })?;
    let first = without_first_thread(ENDED_FIRST, || 0)?;
    let pids = [threads.pid().as_raw(), first.pid().as_raw()];
    expect_eq("status", status_of(threads)?, 0)?;
    expect_eq("status", status_of(first)?, 0)?;
    // Its last thread fails, and its first did not.
    let fails = without_first_thread(0, || 4)?;
    let pid = fails.pid().as_raw();
    expect_eq("status", status_of(fails)?, 4 << 8)?;
    let mut messages = take_through_exit(&mut failures, pid)?;
    let marker = child::fork(|| 1)?;
    messages.extend(take_through_exit(&mut failures, marker.pid().as_raw())?);
    expect_eq("status", status_of(marker)?, 1 << 8)?;
    let reported: Vec<_> = messages
        .iter()
        .filter_map(|received| match received.event {
            Event::Exit { task, code, .. } => Some((task, code)),
            _ => None,
        })
        .filter(|(task, _)| task.tgid == pid || pids.contains(&task.tgid))
        .collect();
    expect_eq("failures", reported, vec![(Task::leader(pid), 4 << 8)])
}

/// Waits until the calling thread is the only one of its process.
fn await_only_thread() -> TestResult {
    poll_until_done(EVENT_LIMIT, || {
        let others = fs::read_dir("/proc/self/task")?.count() - 1;
        Ok((others > 0).then(|| "the other threads to end".to_owned()))
    })
}

fn the_end_of_a_pid_namespace_ends_each_process_in_it_once() -> TestResult {
    for first in [FirstThread::Waits, FirstThread::EndedBefore] {
        expect_end_of_namespace(first).map_err(|failure| {
            failure.about(format!(
                "when the first thread of the first process {first:?}"
            ))
        })?;
    }
    Ok(())
}

/// Kills the first process of a pid namespace whose other processes have several threads.
fn expect_end_of_namespace(first: FirstThread) -> TestResult {
    /// Processes besides the first one.
    const OTHERS: usize = 3;
    let handover = Handover::new()?;
    let (ready, go, settled) = (Gate::new()?, Gate::new()?, Gate::new()?);
    let mut outside = listen(mask::EXIT)?;
    let container = Container::start(ALL, || {
        handover.listen(&proc_listen(LISTEN, mask::EXIT, PROCESSES))?;
        for _ in 0..OTHERS {
            let other = start(FirstThread::Waits, || pause_for_ever())?;
            ready.open(other.into_pid().as_raw())?;
        }
        go.pass()?;
        if first == FirstThread::Waits {
            settled.open(0)?;
            pause_for_ever();
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                status(|| {
                    await_zombie("self")?;
                    settled.open(0)?;
                    pause_for_ever()
                })
            });
            end_thread(0)
        })
    })?;
    let mut inside = handover.receive_from(&container)?;
    let mut numbers = vec![(1, container.task().pid)];
    for _ in 0..OTHERS {
        let inner = ready.pass()?;
        numbers.push((inner, container.outer(inner)?));
    }
    go.open(0)?;
    settled.pass()?;
    container.kill()?;
    let (inner, outer): (BTreeSet<_>, BTreeSet<_>) = numbers.into_iter().unzip();
    let messages = take_through_exits(&mut inside, &inner)?;
    expect_killed("inside", &messages, &inner, |_| true)?;
    expect_eq("more ends inside", events(&mut inside)?, vec![])?;
    let messages = take_through_exits(&mut outside, &outer)?;
    let was_inside = |task: &Task| outer.contains(&task.tgid);
    expect_killed("outside", &messages, &outer, was_inside)?;
    let more = events(&mut outside)?;
    let more = more
        .into_iter()
        .filter(|event| was_inside(&event.subject()));
    expect_eq("more ends outside", more.collect(), vec![])
}

/// Takes all events until these processes have ended.
fn take_through_exits(
    listener: &mut Listener,
    pids: &BTreeSet<i32>,
) -> Result<Vec<Received>, Failure> {
    let mut messages = Vec::new();
    for pid in pids {
        if !messages.iter().any(|received| is_exit(received, *pid)) {
            messages.extend(take_through_exit(listener, *pid)?);
        }
    }
    Ok(messages)
}

/// Expects exactly one EXIT of each of these processes, with the status of SIGKILL.
#[track_caller]
fn expect_killed(
    place: &str,
    messages: &[Received],
    pids: &BTreeSet<i32>,
    was_inside: impl Fn(&Task) -> bool,
) -> TestResult {
    let ends = messages.iter().filter_map(|received| match received.event {
        Event::Exit { task, code, .. } if was_inside(&task) => Some((task.pid, task.tgid, code)),
        _ => None,
    });
    let mut ends: Vec<_> = ends.collect();
    ends.sort_unstable();
    let code = Signal::SIGKILL as u32;
    let expected = pids.iter().map(|pid| (*pid, *pid, code)).collect();
    expect_eq(&format!("{place}: ends (pid, tgid, code)"), ends, expected)
}

/// Lets a thread that is not the first raise events of all kinds that it can. Returns the pids of its
/// process and of itself.
fn raise_by_thread() -> Result<(i32, i32), Failure> {
    let (ready, go) = (Gate::new()?, Gate::new()?);
    let process = child::fork(|| {
        let result = setsid().map_err(Failure::from).and_then(|_| {
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            thread::scope(|scope| {
                scope.spawn(|| {
                    status(|| {
                        ready.open(own_tid())?;
                        go.pass()?;
                        run_threads();
                        mark("a thread")?;
                        change_own_ids()?;
                        Ok(raise(Signal::SIGABRT)?)
                    })
                });
            });
            Ok(())
        });
        eprintln!("in the process: {result:?}");
        1
    })?;
    let thread = Pid::from_raw(ready.pass()?);
    trace(thread)?;
    go.open(0)?;
    let pid = process.pid().as_raw();
    expect_eq("status", status_of(process)?, Signal::SIGABRT as u32)?;
    Ok((pid, thread.as_raw()))
}

/// Changes the ids of the calling thread only. The functions of libc change those of all threads.
fn change_own_ids() -> TestResult {
    const OTHER: libc::uid_t = 4242;
    const SAME: libc::uid_t = libc::uid_t::MAX;
    for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
        // SAFETY: The calls take only numbers.
        Errno::result(unsafe { libc::syscall(call, SAME, OTHER, SAME) })?;
    }
    Ok(())
}

/// Whether an event is the begin or the end of a thread, and not of its process.
fn is_of_thread(event: &Event) -> bool {
    let Task { pid, tgid } = event.subject();
    event.bit() & ENDS != 0 && pid != tgid
}

fn other_events_are_reported_for_threads_too() -> TestResult {
    let mut processes = listen(mask::EVERYTHING)?;
    let mut all = Listener::listen(mask::EVERYTHING)?;
    let (raising, thread) = raise_by_thread()?;
    let executing = executing(FirstThread::Waits)?;
    let pids = BTreeSet::from([raising, executing.pid().as_raw()]);
    expect_eq("status", status_of(executing)?, 5 << 8)?;
    let mut taken = Vec::new();
    for listener in [&mut all, &mut processes] {
        let mut messages = take_through_exits(listener, &pids)?;
        messages.extend(listener.take_queued()?);
        messages.retain(|received| pids.contains(&received.event.subject().tgid));
        // All messages are sorted together, so that those of different CPUs are in one order.
        messages.sort_by_key(Received::timestamp_ns);
        taken.push(messages);
    }
    let (all, processes) = (&taken[0], &taken[1]);
    let begun_or_ended = all.iter().filter(|received| is_of_thread(&received.event));
    // Three threads of one process, and one of the other.
    expect_eq("begins and ends of threads", begun_or_ended.count(), 8)?;
    let own = processes.iter().map(|received| received.event);
    let own = own.filter(|event| event.subject().pid == thread);
    let kinds = own.fold(0, |kinds, event| kinds | event.bit());
    let expected = mask::PTRACE | mask::COMM | mask::GID | mask::UID | mask::COREDUMP;
    expect_eq("kinds of events of the thread", kinds, expected)?;
    let mut expected = all.clone();
    expected.retain(|received| !is_of_thread(&received.event));
    expect_eq("events", bodies(processes), bodies(&expected))
}

/// The kind of an event, and whether it is the begin or the end of a thread.
fn kind_and_thread(event: &Event) -> (&'static str, bool) {
    (event.kind(), is_of_thread(event))
}

fn listening_again_changes_whether_threads_are_reported() -> TestResult {
    let mut listener = Listener::listen_with(ENDS, 0)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let mut all = Vec::new();
    for flags in [
        0,
        PROCESSES,
        0,
        PROCESSES | BATCH,
        BATCH,
        PROCESSES,
        PROCESSES,
    ] {
        listener.request(&proc_listen(LISTEN, ENDS, flags))?;
        let line = Listing::of(listener.port_id()?)?;
        expect_eq("flags", line.flags, flags)?;
        let process = child::fork(|| {
            let joined = thread::spawn(|| {}).join();
            joined.expect("an empty function does not panic");
            // The join may return before the thread's EXIT. The EXIT of a process comes after those of
            // all its threads.
            0
        })?;
        let pid = process.pid().as_raw();
        let messages = take_through_exit(&mut listener, pid)?;
        succeed(process)?;
        let reported = events_about(&messages, pid);
        let reported: Vec<_> = reported.iter().map(kind_and_thread).collect();
        let mut expected = vec![("fork", false), ("exit", false)];
        if flags & PROCESSES == 0 {
            expected.splice(1..1, [("fork", true), ("exit", true)]);
        }
        expect_eq(&format!("events with flags {flags}"), reported, expected)?;
        all.extend(messages);
    }
    all.retain(|received| received.event.bit() != 0);
    expect_eq("missing numbers", first.missing(&all)?, 0)
}

fn listening_again_loses_no_process() -> TestResult {
    const CHILDREN: usize = 400;
    let mut listener = Listener::listen_with(ENDS, 0)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let maker = child::fork(|| {
        status(|| {
            for _ in 0..CHILDREN {
                succeed(child::fork(|| {
                    run_threads();
                    0
                })?)?;
            }
            Ok(())
        })
    })?;
    let end = child::pidfd(maker.pid())?;
    let mut changes = 0;
    let mut messages = Vec::new();
    while !child::has_ended(&end, Duration::ZERO)? {
        changes += 1;
        let flags = [PROCESSES, 0, PROCESSES | BATCH, BATCH][changes % 4];
        listener.request(&proc_listen(LISTEN, ENDS, flags))?;
        messages.extend(listener.take_queued()?);
    }
    println!("{changes} changes");
    let pid = maker.pid().as_raw();
    succeed(maker)?;
    let of_children = |messages: &[Received], bit: u32| -> Vec<i32> {
        let events = messages.iter().filter_map(|received| match received.event {
            Event::Fork { parent, child } if parent.tgid == pid => Some((mask::FORK, child)),
            Event::Exit { task, parent, .. } if parent.tgid == pid => Some((mask::EXIT, task)),
            _ => None,
        });
        let events = events.filter(|(kind, task)| *kind == bit && task.pid == task.tgid);
        let mut pids: Vec<_> = events.map(|(_, task)| task.pid).collect();
        pids.sort_unstable();
        pids
    };
    // The last EXITs may arrive after the maker has waited for the processes.
    let deadline = timeouts::deadline(EVENT_LIMIT);
    while of_children(&messages, mask::EXIT).len() < CHILDREN && Instant::now() < deadline {
        messages.extend(listener.receive(deadline)?);
    }
    messages.extend(listener.take_queued()?);
    messages.retain(|received| received.event.bit() != 0);
    let begun = of_children(&messages, mask::FORK);
    expect_eq("processes that began", begun.len(), CHILDREN)?;
    let ended = of_children(&messages, mask::EXIT);
    expect_eq("processes that ended", ended, begun)?;
    expect_eq("missing numbers", first.missing(&messages)?, 0)
}

/// How many trees of processes there are at most.
const TREES: usize = 10_000;

/// The time after which no more trees are begun.
const GROWTH: Duration = Duration::from_secs(40);

fn thousands_of_processes_begin_and_end_once() -> TestResult {
    let trees = if has_checkers() { TREES / 10 } else { TREES };
    trees::grow(trees, GROWTH, 1)
}
