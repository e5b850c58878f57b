// SPDX-License-Identifier: GPL-2.0
//! Which processes the state reports (C55): all that live and that the listener can see, whatever happens
//! to their threads. For a listener in a cgroup, these are the processes in the cgroup and below.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, execv, setsid};

use crate::child::{self, Gate, own_pid, own_tid, pidfd};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{EVENT_LIMIT, Listener};
use crate::proc_stat::Stat;
use crate::support::cgroup::{Cgroup, Group, root_of};
use crate::support::container::{Container, Handover, PID, keep_mounts, mount_own_proc};
use crate::support::idle_processes::{start_idle, start_many_idle};
use crate::support::process::{pause_for_ever, status};
use crate::support::procfs::{events_of_proc, identity_of, in_container};
use crate::support::scenario::own_task;
use crate::support::state_dump::{RARE, listen, listen_in, state};
use crate::support::stock::NO_STATE;
use crate::support::threads::{await_zombie, reap, without_first_thread};
use crate::test;
use crate::timeouts;
use crate::wire::{CGROUP, Event, IDENTITY, Task, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_STATE)
    .covers(&[Line::C55])
    .of([
        test!(the_processes_of_a_cgroup_and_below_are_reported).covers(&[Line::C53]),
        test!(a_container_gets_its_own_processes_alone).covers(&[Line::C21, Line::C22]),
        test!(a_container_in_a_container_is_reported_to_both).covers(&[Line::C21, Line::C22]),
        test!(the_numbers_are_the_listeners_if_another_process_asks).covers(&[Line::C21]),
        test!(a_process_that_ended_is_not_reported_and_its_parent_is),
        test!(threads_are_not_reported),
        test!(a_process_without_its_first_thread_is_reported),
        test!(a_process_with_a_traced_thread_is_reported_until_that_is_reaped),
        test!(a_process_that_execs_by_a_thread_is_in_each_state).limit(Duration::from_secs(60)),
    ]);

fn the_processes_of_a_cgroup_and_below_are_reported() -> TestResult {
    let group = Group::new()?;
    let below = Cgroup::within(&group.directory(), "below")?;
    let (inside, deep, outside) = (
        start_idle(|| Ok(()))?,
        start_idle(|| Ok(()))?,
        start_idle(|| Ok(()))?,
    );
    let procs = group.directory().join("cgroup.procs");
    let listener = listen_in(RARE, CGROUP, group.id()?)?;
    let reported = || -> Result<Vec<i32>, Failure> { Ok(state(&listener)?.pids()) };
    let mut seen = vec![reported()?];
    fs::write(&procs, inside.to_string())?;
    below.add(deep)?;
    seen.push(reported()?);
    // What counts is the cgroup of a process when the state is sent.
    fs::write(&procs, outside.to_string())?;
    fs::write(root_of(&group), inside.to_string())?;
    seen.push(reported()?);
    for pid in [deep, outside] {
        fs::write(root_of(&group), pid.to_string())?;
    }
    seen.push(reported()?);
    let mut expected = vec![vec![], vec![inside, deep], vec![deep, outside], vec![]];
    expected.iter_mut().for_each(|pids| pids.sort_unstable());
    expect_eq("processes of the cgroup", seen, expected)
}

fn a_container_gets_its_own_processes_alone() -> TestResult {
    let (ready, go, visiting) = (Gate::new()?, Gate::new()?, Gate::new()?);
    // There are more processes outside than in the container.
    start_many_idle(20)?;
    let container = Container::start(PID | CloneFlags::CLONE_NEWNS, || {
        keep_mounts()?;
        mount_own_proc()?;
        start_idle(|| Ok(setsid().map(drop)?))?;
        start_idle(|| Ok(()))?;
        ready.open(0)?;
        let visitor = go.pass()?;
        let dump = state(&listen(RARE, IDENTITY)?)?;
        expect_eq("processes", dump.events(), events_of_proc()?)?;
        expect_eq("numbers", dump.pids(), vec![1, 2, 3, visitor])?;
        // Their parents are outside, and so are their sessions and groups.
        for pid in [1, visitor] {
            let expected = Event::Process {
                task: Task::leader(pid),
                parent: Task::NONE,
                session: 0,
                process_group: 0,
            };
            expect_eq("the process from outside", dump.event(pid)?, expected)?;
            expect_eq("number of its parent", dump.identity(pid)?.other, 0)?;
        }
        Ok(())
    })?;
    ready.pass()?;
    let visitor = container.spawn_in(PID, || {
        visiting.open(own_pid())?;
        pause_for_ever()
    })?;
    go.open(visiting.pass()?)?;
    container.finish()?;
    visitor.wait()?;
    Ok(())
}

fn a_container_in_a_container_is_reported_to_both() -> TestResult {
    in_container(|| {
        let (ready, go) = (Gate::new()?, Gate::new()?);
        let inner = Container::start(PID, || {
            start_idle(|| Ok(()))?;
            ready.open(0)?;
            go.pass()?;
            let dump = state(&listen(RARE, 0)?)?;
            let process = |pid, parent| Event::Process {
                task: Task::leader(pid),
                parent: Task::leader(parent),
                session: 0,
                process_group: 0,
            };
            let expected = vec![process(1, 0), process(2, 1)];
            expect_eq("inside", dump.events(), expected)
        })?;
        ready.pass()?;
        let dump = state(&listen(RARE, 0)?)?;
        expect_eq("outside", dump.events(), events_of_proc()?)?;
        let (first, second) = (inner.task().pid, inner.outer(2)?);
        expect_eq("numbers outside", dump.pids(), vec![1, first, second])?;
        go.open(0)?;
        inner.finish()
    })
}

fn the_numbers_are_the_listeners_if_another_process_asks() -> TestResult {
    let handover = Handover::new()?;
    let container = Container::idle(PID)?;
    container.run(|| {
        let listener = listen(RARE, 0)?;
        handover.send(&listener)
    })?;
    let inside = handover.receive()?;
    expect_eq("asked outside", state(&inside)?.pids(), vec![1])?;
    let outside = listen(RARE, 0)?;
    container.run(|| {
        let dump = state(&outside)?;
        let first = container.task().pid;
        expect(dump.has(first), format!("{first}, asked inside"))?;
        expect(dump.has(2), "kernel threads, asked inside")
    })
}

/// Waits until all threads of a child have ended, and does not reap it.
fn await_end(pid: i32) -> TestResult {
    let end = pidfd(Pid::from_raw(pid))?;
    let ended = child::has_ended(&end, timeouts::scaled(EVENT_LIMIT))?;
    expect(ended, format!("{pid} to end"))
}

fn a_process_that_ended_is_not_reported_and_its_parent_is() -> TestResult {
    let listener = listen(RARE, 0)?;
    let (made, go) = (Gate::new()?, Gate::new()?);
    // Its parent does not reap it.
    let parent = start_idle(|| {
        let process = child::fork(|| i32::from(go.pass().is_err()))?;
        Ok(made.open(process.into_pid().as_raw())?)
    })?;
    let pid = made.pass()?;
    let dump = state(&listener)?;
    expect(dump.has(pid) && dump.has(parent), "both while they live")?;
    go.open(0)?;
    await_end(pid)?;
    let dump = state(&listener)?;
    expect(!dump.has(pid), "no zombie in the state")?;
    expect(dump.has(parent), "its parent in the state")?;
    kill(Pid::from_raw(parent), Signal::SIGKILL)?;
    await_end(parent)?;
    expect(!state(&listener)?.has(parent), "no zombie child")
}

fn threads_are_not_reported() -> TestResult {
    let listener = listen(RARE, 0)?;
    let threads = Gate::new()?;
    let pid = start_idle(|| {
        for _ in 0..3 {
            let threads = threads.duplicate()?;
            thread::spawn(move || {
                status(|| {
                    threads.open(own_tid())?;
                    pause_for_ever()
                })
            });
        }
        Ok(())
    })?;
    let tids = [threads.pass()?, threads.pass()?, threads.pass()?];
    let dump = state(&listener)?;
    expect(dump.has(pid), "the process")?;
    let thread = tids.into_iter().find(|tid| dump.has(*tid));
    expect_eq("reported thread", thread, None)
}

/// Starts a process whose first thread has ended, and whose other thread ends when the gate opens.
/// Returns the pids of the process and of the other thread.
fn start_without_first_thread(go: &Gate) -> Result<(i32, i32), Failure> {
    let ready = Gate::new()?;
    let process = without_first_thread(0, || {
        let passed = ready.open(own_tid()).and_then(|()| go.pass());
        i32::from(passed.is_err())
    })?;
    let tid = ready.pass()?;
    Ok((process.into_pid().as_raw(), tid))
}

fn a_process_without_its_first_thread_is_reported() -> TestResult {
    let listener = listen(RARE, IDENTITY)?;
    let go = Gate::new()?;
    let (pid, tid) = start_without_first_thread(&go)?;
    let dump = state(&listener)?;
    expect_eq("process", dump.event(pid)?, Stat::of(pid)?.process(pid))?;
    expect_eq("identity", dump.identity(pid)?, identity_of(pid)?)?;
    expect(!dump.has(tid), "no thread")?;
    go.open(0)?;
    await_end(pid)?;
    expect(!state(&listener)?.has(pid), "no process that has ended")
}

fn a_process_with_a_traced_thread_is_reported_until_that_is_reaped() -> TestResult {
    let listener = listen(RARE, 0)?;
    let go = Gate::new()?;
    let (pid, tid) = start_without_first_thread(&go)?;
    let thread = Pid::from_raw(tid);
    ptrace::seize(thread, ptrace::Options::empty())?;
    go.open(0)?;
    await_zombie(&format!("{pid}/task/{tid}"))?;
    // All threads have ended, and the process has not.
    let dump = state(&listener)?;
    expect(dump.has(pid), "a process that can't be waited for")?;
    reap(thread)?;
    await_end(pid)?;
    expect(!state(&listener)?.has(pid), "no process that has ended")
}

/// How many processes run a program at the same time, each by a thread other than the first.
const RUNNERS: usize = 6;

/// How often they do.
const ROUNDS: usize = 150;

/// The time after which no more rounds are begun.
const TIME: Duration = Duration::from_secs(25);

/// None of these processes ends meanwhile, so each state has to contain all of them.
fn a_process_that_execs_by_a_thread_is_in_each_state() -> TestResult {
    in_container(|| {
        let listener = listen(mask::EXEC, 0)?;
        let until = Instant::now() + TIME;
        let (mut rounds, mut states) = (0, 0);
        while rounds < ROUNDS && Instant::now() < until {
            states += states_while_running(&listener)
                .map_err(|failure| failure.about(format!("in round {rounds}")))?;
            rounds += 1;
        }
        println!("{states} states while {RUNNERS} programs were run {rounds} times");
        expect(states > rounds, "several states in a round")
    })
}

/// Starts processes, each of which runs a program by a thread, and requests the state until all of
/// them have done so. Returns the number of states.
fn states_while_running(listener: &Listener) -> Result<usize, Failure> {
    let go = Gate::new()?;
    let mut runners = Vec::new();
    for _ in 0..RUNNERS {
        runners.push(start_runner(&go)?);
    }
    (0..RUNNERS).try_for_each(|_| go.open(0))?;
    let limit = timeouts::deadline(EVENT_LIMIT);
    let (mut states, mut running) = (0, BTreeSet::new());
    while running.len() < RUNNERS {
        let dump = state(listener)?;
        for pid in &runners {
            let Event::Process { parent, .. } = dump.event(pid.as_raw())? else {
                return Err(Failure::new("a message of the state about no process"));
            };
            expect_eq("parent", parent, own_task())?;
        }
        running.extend(dump.others.iter().map(|other| other.event.subject().tgid));
        states += 1;
        expect(Instant::now() < limit, "programs to run")?;
    }
    for pid in runners {
        kill(pid, Signal::SIGKILL)?;
        waitpid(pid, None)?;
    }
    Ok(states)
}

/// Starts a process whose second thread runs a program when the gate opens.
fn start_runner(go: &Gate) -> Result<Pid, Failure> {
    let ready = Gate::new()?;
    let process = child::fork(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let failed = status(|| {
                    ready.open(0)?;
                    go.pass()?;
                    execv(c"/bin/sleep", &[c"sleep", c"1000"])?;
                    Ok(())
                });
                child::exit(|| failed)
            });
            pause_for_ever()
        })
    })?;
    ready.pass()?;
    Ok(process.into_pid())
}
