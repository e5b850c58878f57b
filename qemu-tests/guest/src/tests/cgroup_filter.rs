// SPDX-License-Identifier: GPL-2.0
//! Events of one cgroup, if the listener asks for it (C53): a listener with `PROC_CN_LISTEN_CGROUP` gets
//! the events of processes in that cgroup and below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, execv};

use crate::child::{self, Gate, own_tid};
use crate::cpus::{cpus, pin};
use crate::debugfs::Listing;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{EVENT_LIMIT, Listener};
use crate::support::cgroup::{Cgroup, Group, inode_of};
use crate::support::clone3::{CLONE_INTO_CGROUP, arguments};
use crate::support::container::{self, ALL, Container, FIRST_ID, require};
use crate::support::kernel_log::Log;
use crate::support::polling::poll_until_done;
use crate::support::process::{status, succeed};
use crate::support::scenario::{
    bodies, comm, events, every_kind, exit, expect_exactly, mark, own_task, take_through_exit,
    without_acks,
};
use crate::support::sequence_numbers::SequenceNumbers;
use crate::support::threads::{await_zombie, end_thread};
use crate::support::tracer::trace;
use crate::test;
use crate::timeouts;
use crate::wire::{
    BATCH, CGROUP, Event, IDENTITY, LISTEN, NLMSG_EVENT, PROCESSES, Received, Task, mask,
    proc_listen, proc_listen_in,
};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(UNKNOWN_TO_STOCK)
    .covers(&[Line::C53])
    .of([
        test!(a_listener_gets_the_events_of_its_cgroup_and_below_alone)
            .limit(Duration::from_secs(30)),
        test!(an_event_elsewhere_takes_no_number).covers(&[Line::C5]),
        test!(the_root_has_everything_below_it),
        test!(a_child_that_begins_in_the_cgroup_is_reported).covers(&[Line::C7]),
        test!(a_child_that_begins_elsewhere_is_not_reported).covers(&[Line::C7]),
        test!(a_process_that_is_moved_is_reported_in_its_new_cgroup),
        test!(a_tracer_is_reported_in_the_cgroup_of_its_tracee).covers(&[Line::C12]),
        test!(a_thread_in_a_threaded_cgroup_is_reported_there),
        test!(a_process_in_threaded_cgroups_ends_where_its_first_thread_is),
        test!(an_exec_by_a_thread_takes_the_process_to_its_threaded_cgroup),
        test!(a_process_ends_where_its_first_thread_ended[stays](false)),
        test!(a_process_ends_where_its_first_thread_ended[is_moved](true)),
        test!(a_listener_whose_cgroup_is_removed_stays_and_gets_nothing)
            .covers(&[Line::C5, Line::C30]),
        test!(a_cgroup_of_the_same_name_is_another_one),
        test!(a_removed_cgroup_is_freed_when_its_last_listener_ends).limit(Duration::from_secs(30)),
        test!(only_cgroups_in_its_cgroup_namespace_are_accepted),
        test!(a_cgroup_that_the_sender_cannot_see_changes_nothing).covers(&[Line::C20]),
        test!(a_container_filters_within_itself).covers(&[Line::C21, Line::C23]),
        test!(the_host_follows_a_container_by_its_cgroup).covers(&[Line::C21]),
        test!(listening_again_changes_the_cgroup_without_a_gap).covers(&[
            Line::C5,
            Line::C18,
            Line::C50,
        ]),
        test!(listening_again_loses_nothing_that_both_cgroups_have)
            .limit(Duration::from_secs(30))
            .covers(&[Line::C5, Line::C18]),
        test!(each_listener_gets_its_own_cgroup),
        test!(a_cgroup_that_is_removed_meanwhile_is_found_or_not).limit(Duration::from_secs(60)),
        test!(processes_of_a_cgroup_come_with_identities_and_in_batches).covers(&[
            Line::C51,
            Line::C52,
            Line::C54,
        ]),
    ]);

const UNKNOWN_TO_STOCK: &str = "all get the events of all cgroups";

const NO_SUCH: u32 = Errno::ENOENT as u32;

/// The cgroups of a test. They are removed in the order of these fields.
struct Cgroups {
    below: Cgroup,
    inside: Cgroup,
    beside: Cgroup,
    above: Group,
}

impl Cgroups {
    fn new() -> Result<Self, Failure> {
        let above = Group::new()?;
        let beside = Cgroup::within(&above.directory(), "beside")?;
        let inside = Cgroup::within(&above.directory(), "inside")?;
        Ok(Self {
            below: Cgroup::within(inside.directory(), "below")?,
            inside,
            beside,
            above,
        })
    }

    /// `below`, its parent `inside`, and `beside`.
    fn places(&self) -> [&Cgroup; 3] {
        [&self.below, &self.inside, &self.beside]
    }

    /// The directory of the root cgroup, which this process is in.
    fn root(&self) -> PathBuf {
        self.above.directory().join("..")
    }
}

/// A listener for the events of a cgroup and below it.
fn listen_in(cgroup: &Cgroup, mask: u32) -> Result<Listener, Failure> {
    Ok(Listener::listen_in(mask, 0, cgroup.id()?)?)
}

/// Asks for a cgroup. Returns the `err` of the last answer among the queued messages.
fn ask(listener: &mut Listener, mask: u32, id: u64) -> Result<u32, Failure> {
    listener.request(&proc_listen_in(LISTEN, mask, CGROUP, id))?;
    let messages = listener.take_queued()?;
    let answer = messages
        .iter()
        .rev()
        .find_map(|received| match received.event {
            Event::Ack { err } => Some(err),
            _ => None,
        });
    answer.ok_or_else(|| Failure::new(format!("expected an answer, got {messages:?}")))
}

/// Starts a function in a process that begins in a cgroup.
fn fork_into(cgroup: &Cgroup, function: impl FnOnce() -> TestResult) -> Result<Pid, Failure> {
    let directory = File::open(cgroup.directory())?;
    let mut arguments = arguments(CLONE_INTO_CGROUP);
    arguments.cgroup = directory.as_raw_fd() as u64;
    Ok(child::clone3(&arguments, || status(function))?.into_pid())
}

/// Waits until a child ends, and expects it to succeed.
fn finish(child: Pid) -> TestResult {
    let ended = waitpid(child, None)?;
    expect_eq("the end", ended, WaitStatus::Exited(child, 0))
}

/// Raises an event in a process that begins in a cgroup. Returns the process.
fn mark_in(cgroup: &Cgroup) -> Result<Task, Failure> {
    run_in(cgroup, || Ok(mark("in a cgroup")?))
}

/// Runs a function in a process that begins in a cgroup. Returns the process.
fn run_in(cgroup: &Cgroup, function: impl FnOnce() -> TestResult) -> Result<Task, Failure> {
    let process = fork_into(cgroup, function)?;
    finish(process)?;
    Ok(Task::leader(process.as_raw()))
}

/// What a thread does on command.
#[derive(Clone, Copy, PartialEq)]
enum Action {
    Mark,
    Fork,
    /// Executes a program that succeeds.
    Execute,
    /// Ends only the thread.
    End,
}

impl Action {
    const ALL: [Self; 4] = [Self::Mark, Self::Fork, Self::Execute, Self::End];
}

/// A thread that acts on command.
struct ControlledThread {
    command: Gate,
    done: Gate,
}

impl ControlledThread {
    fn new() -> nix::Result<Self> {
        Ok(Self {
            command: Gate::new()?,
            done: Gate::new()?,
        })
    }

    /// Runs in the thread, and executes its commands.
    fn run(&self) -> TestResult {
        self.done.open(own_tid())?;
        loop {
            let command = self.command.pass()?;
            match Action::ALL
                .into_iter()
                .find(|action| *action as i32 == command)
            {
                Some(Action::Mark) => mark("plays")?,
                Some(Action::Fork) => succeed(child::fork(|| 0)?)?,
                Some(Action::Execute) => _ = execv(c"/bin/true", &[c"true"])?,
                Some(Action::End) => end_thread(0),
                None => return Err(Failure::new(format!("there is no action {command}"))),
            }
            self.done.open(0)?;
        }
    }

    /// Waits until the thread runs. Returns its number.
    fn begin(&self) -> Result<i32, Failure> {
        Ok(self.done.pass()?)
    }

    /// Has the thread do something, and waits until it is done.
    fn act(&self, action: Action) -> TestResult {
        self.command.open(action as i32)?;
        Ok(self.done.pass().map(drop)?)
    }

    /// Has the thread begin an action that it does not return from.
    fn leave(&self, action: Action) -> TestResult {
        Ok(self.command.open(action as i32)?)
    }
}

/// A process with two controlled threads: its first thread and another one.
struct TwoThreads {
    first: ControlledThread,
    other: ControlledThread,
    process: Pid,
    other_thread: i32,
}

impl TwoThreads {
    /// Starts the process in a cgroup.
    fn start(cgroup: &Cgroup) -> Result<Self, Failure> {
        let (first, other) = (ControlledThread::new()?, ControlledThread::new()?);
        let process = fork_into(cgroup, || {
            thread::scope(|scope| {
                scope.spawn(|| end_thread(status(|| other.run())));
                end_thread(status(|| first.run()))
            })
        })?;
        expect_eq("first thread", first.begin()?, process.as_raw())?;
        Ok(Self {
            process,
            other_thread: other.begin()?,
            first,
            other,
        })
    }

    /// Lets the first thread end, and waits until it has.
    fn end_first(&self) -> TestResult {
        self.first.leave(Action::End)?;
        await_zombie(&self.process.to_string())
    }

    /// Lets the other thread end, and with it the process.
    fn end_last(&self) -> TestResult {
        self.other.leave(Action::End)?;
        finish(self.process)
    }

    fn leader(&self) -> Task {
        Task::leader(self.process.as_raw())
    }

    fn thread(&self) -> Task {
        Task {
            pid: self.other_thread,
            tgid: self.process.as_raw(),
        }
    }
}

/// The kind and the subject of each queued event.
fn kinds_received(listener: &mut Listener) -> Result<Vec<(&'static str, Task)>, Failure> {
    let events = events(listener)?;
    let kinds = events.iter().map(|event| (event.kind(), event.subject()));
    Ok(kinds.collect())
}

/// The same for the events up to the end of a process.
fn kinds_through_exit(
    listener: &mut Listener,
    pid: i32,
) -> Result<Vec<(&'static str, Task)>, Failure> {
    let messages = take_through_exit(listener, pid)?;
    let events = without_acks(&messages);
    let kinds = events.iter().map(|event| (event.kind(), event.subject()));
    Ok(kinds.collect())
}

/// Waits until an event that one listener has received has been sent to all others, too: until another
/// process has begun and ended.
fn settle() -> TestResult {
    succeed(child::fork(|| 0)?)
}

/// What a listener received: the events of some processes and all their descendants, and of others.
#[derive(Default)]
struct FamilyEvents {
    family: Vec<Received>,
    others: Vec<Received>,
}

/// Takes events until these processes and all their descendants have ended.
fn take_through_ends(listener: &mut Listener, roots: &[Task]) -> Result<FamilyEvents, Failure> {
    let deadline = timeouts::deadline(EVENT_LIMIT);
    let mut family: BTreeSet<i32> = roots.iter().map(|task| task.tgid).collect();
    let mut alive = family.clone();
    let mut taken = FamilyEvents::default();
    while !alive.is_empty() {
        let Some(received) = listener.receive(deadline)? else {
            return Err(Failure::new(format!("the ends of {alive:?} did not come")));
        };
        match received.event {
            Event::Ack { .. } => continue,
            Event::Fork { parent, child } if family.contains(&parent.tgid) => {
                family.insert(child.tgid);
                alive.insert(child.tgid);
            }
            Event::Exit { task, .. } if task == Task::leader(task.tgid) => {
                alive.remove(&task.tgid);
            }
            _ => {}
        }
        if family.contains(&received.event.subject().tgid) {
            taken.family.push(received);
        } else {
            taken.others.push(received);
        }
    }
    // Events of different CPUs come in no particular order.
    taken.family.sort_by_key(Received::timestamp_ns);
    Ok(taken)
}

/// Raises every kind of event in a process in a cgroup, and its children.
fn raise_every_kind_in(cgroup: &Cgroup) -> Result<Task, Failure> {
    run_in(cgroup, || {
        thread::spawn(|| {})
            .join()
            .expect("an empty function does not panic");
        every_kind(&mut Listener::listen_all()?).map(drop)
    })
}

fn a_listener_gets_the_events_of_its_cgroup_and_below_alone() -> TestResult {
    let cgroups = Cgroups::new()?;
    let [below, inside, beside] = cgroups.places();
    let mut filtered = listen_in(inside, mask::EVERYTHING)?;
    let mut all = Listener::listen(mask::EVERYTHING)?;
    let first = SequenceNumbers::first(&mut filtered)?;
    raise_every_kind_in(beside)?;
    let roots = [raise_every_kind_in(inside)?, raise_every_kind_in(below)?];
    succeed(child::fork(|| {
        status(|| {
            cgroups.above.enter()?;
            every_kind(&mut Listener::listen_all()?).map(drop)
        })
    })?)?;
    every_kind(&mut Listener::listen_all()?)?;
    let expected = take_through_ends(&mut all, &roots)?;
    expect(!expected.others.is_empty(), "events of other processes")?;
    let got = take_through_ends(&mut filtered, &roots)?;
    let others: Vec<_> = got.others.iter().map(|received| received.event).collect();
    expect_eq("events of other processes", others, vec![])?;
    expect_eq("events", bodies(&got.family), bodies(&expected.family))?;
    let kinds = got.family.iter().map(|received| received.event.bit());
    let kinds = kinds.fold(0, |kinds, bit| kinds | bit);
    expect_eq("kinds", kinds, mask::EVERYTHING & !mask::NONZERO_EXIT)?;
    expect_eq("missing numbers", first.missing(&got.family)?, 0)?;
    expect_eq("further events", events(&mut filtered)?, vec![])
}

fn an_event_elsewhere_takes_no_number() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut listener = listen_in(&cgroups.inside, mask::COMM)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let cpus = cpus()?.repeat(3);
    for cpu in &cpus {
        pin(*cpu)?;
        for cgroup in [&cgroups.beside, &cgroups.inside, &cgroups.below] {
            mark("elsewhere")?;
            mark_in(cgroup)?;
        }
    }
    let messages = listener.take_queued()?;
    expect_eq("events", messages.len(), 2 * cpus.len())?;
    expect_eq("missing numbers", first.missing(&messages)?, 0)?;
    let line = Listing::of(listener.port_id()?)?;
    let counts = (line.delivered, line.lost);
    expect_eq("delivered and lost", counts, (messages.len() as u64, 0))
}

fn the_root_has_everything_below_it() -> TestResult {
    let cgroups = Cgroups::new()?;
    let root = inode_of(&cgroups.root())?;
    let mut listener = Listener::listen_in(mask::COMM, 0, root)?;
    mark("in the root")?;
    let mut expected = vec![("comm", own_task())];
    for cgroup in [&cgroups.beside, &cgroups.inside, &cgroups.below] {
        let task = mark_in(cgroup)?;
        expected.push(("comm", task));
    }
    let mut received = kinds_received(&mut listener)?;
    // Other processes are in the root, too.
    received.retain(|event| expected.contains(event));
    expect_eq("events", received, expected)
}

fn a_child_that_begins_in_the_cgroup_is_reported() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut listener = listen_in(&cgroups.inside, mask::FORK | mask::EXIT)?;
    for cgroup in [&cgroups.inside, &cgroups.below] {
        let child = run_in(cgroup, || Ok(()))?;
        let parent = own_task();
        let expected = [Event::Fork { parent, child }, exit(child, 0, parent)];
        expect_exactly("the listener", &mut listener, &expected, |_| true)?;
    }
    Ok(())
}

fn a_child_that_begins_elsewhere_is_not_reported() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut inside = listen_in(&cgroups.inside, mask::FORK | mask::EXIT)?;
    let mut beside = listen_in(&cgroups.beside, mask::FORK | mask::EXIT)?;
    let made = Gate::new()?;
    let maker = run_in(&cgroups.inside, || {
        let emigrant = run_in(&cgroups.beside, || Ok(()))?;
        made.open(emigrant.pid)?;
        let native = child::fork(|| 0)?;
        made.open(native.pid().as_raw())?;
        succeed(native)
    })?;
    let (emigrant, native) = (Task::leader(made.pass()?), Task::leader(made.pass()?));
    let fork = |parent, child| Event::Fork { parent, child };
    let expected = [
        fork(own_task(), maker),
        fork(maker, native),
        exit(native, 0, maker),
        exit(maker, 0, own_task()),
    ];
    expect_exactly("inside", &mut inside, &expected, |_| true)?;
    let expected = [fork(maker, emigrant), exit(emigrant, 0, maker)];
    expect_exactly("beside", &mut beside, &expected, |_| true)
}

fn a_process_that_is_moved_is_reported_in_its_new_cgroup() -> TestResult {
    let cgroups = Cgroups::new()?;
    let [below, inside, beside] = cgroups.places();
    let threads = TwoThreads::start(beside)?;
    let (leader, thread) = (threads.leader(), threads.thread());
    let mut listener = listen_in(inside, mask::COMM | mask::FORK)?;
    for (cgroup, is_reported) in [
        (beside, false),
        (inside, true),
        (beside, false),
        (below, true),
        (inside, true),
        (below, true),
        (beside, false),
    ] {
        cgroup.add(threads.process.as_raw())?;
        threads.first.act(Action::Mark)?;
        threads.other.act(Action::Mark)?;
        threads.other.act(Action::Fork)?;
        let received = kinds_received(&mut listener)?;
        // The child's pid is not known: its FORK is only counted.
        let known = received.iter().filter(|(kind, _)| *kind != "fork");
        let known: Vec<_> = known.copied().collect();
        let (comms, forks) = match is_reported {
            true => (vec![("comm", leader), ("comm", thread)], 1),
            false => (vec![], 0),
        };
        let place = cgroup.directory().display();
        expect_eq(
            &format!("forks in {place}"),
            received.len() - known.len(),
            forks,
        )?;
        expect_eq(&format!("events in {place}"), known, comms)?;
    }
    threads.end_first()?;
    threads.end_last()
}

fn a_tracer_is_reported_in_the_cgroup_of_its_tracee() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut inside = listen_in(&cgroups.inside, mask::PTRACE)?;
    let mut beside = listen_in(&cgroups.beside, mask::PTRACE)?;
    let threads = TwoThreads::start(&cgroups.beside)?;
    let tracer = run_in(&cgroups.inside, || trace(threads.process))?;
    let task = threads.leader();
    let expected = [tracer, Task::NONE].map(|tracer| Event::Ptrace { task, tracer });
    expect_eq("beside", events(&mut beside)?, expected.to_vec())?;
    expect_eq("inside", events(&mut inside)?, vec![])?;
    threads.end_first()?;
    threads.end_last()
}

/// A process in `inside` with a thread in `below`, and a listener for each of the two cgroups.
struct Threaded {
    threads: TwoThreads,
    inside: Listener,
    below: Listener,
    cgroups: Cgroups,
}

impl Threaded {
    fn new(mask: u32, moved: fn(&TwoThreads) -> i32) -> Result<Self, Failure> {
        let cgroups = Cgroups::new()?;
        cgroups.below.become_threaded()?;
        let threads = TwoThreads::start(&cgroups.inside)?;
        cgroups.below.add_thread(moved(&threads))?;
        Ok(Self {
            inside: listen_in(&cgroups.inside, mask)?,
            below: listen_in(&cgroups.below, mask)?,
            threads,
            cgroups,
        })
    }

    /// Expects these events in `inside`, and in `below` if `also_below`.
    #[track_caller]
    fn expect_events(&mut self, expected: &[(&'static str, Task)], also_below: bool) -> TestResult {
        expect_eq("inside", &kinds_received(&mut self.inside)?[..], expected)?;
        let expected = if also_below { expected } else { &[] };
        expect_eq("below", &kinds_received(&mut self.below)?[..], expected)
    }
}

fn a_thread_in_a_threaded_cgroup_is_reported_there() -> TestResult {
    let mut scene = Threaded::new(mask::COMM, |threads| threads.other_thread)?;
    let (leader, thread) = (scene.threads.leader(), scene.threads.thread());
    scene.threads.first.act(Action::Mark)?;
    scene.expect_events(&[("comm", leader)], false)?;
    scene.threads.other.act(Action::Mark)?;
    scene.expect_events(&[("comm", thread)], true)?;
    // And the other way round.
    scene.cgroups.inside.add_thread(thread.pid)?;
    scene.cgroups.below.add_thread(leader.pid)?;
    scene.threads.first.act(Action::Mark)?;
    scene.expect_events(&[("comm", leader)], true)?;
    scene.threads.other.act(Action::Mark)?;
    scene.expect_events(&[("comm", thread)], false)?;
    scene.threads.end_first()?;
    scene.threads.end_last()
}

fn a_process_in_threaded_cgroups_ends_where_its_first_thread_is() -> TestResult {
    for leader_is_below in [false, true] {
        let moved: fn(&TwoThreads) -> i32 = match leader_is_below {
            true => |threads| threads.process.as_raw(),
            false => |threads| threads.other_thread,
        };
        let mut scene = Threaded::new(mask::EXIT, moved)?;
        let (leader, thread) = (scene.threads.leader(), scene.threads.thread());
        // The first thread is not the last one that ends.
        scene.threads.end_first()?;
        scene.threads.end_last()?;
        let received = kinds_through_exit(&mut scene.inside, leader.pid)?;
        let expected = [("exit", thread), ("exit", leader)];
        expect_eq("inside", received, expected.to_vec())?;
        settle()?;
        let expected = vec![expected[usize::from(leader_is_below)]];
        expect_eq("below", kinds_received(&mut scene.below)?, expected)?;
    }
    Ok(())
}

fn an_exec_by_a_thread_takes_the_process_to_its_threaded_cgroup() -> TestResult {
    let mut scene = Threaded::new(mask::EXEC | mask::EXIT, |threads| threads.other_thread)?;
    let leader = scene.threads.leader();
    scene.threads.other.leave(Action::Execute)?;
    finish(scene.threads.process)?;
    let mut received = kinds_through_exit(&mut scene.below, leader.pid)?;
    // The test does not check where the end of the caller's old number is reported.
    received.retain(|(_, task)| *task == leader);
    let expected = vec![("exec", leader), ("exit", leader)];
    expect_eq("below", received, expected.clone())?;
    let mut received = kinds_through_exit(&mut scene.inside, leader.pid)?;
    received.retain(|(_, task)| *task == leader);
    expect_eq("inside", received, expected)
}

/// This holds also if the process is moved later: a thread that has ended is not moved.
fn a_process_ends_where_its_first_thread_ended(is_moved: bool) -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut inside = listen_in(&cgroups.inside, mask::EXIT | mask::COMM)?;
    let mut beside = listen_in(&cgroups.beside, mask::EXIT | mask::COMM)?;
    let threads = TwoThreads::start(&cgroups.inside)?;
    let (leader, thread) = (threads.leader(), threads.thread());
    threads.end_first()?;
    if is_moved {
        cgroups.beside.add(leader.pid)?;
    }
    threads.other.act(Action::Mark)?;
    threads.end_last()?;
    let of_thread = vec![("comm", thread), ("exit", thread)];
    let of_process = vec![("exit", leader)];
    let (in_there, over_there) = match is_moved {
        true => (of_process, of_thread),
        false => ([of_thread, of_process].concat(), vec![]),
    };
    let received = kinds_through_exit(&mut inside, leader.pid)?;
    expect_eq("inside", received, in_there)?;
    settle()?;
    expect_eq("beside", kinds_received(&mut beside)?, over_there)
}

/// Returns the new log records that may concern cgroups or listeners, or report a fault.
fn concerned(log: &mut Log) -> io::Result<Vec<String>> {
    const WORDS: [&str; 6] = [
        "cgroup",
        "proc_events",
        "cn_proc",
        "connector",
        "BUG",
        "WARN",
    ];
    let mut records = log.records()?;
    records.retain(|record| WORDS.iter().any(|word| record.contains(word)));
    Ok(records)
}

/// Raises an event everywhere but in `inside`.
fn mark_elsewhere(cgroups: &Cgroups) -> TestResult {
    mark("in the root")?;
    mark_in(&cgroups.beside)?;
    succeed(child::fork(|| {
        status(|| {
            cgroups.above.enter()?;
            Ok(mark("above")?)
        })
    })?)
}

fn a_listener_whose_cgroup_is_removed_stays_and_gets_nothing() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut log = Log::new()?;
    let mut listener = listen_in(&cgroups.inside, mask::COMM)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let task = mark_in(&cgroups.inside)?;
    let mut all = listener.take_queued()?;
    let before = Listing::of(listener.port_id()?)?;
    let id = cgroups.inside.id()?;
    let asked = (before.mask, before.flags, before.cgroup);
    expect_eq("mask, flags and cgroup", asked, (mask::COMM, CGROUP, id))?;
    cgroups.below.remove()?;
    cgroups.inside.remove()?;
    mark_elsewhere(&cgroups)?;
    expect_eq("events", kinds_received(&mut listener)?, vec![])?;
    expect_eq("listed", Listing::of(listener.port_id()?)?, before)?;
    // A removed cgroup cannot be asked for again.
    expect_eq("err", ask(&mut listener, mask::COMM, id)?, NO_SUCH)?;
    expect_eq("listed", Listing::of(listener.port_id()?)?, before)?;
    let other = cgroups.beside.id()?;
    expect_eq("err", ask(&mut listener, mask::COMM, other)?, 0)?;
    let other_task = mark_in(&cgroups.beside)?;
    all.extend(listener.take_queued()?);
    let tasks: Vec<_> = all
        .iter()
        .map(|received| received.event.subject())
        .collect();
    expect_eq("subjects of events", tasks, vec![task, other_task])?;
    expect_eq("missing numbers", first.missing(&all)?, 0)?;
    expect_eq("log", concerned(&mut log)?, vec![])
}

fn a_cgroup_of_the_same_name_is_another_one() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut old = listen_in(&cgroups.beside, mask::COMM)?;
    cgroups.beside.remove()?;
    let again = Cgroup::within(&cgroups.above.directory(), "beside")?;
    let mut new = listen_in(&again, mask::COMM)?;
    let task = mark_in(&again)?;
    expect_eq(
        "events of the new one",
        kinds_received(&mut new)?,
        vec![("comm", task)],
    )?;
    expect_eq("events of the old one", kinds_received(&mut old)?, vec![])
}

/// Returns how many cgroups below this one were removed but are not freed yet.
fn dying(cgroup: &Cgroup) -> Result<u32, Failure> {
    let text = fs::read_to_string(cgroup.directory().join("cgroup.stat"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("nr_dying_descendants "));
    Ok(line.unwrap_or_default().parse()?)
}

/// How long a cgroup may take to be freed: some grace periods and work items come first.
const GONE_LIMIT: Duration = Duration::from_secs(10);

fn expect_gone(cgroup: &Cgroup) -> TestResult {
    poll_until_done(GONE_LIMIT, || {
        let dying = dying(cgroup)?;
        Ok((dying > 0).then(|| format!("removed cgroups to be freed, got {dying}")))
    })
}

/// Makes a listener stop listening to its cgroup. Returns the listener if its socket is still open.
type HowItEnds = fn(Listener, &Cgroups) -> Result<Option<Listener>, Failure>;

fn a_removed_cgroup_is_freed_when_its_last_listener_ends() -> TestResult {
    let ends: [HowItEnds; 4] = [
        |listener, _| {
            drop(listener);
            Ok(None)
        },
        |listener, _| {
            listener.ignore()?;
            Ok(Some(listener))
        },
        |listener, _| {
            listener.request(&[LISTEN, mask::COMM])?;
            Ok(Some(listener))
        },
        |mut listener, cgroups| {
            let id = cgroups.beside.id()?;
            expect_eq("err", ask(&mut listener, mask::COMM, id)?, 0)?;
            Ok(Some(listener))
        },
    ];
    let cgroups = Cgroups::new()?;
    for end in ends {
        let removed = Cgroup::within(cgroups.inside.directory(), "removed")?;
        let listener = listen_in(&removed, mask::COMM)?;
        run_in(&removed, || Ok(()))?;
        removed.remove()?;
        expect_eq("dying cgroups", dying(&cgroups.inside)?, 1)?;
        let _left = end(listener, &cgroups)?;
        expect_gone(&cgroups.inside)?;
    }
    Ok(())
}

/// Ids, and the `err` of the answer when a process in `inside` asks for each. The process sees all
/// cgroups, or only those in `inside`.
fn ids(cgroups: &Cgroups, all: bool) -> Result<Vec<(u64, u32)>, Failure> {
    let outside = if all { 0 } else { NO_SUCH };
    let inside = cgroups.inside.id()?;
    Ok(vec![
        (inside, 0),
        (cgroups.below.id()?, 0),
        (cgroups.beside.id()?, outside),
        (cgroups.above.id()?, outside),
        (inode_of(&cgroups.root())?, outside),
        // The id of a file, and ids that do not exist.
        (
            inode_of(&cgroups.inside.directory().join("cgroup.procs"))?,
            NO_SUCH,
        ),
        (0, NO_SUCH),
        (inside | 1 << 63, NO_SUCH),
        (inside + (1 << 32), NO_SUCH),
        (u64::MAX, NO_SUCH),
    ])
}

fn only_cgroups_in_its_cgroup_namespace_are_accepted() -> TestResult {
    let cgroups = Cgroups::new()?;
    for all in [true, false] {
        let ids = ids(&cgroups, all)?;
        run_in(&cgroups.inside, || {
            if !all {
                unshare(CloneFlags::CLONE_NEWCGROUP)?;
            }
            for (id, err) in ids {
                // First, the socket does not listen yet. Once an id is accepted, it does.
                let mut listener = Listener::open()?;
                for _ in 0..2 {
                    let what = format!("err of {id}, when all are seen: {all}");
                    expect_eq(&what, ask(&mut listener, mask::COMM, id)?, err)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn a_cgroup_that_the_sender_cannot_see_changes_nothing() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut listener = listen_in(&cgroups.beside, mask::COMM)?;
    let before = Listing::of(listener.port_id()?)?;
    let (inside, above) = (cgroups.inside.id()?, cgroups.above.id()?);
    // The socket is the same, and the sender is in another cgroup namespace.
    let sender = fork_into(&cgroups.inside, || {
        unshare(CloneFlags::CLONE_NEWCGROUP)?;
        for id in [cgroups.beside.id()?, above] {
            let err = ask(&mut listener, mask::SID, id)?;
            expect_eq("err", err, NO_SUCH)?;
        }
        mark("not in the cgroup").map_err(Failure::from)
    })?;
    finish(sender)?;
    expect_eq("listed", Listing::of(listener.port_id()?)?, before)?;
    let task = mark_in(&cgroups.beside)?;
    expect_eq(
        "events",
        kinds_received(&mut listener)?,
        vec![("comm", task)],
    )?;
    // The sender can ask for a cgroup that it sees.
    let sender = fork_into(&cgroups.inside, || {
        unshare(CloneFlags::CLONE_NEWCGROUP)?;
        expect_eq("err", ask(&mut listener, mask::COMM, inside)?, 0)
    })?;
    finish(sender)?;
    let task = mark_in(&cgroups.inside)?;
    expect_eq(
        "events",
        kinds_received(&mut listener)?,
        vec![("comm", task)],
    )
}

fn a_container_filters_within_itself() -> TestResult {
    require(ALL)?;
    let cgroups = Cgroups::new()?;
    let other = Cgroup::within(cgroups.inside.directory(), "other")?;
    for cgroup in [&cgroups.inside, &cgroups.below, &other] {
        // A container's root may move processes between these cgroups.
        let file = cgroup.directory().join("cgroup.procs");
        chown(file, Some(FIRST_ID), Some(FIRST_ID))?;
    }
    let hidden = [cgroups.beside.id()?, inode_of(&cgroups.root())?];
    let (ready, placed) = (Gate::new()?, Gate::new()?);
    let container = Container::start(ALL, || {
        ready.open(0)?;
        placed.pass()?;
        unshare(CloneFlags::CLONE_NEWCGROUP)?;
        let mut listener = container::open()?;
        for id in hidden {
            expect_eq("err", ask(&mut listener, mask::COMM, id)?, NO_SUCH)?;
        }
        let kinds = mask::COMM | mask::EXIT;
        let err = ask(&mut listener, kinds, cgroups.below.id()?)?;
        expect_eq("err", err, 0)?;
        let mut tasks = Vec::new();
        for cgroup in [&cgroups.below, &other] {
            let process = child::fork(|| {
                status(|| {
                    cgroup.add(0)?;
                    Ok(mark("in a container")?)
                })
            })?;
            tasks.push(Task::leader(process.pid().as_raw()));
            succeed(process)?;
        }
        mark("not below")?;
        let task = tasks[0];
        let comm = comm("in a container");
        let expected = [Event::Comm { task, comm }, exit(task, 0, Task::leader(1))];
        expect_exactly("the container", &mut listener, &expected, |_| true)
    })?;
    ready.pass()?;
    cgroups.inside.add(container.task().pid)?;
    placed.open(0)?;
    container.finish()
}

fn the_host_follows_a_container_by_its_cgroup() -> TestResult {
    let cgroups = Cgroups::new()?;
    let kinds = mask::FORK | mask::COMM | mask::EXIT;
    let mut host = listen_in(&cgroups.inside, kinds)?;
    let (ready, placed, looked_up) = (Gate::new()?, Gate::new()?, Gate::new()?);
    let container = Container::start(ALL, || {
        ready.open(0)?;
        placed.pass()?;
        let process = child::fork(|| {
            status(|| {
                mark("in a container")?;
                ready.open(child::own_pid())?;
                Ok(looked_up.pass().map(drop)?)
            })
        })?;
        succeed(process)
    })?;
    ready.pass()?;
    let first = container.task();
    cgroups.inside.add(first.pid)?;
    placed.open(0)?;
    let child = Task::leader(container.outer(ready.pass()?)?);
    looked_up.open(0)?;
    container.finish()?;
    let expected = [
        Event::Fork {
            parent: first,
            child,
        },
        Event::Comm {
            task: child,
            comm: comm("in a container"),
        },
        exit(child, 0, first),
        exit(first, 0, own_task()),
    ];
    expect_exactly("the host", &mut host, &expected, |_| true)
}

fn listening_again_changes_the_cgroup_without_a_gap() -> TestResult {
    let cgroups = Cgroups::new()?;
    let places = cgroups.places();
    let [below, inside, beside] = places;
    let mut listener = listen_in(inside, mask::COMM)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let mut all = Vec::new();
    // The cgroup that is asked for, and the places whose events are reported then.
    for (cgroup, reported) in [
        (Some(inside), vec![0, 1]),
        (None, vec![0, 1, 2]),
        (Some(below), vec![0]),
        (Some(beside), vec![2]),
        (None, vec![0, 1, 2]),
        (Some(beside), vec![2]),
        (Some(inside), vec![0, 1]),
    ] {
        let id = cgroup.map_or(Ok(0), Cgroup::id)?;
        match cgroup {
            Some(_) => listener.request(&proc_listen_in(LISTEN, mask::COMM, CGROUP, id))?,
            None => listener.request(&proc_listen(LISTEN, mask::COMM, 0))?,
        }
        let line = Listing::of(listener.port_id()?)?;
        let flags = if cgroup.is_some() { CGROUP } else { 0 };
        expect_eq("flags and cgroup", (line.flags, line.cgroup), (flags, id))?;
        let mut tasks = Vec::new();
        for place in places {
            tasks.push(mark_in(place)?);
        }
        mark("in the root")?;
        let mut messages = listener.take_queued()?;
        messages.retain(|received| received.event.bit() != 0);
        all.extend(messages.clone());
        let mut expected: Vec<_> = reported.iter().map(|place| tasks[*place]).collect();
        if cgroup.is_none() {
            expected.push(own_task());
            // A listener that asks for no cgroup gets events of other processes, too.
            messages.retain(|received| expected.contains(&received.event.subject()));
        }
        let tasks = messages.iter().map(|received| received.event.subject());
        expect_eq("subjects of events", tasks.collect(), expected)?;
    }
    expect_eq("missing numbers", first.missing(&all)?, 0)
}

fn listening_again_loses_nothing_that_both_cgroups_have() -> TestResult {
    const MARKS: usize = 10_000;
    let cgroups = Cgroups::new()?;
    let ids = [cgroups.inside.id()?, cgroups.below.id()?];
    let mut listener = listen_in(&cgroups.below, mask::COMM)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let marker = fork_into(&cgroups.below, || {
        for _ in 0..MARKS {
            mark("below")?;
        }
        Ok(())
    })?;
    let end = child::pidfd(marker)?;
    let mut changes = 0;
    let mut all = Vec::new();
    while !child::has_ended(&end, Duration::ZERO)? {
        changes += 1;
        let flags = CGROUP | if changes % 4 < 2 { BATCH } else { 0 };
        let request = proc_listen_in(LISTEN, mask::COMM, flags, ids[changes % 2]);
        match changes % 5 {
            0 => listener.request(&proc_listen(LISTEN, mask::COMM, 0))?,
            _ => listener.request(&request)?,
        }
        all.extend(listener.take_queued()?);
    }
    println!("{changes} changes");
    finish(marker)?;
    all.extend(listener.take_queued()?);
    all.retain(|received| received.event.bit() != 0);
    expect_eq("missing numbers", first.missing(&all)?, 0)?;
    let own = all
        .iter()
        .filter(|received| received.event.subject() == Task::leader(marker.as_raw()));
    expect_eq("marks", own.count(), MARKS)
}

fn each_listener_gets_its_own_cgroup() -> TestResult {
    let cgroups = Cgroups::new()?;
    let mut inside = listen_in(&cgroups.inside, mask::COMM)?;
    let mut beside = listen_in(&cgroups.beside, mask::COMM)?;
    let mut all = Listener::listen(mask::COMM)?;
    let (mut in_there, mut over_there, mut anywhere) = (vec![], vec![], vec![]);
    for _ in 0..5 {
        let task = mark_in(&cgroups.inside)?;
        in_there.push(("comm", task));
        let other = mark_in(&cgroups.beside)?;
        over_there.push(("comm", other));
        mark("in the root")?;
        anywhere.extend([task, other, own_task()].map(|task| ("comm", task)));
    }
    expect_eq("inside", kinds_received(&mut inside)?, in_there)?;
    expect_eq("beside", kinds_received(&mut beside)?, over_there)?;
    let mut received = kinds_received(&mut all)?;
    received.retain(|event| anywhere.contains(event));
    expect_eq("anywhere", received, anywhere)
}

/// A cgroup that exists for a moment, again and again, as two threads see it.
#[derive(Default)]
struct Moment {
    /// The id of the current or last cgroup, or 0 until the next one is made.
    id: AtomicU64,
    /// How often the other thread asked for the cgroup.
    asked: AtomicU64,
    stop: AtomicBool,
}

/// How long cgroups may be made and removed.
const MOMENTS_LIMIT: Duration = Duration::from_secs(40);

impl Moment {
    /// Makes cgroups, and removes each while it is asked for.
    fn come_and_go(&self, directory: &Path, rounds: usize, deadline: Instant) -> TestResult {
        let mut random = Rng::with_seed(1);
        for _ in 0..rounds {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let cgroup = Cgroup::within(directory, "moment")?;
            let asked = self.asked.load(Ordering::Acquire);
            self.id.store(cgroup.id()?, Ordering::Release);
            self.wait(deadline, || self.asked.load(Ordering::Acquire) > asked)?;
            for _ in 0..random.u32(0..5000) {
                std::hint::spin_loop();
            }
            cgroup.remove()?;
            // Waits until a request for the cgroup has failed.
            self.wait(deadline, || self.id.load(Ordering::Acquire) == 0)?;
        }
        Ok(())
    }

    fn wait(&self, deadline: Instant, is_over: impl Fn() -> bool) -> TestResult {
        while !is_over() && !self.stop.load(Ordering::Relaxed) {
            expect(Instant::now() < deadline, "the other thread to go on")?;
            thread::yield_now();
        }
        Ok(())
    }

    /// Asks for the current cgroup until it is gone. Returns how often it was found.
    fn ask_until_gone(&self, listener: &mut Listener, deadline: Instant) -> Result<u64, Failure> {
        self.wait(deadline, || self.id.load(Ordering::Acquire) != 0)?;
        let id = self.id.load(Ordering::Acquire);
        let mut found = 0;
        // If the other thread has ended, the id is 0, which no cgroup has.
        loop {
            let err = ask(listener, mask::SID, id)?;
            self.asked.fetch_add(1, Ordering::AcqRel);
            match err {
                0 => found += 1,
                NO_SUCH => break,
                err => return Err(Failure::new(format!("expected err 0 or ENOENT, got {err}"))),
            }
            expect(Instant::now() < deadline, "the cgroup to be removed")?;
        }
        self.id.store(0, Ordering::Release);
        Ok(found)
    }
}

fn a_cgroup_that_is_removed_meanwhile_is_found_or_not() -> TestResult {
    const ROUNDS: usize = 300;
    // On a busy host, fewer rounds are enough.
    const LEAST: u64 = 30;
    let cgroups = Cgroups::new()?;
    let mut listener = Listener::open()?;
    let moment = Moment::default();
    let deadline = timeouts::deadline(MOMENTS_LIMIT);
    let enough = timeouts::deadline(MOMENTS_LIMIT / 2);
    let (asked, rounds) = thread::scope(|scope| -> Result<(u64, u64), Failure> {
        let maker = scope.spawn(|| {
            let made = moment.come_and_go(cgroups.inside.directory(), ROUNDS, deadline);
            moment.stop.store(true, Ordering::Relaxed);
            made
        });
        let mut ask_for_all = || -> Result<(u64, u64), Failure> {
            let (mut found, mut rounds) = (0, 0);
            while rounds < ROUNDS as u64 && Instant::now() < enough {
                found += moment.ask_until_gone(&mut listener, deadline)?;
                rounds += 1;
            }
            Ok((found, rounds))
        };
        let found = ask_for_all();
        moment.stop.store(true, Ordering::Relaxed);
        maker.join().expect("making cgroups does not panic")?;
        found
    })?;
    println!("{asked} times it was found, {rounds} times it was not");
    expect(rounds >= LEAST, format!("{LEAST} rounds, got {rounds}"))?;
    expect(asked >= rounds, "each one to be found at least once")?;
    // The listener holds only the last cgroup, which is removed.
    drop(listener);
    expect_gone(&cgroups.inside)
}

fn processes_of_a_cgroup_come_with_identities_and_in_batches() -> TestResult {
    const CHILDREN: usize = 20;
    let cgroups = Cgroups::new()?;
    let flags = PROCESSES | IDENTITY | BATCH;
    let kinds = mask::FORK | mask::COMM | mask::EXIT;
    let id = cgroups.inside.id()?;
    let mut listener = Listener::listen_in(kinds, flags, id)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let (mut places, mut expected) = (BTreeMap::new(), BTreeMap::new());
    for (cgroup, is_reported) in [
        (&cgroups.below, true),
        (&cgroups.beside, false),
        (&cgroups.inside, true),
    ] {
        let task = run_in(cgroup, || {
            for _ in 0..CHILDREN {
                succeed(child::fork(|| 0)?)?;
                let joined = thread::spawn(|| mark("a thread")).join();
                joined.expect("a mark does not panic")?;
            }
            Ok(())
        })?;
        places.insert(task.tgid, cgroup.id()?);
        if is_reported {
            expected.insert((task.tgid, "fork", false), CHILDREN + 1);
            expected.insert((task.tgid, "exit", false), CHILDREN + 1);
            expected.insert((task.tgid, "comm", true), CHILDREN);
        }
    }
    // The events in the order in which they came, by datagram.
    let mut datagrams = Vec::new();
    let deadline = timeouts::deadline(EVENT_LIMIT);
    let has_all = |datagrams: &[Vec<Received>]| {
        let messages = datagrams.concat();
        let ends = messages.iter().filter(|one| one.event.bit() == mask::EXIT);
        ends.count() >= 2 * (CHILDREN + 1)
    };
    while !has_all(&datagrams) {
        match listener.receive_datagram()? {
            Some(datagram) => datagrams.push(datagram),
            None => {
                expect(Instant::now() < deadline, "the ends of all processes")?;
                thread::yield_now();
            }
        }
    }
    expect(
        datagrams.iter().any(|datagram| datagram.len() > 5),
        "events that share a datagram",
    )?;
    let messages = datagrams.concat();
    expect_eq("missing numbers", first.missing(&messages)?, 0)?;
    let mut counts: BTreeMap<_, usize> = BTreeMap::new();
    for received in &messages {
        let kind = received.message.netlink.kind;
        expect_eq("type", kind, NLMSG_EVENT)?;
        let subject = received.event.subject();
        // The process that made all others in its cgroup. It may be the subject itself.
        let root = match received.event {
            Event::Fork { parent, .. } | Event::Exit { parent, .. } => {
                let known = places.contains_key(&subject.tgid);
                if known { subject.tgid } else { parent.tgid }
            }
            _ => subject.tgid,
        };
        let cgroup = received.identity.map(|identity| identity.cgroup);
        let what = format!("cgroup of {:?}", received.event);
        expect_eq(&what, cgroup, places.get(&root).copied())?;
        let of_thread = subject.pid != subject.tgid;
        *counts
            .entry((root, received.event.kind(), of_thread))
            .or_default() += 1;
    }
    expect_eq("events (root, kind, of a thread)", counts, expected)?;
    let more = listener.take_queued()?;
    let more: Vec<_> = more.iter().map(|received| received.event).collect();
    expect_eq("further events", more, vec![])
}
