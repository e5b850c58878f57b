// SPDX-License-Identifier: GPL-2.0
//! Which process an event is about, by numbers that are never used again (C52): the inode numbers
//! of pidfds, the cgroup's id, and the start time.
//!
//! The tests look at a process while it waits, so that its pid cannot name another process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Gid, Pid, Uid, execv, setgid, setsid, setuid};

use crate::child::{self, Child, Gate, allow_descriptors, own_pid, own_tid, pidfd};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::identities;
use crate::listener::{EVENT_LIMIT, Listener};
use crate::proc_stat::{Stat, TICK};
use crate::support::cgroup::{Cgroup, Group};
use crate::support::clone3::{CLONE_INTO_CGROUP, arguments, clone3};
use crate::support::container::{
    Container, Handover, PID, SECONDS_AHEAD, is_room, open, with_other_clock,
};
use crate::support::polling::poll_until_done;
use crate::support::process::{ignore_children, status, succeed};
use crate::support::procfs::cgroup_of;
use crate::support::scenario::{every_kind, is_exit, mark, own_task, take_through_exit};
use crate::support::sequence_numbers::SequenceNumbers;
use crate::support::sessions::fork_as;
use crate::support::stock::NO_FLAGS;
use crate::support::tracer::trace;
use crate::test;
use crate::timeouts;
use crate::wire::{
    BATCH, Event, IDENTITY, IDENTITY_MESSAGE_SIZE, Identity, LISTEN, MESSAGE_SIZE, NLMSG_DONE,
    NLMSG_EVENT, Received, mask, proc_listen,
};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_FLAGS)
    .covers(&[Line::C52])
    .of([
        test!(has_the_process[fork](mask::FORK, nothing)),
        test!(the_begin_and_the_end_of_a_thread_have_the_thread),
        test!(has_the_process[exec](mask::EXEC, exec)),
        test!(has_the_process[uid](mask::UID, change_uid)),
        test!(has_the_process[gid](mask::GID, change_gid)),
        test!(has_the_thread[uid](mask::UID, change_own_uid)),
        test!(has_the_thread[gid](mask::GID, change_own_gid)),
        test!(has_the_process[sid](mask::SID, lead)),
        test!(tracing_has_the_thread_and_the_tracer),
        test!(has_the_thread[comm](mask::COMM, rename)),
        test!(has_the_thread[coredump](mask::COREDUMP, abort)),
        test!(has_the_process[exit](mask::EXIT, nothing)),
        test!(has_the_process[session_end](mask::SESSION_END, lead)),
        test!(an_exec_by_another_thread_ends_that_thread_and_keeps_the_process)
            .covers(&[Line::C45]),
        test!(the_end_of_an_auto_reaped_child_has_its_whole_identity),
        test!(the_end_of_an_orphan_has_its_new_parent),
        test!(every_kind_of_event_has_the_cgroup_of_its_process),
        test!(a_process_that_moves_has_another_cgroup_from_then_on),
        test!(a_fork_into_a_cgroup_has_that_cgroup).covers(&[Line::C47]),
        test!(the_start_is_that_of_proc_stat),
        test!(a_thread_has_the_start_of_its_process),
        test!(a_thread_that_ends_meanwhile_has_the_start_of_its_process)
            .limit(Duration::from_secs(30)),
        test!(the_start_is_by_the_clock_of_the_listeners_time_namespace).covers(&[Line::C21]),
        test!(each_listener_gets_the_start_by_its_own_clock).covers(&[Line::C21]),
        test!(a_process_that_cannot_be_seen_has_no_number).covers(&[Line::C21]),
        test!(numbers_are_the_same_in_all_pid_namespaces)
            .limit(Duration::from_secs(20))
            .covers(&[Line::C21]),
        test!(a_late_end_differs_from_the_begin_of_the_next_process_with_its_pid),
        test!(a_late_end_in_a_container_differs_from_the_begin_of_the_next_process_with_its_pid)
            .covers(&[Line::C21]),
        test!(an_event_has_116_bytes),
        test!(an_answer_still_has_76_bytes).covers(&[Line::C19]),
        test!(the_event_before_an_identity_is_what_others_get).covers(&[Line::C3]),
        test!(each_listener_gets_the_form_that_it_asked_for).covers(&[Line::C54]),
        test!(listening_again_begins_and_ends_it_without_a_gap).covers(&[Line::C5, Line::C18]),
        test!(events_that_share_a_datagram_have_one_each).covers(&[Line::C54]),
        test!(two_hundred_containers_are_told_apart_by_their_cgroups)
            .limit(Duration::from_secs(120)),
    ]);

/// The number of a process, which is the inode number of its pidfd.
fn number(pid: i32) -> Result<u64, Failure> {
    Ok(identities::number_of(Pid::from_raw(pid))?)
}

/// The same for a thread.
fn thread_number(tid: i32) -> Result<u64, Failure> {
    Ok(identities::number_of_thread(Pid::from_raw(tid))?)
}

fn own_number() -> Result<u64, Failure> {
    number(own_pid())
}

/// What a test saw of a process.
#[derive(Clone, Copy, Debug)]
struct ProcessInfo {
    pid: i32,
    number: u64,
    cgroup: u64,
    start: u64,
}

impl ProcessInfo {
    fn of(pid: i32) -> Result<Self, Failure> {
        Ok(Self {
            pid,
            number: number(pid)?,
            cgroup: cgroup_of(pid)?,
            start: Stat::of(pid)?.start,
        })
    }

    /// The identity that an event about one of its threads has to have, see [`identities`].
    fn thread(&self, thread: u64, other: u64) -> Identity {
        Identity {
            process: self.number,
            thread,
            other,
            cgroup: self.cgroup,
            start_ns: self.start * TICK,
        }
    }

    /// The same for an event about the process, or its first thread.
    fn process(&self, other: u64) -> Identity {
        self.thread(self.number, other)
    }
}

/// The identity that follows an event, with the start to the nanosecond.
fn exact(received: &Received) -> Result<Identity, Failure> {
    let event = received.event;
    let missing = || Failure::new(format!("expected an identity of {event:?}"));
    received.identity.ok_or_else(missing)
}

/// The same, with the start rounded down to ticks, as /proc has it.
fn identity(received: &Received) -> Result<Identity, Failure> {
    let exact = exact(received)?;
    Ok(Identity {
        start_ns: exact.start_ns / TICK * TICK,
        ..exact
    })
}

/// What a listener received about a child.
struct Observation {
    info: ProcessInfo,
    /// The number of its second thread if it has one, else that of the process.
    thread: u64,
    events: Vec<Received>,
}

impl Observation {
    /// Expects exactly these identities in the events of a kind, a bit of the mask.
    #[track_caller]
    fn expect(&self, bit: u32, expected: &[Identity]) -> TestResult {
        let of_kind = self.events.iter().filter(|one| one.event.bit() == bit);
        let got = of_kind.map(identity).collect::<Result<Vec<_>, _>>()?;
        expect_eq("identities", got.as_slice(), expected)
            .map_err(|failure| failure.about(format!("{:?}", self.info)))
    }
}

/// Takes all events about a child up to its end.
fn finish(
    mut listener: Listener,
    child: Child,
    info: ProcessInfo,
) -> Result<Vec<Received>, Failure> {
    let mut events = take_through_exit(&mut listener, info.pid)?;
    let ended = child.wait()?;
    let failed = matches!(ended, WaitStatus::Exited(_, 1));
    expect(!failed, format!("the child to succeed, got {ended:?}"))?;
    events.retain(|received| received.event.subject().tgid == info.pid);
    Ok(events)
}

/// Lets a child run a function after the test has looked at it. Listens from before the child is
/// made until it has ended.
fn observe(mask: u32, function: impl FnOnce() -> TestResult) -> Result<Observation, Failure> {
    let listener = Listener::listen_with(mask | mask::EXIT, IDENTITY)?;
    let go = Gate::new()?;
    let child = child::fork(|| {
        status(|| {
            go.pass()?;
            function()
        })
    })?;
    let info = ProcessInfo::of(child.pid().as_raw())?;
    go.open(0)?;
    Ok(Observation {
        info,
        thread: info.number,
        events: finish(listener, child, info)?,
    })
}

/// As [`observe`], but a second thread of the child runs the function, after `meanwhile` was called
/// with that thread's id.
fn observe_thread(
    mask: u32,
    meanwhile: impl FnOnce(Pid) -> TestResult,
    function: impl FnOnce() -> TestResult + Send,
) -> Result<Observation, Failure> {
    let listener = Listener::listen_with(mask | mask::EXIT, IDENTITY)?;
    let (ready, go) = (Gate::new()?, Gate::new()?);
    let child = child::fork(|| {
        status(|| {
            let act = || {
                ready.open(own_tid())?;
                go.pass()?;
                function()
            };
            let ended = thread::scope(|scope| scope.spawn(act).join());
            ended.expect("the thread does not panic")
        })
    })?;
    let tid = ready.pass()?;
    let (info, thread) = (ProcessInfo::of(child.pid().as_raw())?, thread_number(tid)?);
    expect(thread != info.number, "the thread to have its own number")?;
    meanwhile(Pid::from_raw(tid))?;
    go.open(0)?;
    Ok(Observation {
        info,
        thread,
        events: finish(listener, child, info)?,
    })
}

/// Runs a program that ends immediately.
fn exec() -> TestResult {
    execv(c"/bin/sh", &[c"sh", c"-c", c"exit 0"])?;
    Ok(())
}

fn nothing() -> TestResult {
    Ok(())
}

/// The id of a user and of a group that no process has.
const ID: u32 = 4242;

fn change_uid() -> TestResult {
    Ok(setuid(Uid::from_raw(ID))?)
}

fn change_gid() -> TestResult {
    Ok(setgid(Gid::from_raw(ID))?)
}

/// Changes the calling thread's user id. The library's functions change the ids of all threads.
fn change_own_uid() -> TestResult {
    // SAFETY: The call takes a number.
    Ok(Errno::result(unsafe { libc::syscall(libc::SYS_setuid, ID) }).map(drop)?)
}

/// The same for the group id.
fn change_own_gid() -> TestResult {
    // SAFETY: The call takes a number.
    Ok(Errno::result(unsafe { libc::syscall(libc::SYS_setgid, ID) }).map(drop)?)
}

fn lead() -> TestResult {
    Ok(setsid().map(drop)?)
}

fn rename() -> TestResult {
    Ok(mark("renamed")?)
}

/// Dies of a signal that would dump core.
fn abort() -> TestResult {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(raise(Signal::SIGABRT)?)
}

/// The number of the other process in an event of this kind about a child of this process. It is 0
/// if there is none.
fn other_in(bit: u32) -> Result<u64, Failure> {
    const WITH_PARENT: u32 = mask::FORK | mask::SID | mask::COREDUMP | mask::EXIT;
    match bit & WITH_PARENT {
        0 => Ok(0),
        _ => own_number(),
    }
}

/// Expects an event about a process, or its first thread, to have the identity of the process.
fn has_the_process(bit: u32, function: fn() -> TestResult) -> TestResult {
    let observation = observe(bit, function)?;
    observation.expect(bit, &[observation.info.process(other_in(bit)?)])
}

/// The same for a second thread.
fn has_the_thread(bit: u32, function: fn() -> TestResult) -> TestResult {
    let observation = observe_thread(bit, |_| Ok(()), function)?;
    let (info, thread) = (&observation.info, observation.thread);
    observation.expect(bit, &[info.thread(thread, other_in(bit)?)])
}

fn the_begin_and_the_end_of_a_thread_have_the_thread() -> TestResult {
    let observation = observe_thread(mask::FORK | mask::EXIT, |_| Ok(()), nothing)?;
    // A thread's parent is that of its process.
    let parent = own_number()?;
    let process = observation.info.process(parent);
    let thread = observation.info.thread(observation.thread, parent);
    observation.expect(mask::FORK, &[process, thread])?;
    observation.expect(mask::EXIT, &[thread, process])
}

fn tracing_has_the_thread_and_the_tracer() -> TestResult {
    let observation = observe_thread(mask::PTRACE, trace, nothing)?;
    let attached = observation.info.thread(observation.thread, own_number()?);
    let detached = observation.info.thread(observation.thread, 0);
    observation.expect(mask::PTRACE, &[attached, detached])
}

fn an_exec_by_another_thread_ends_that_thread_and_keeps_the_process() -> TestResult {
    let observation = observe_thread(mask::EXEC, |_| Ok(()), exec)?;
    let parent = own_number()?;
    let ends = [
        // The number that vanishes is that of the thread that called exec, although the other one ended.
        observation.info.thread(observation.thread, parent),
        observation.info.process(parent),
    ];
    observation.expect(mask::EXEC, &[observation.info.process(0)])?;
    observation.expect(mask::EXIT, &ends)
}

fn the_end_of_an_auto_reaped_child_has_its_whole_identity() -> TestResult {
    let mut listener = Listener::listen_with(mask::EXIT, IDENTITY)?;
    ignore_children()?;
    let go = Gate::new()?;
    let pid = child::fork(|| i32::from(go.pass().is_err()))?.into_pid();
    let info = ProcessInfo::of(pid.as_raw())?;
    go.open(0)?;
    let end = listener.wait_for("EXIT", |received| is_exit(received, info.pid))?;
    expect_eq("identity", identity(&end)?, info.process(own_number()?))?;
    // The process is gone, so that no other interface can show its identity.
    expect_eq("wait", waitpid(pid, None), Err(Errno::ECHILD))
}

fn the_end_of_an_orphan_has_its_new_parent() -> TestResult {
    let mut listener = Listener::listen_with(mask::FORK | mask::EXIT, IDENTITY)?;
    set_child_subreaper(true)?;
    let (made, go, leave) = (Gate::new()?, Gate::new()?, Gate::new()?);
    let parent = child::fork(|| {
        status(|| {
            let orphan = child::fork(|| i32::from(go.pass().is_err()))?.into_pid();
            made.open(orphan.as_raw())?;
            leave.pass()?;
            Ok(())
        })
    })?;
    let orphan = ProcessInfo::of(made.pass()?)?;
    let first = number(parent.pid().as_raw())?;
    leave.open(0)?;
    succeed(parent)?;
    go.open(0)?;
    let pid = Pid::from_raw(orphan.pid);
    expect_eq("the end", waitpid(pid, None)?, WaitStatus::Exited(pid, 0))?;
    let mut events = take_through_exit(&mut listener, orphan.pid)?;
    events.retain(|received| received.event.subject().tgid == orphan.pid);
    let got = events.iter().map(identity).collect::<Result<Vec<_>, _>>()?;
    let expected = vec![orphan.process(first), orphan.process(own_number()?)];
    expect_eq("identities of FORK and EXIT", got, expected)
}

fn every_kind_of_event_has_the_cgroup_of_its_process() -> TestResult {
    let group = Group::new()?;
    let id = group.id()?;
    succeed(child::fork(|| {
        status(|| {
            group.enter()?;
            let mut listener = Listener::listen_with(mask::EVERYTHING, IDENTITY)?;
            let (pid, mut events) = every_kind(&mut listener)?;
            events.retain(|received| received.event.subject().tgid == pid);
            let kinds = events.iter().fold(0, |bits, one| bits | one.event.bit());
            expect_eq("kinds", kinds, mask::EVERYTHING & !mask::NONZERO_EXIT)?;
            for received in &events {
                let cgroup = exact(received)?.cgroup;
                expect_eq(received.event.kind(), cgroup, id)?;
            }
            Ok(())
        })
    })?)
}

fn a_process_that_moves_has_another_cgroup_from_then_on() -> TestResult {
    let group = Group::new()?;
    let observation = observe(mask::FORK | mask::COMM, || {
        mark("before")?;
        group.enter()?;
        Ok(mark("afterwards")?)
    })?;
    let cgroups = observation.events.iter().map(|received| {
        let cgroup = exact(received)?.cgroup;
        Ok((received.event.kind(), cgroup))
    });
    let cgroups = cgroups.collect::<Result<Vec<_>, Failure>>()?;
    let (before, after) = (observation.info.cgroup, group.id()?);
    let expected = vec![
        ("fork", before),
        ("comm", before),
        ("comm", after),
        ("exit", after),
    ];
    expect(before != after, "another cgroup")?;
    expect_eq("cgroups", cgroups, expected)
}

fn a_fork_into_a_cgroup_has_that_cgroup() -> TestResult {
    let group = Group::new()?;
    let directory = group.open()?;
    let mut listener = Listener::listen_with(mask::FORK | mask::EXIT, IDENTITY)?;
    let leave = Gate::new()?;
    let mut arguments = arguments(CLONE_INTO_CGROUP);
    arguments.cgroup = directory.as_raw_fd() as u64;
    let end = clone3(&arguments, &leave)?;
    leave.open(0)?;
    end()?;
    let own = own_task();
    let mut child = None;
    let events = listener.take_through("the child's EXIT", |received| match received.event {
        Event::Exit { parent, .. } => parent == own,
        _ => false,
    })?;
    let mut cgroups = Vec::new();
    for received in &events {
        match received.event {
            Event::Fork { parent, child: new } if parent == own => child = Some(new),
            Event::Exit { task, .. } if Some(task) == child => {}
            _ => continue,
        }
        cgroups.push((received.event.kind(), exact(received)?.cgroup));
    }
    let id = group.id()?;
    expect(id != cgroup_of(own_pid())?, "another cgroup")?;
    expect_eq("cgroups", cgroups, vec![("fork", id), ("exit", id)])
}

/// `CLOCK_BOOTTIME` in ticks.
fn boottime() -> Result<u64, Failure> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok(u64::try_from(now.as_nanos())? / TICK)
}

/// Waits until the clock shows that this process started some ticks ago.
fn grow_old() -> TestResult {
    const TICKS: u64 = 5;
    let start = Stat::of("self")?.start;
    poll_until_done(EVENT_LIMIT, || {
        let is_young = boottime()? < start + TICKS;
        Ok(is_young.then(|| "the clock to go on".to_owned()))
    })
}

fn the_start_is_that_of_proc_stat() -> TestResult {
    let observation = observe(mask::COMM, || {
        grow_old()?;
        Ok(mark("old")?)
    })?;
    // The clock has advanced since the start, and the start is not 0.
    expect(
        observation.info.start > 0,
        "a start after that of the system",
    )?;
    observation.expect(mask::COMM, &[observation.info.process(0)])?;
    observation.expect(mask::EXIT, &[observation.info.process(own_number()?)])
}

fn a_thread_has_the_start_of_its_process() -> TestResult {
    let observation = observe(mask::FORK | mask::COMM, || {
        grow_old()?;
        let young = thread::spawn(|| mark("young"));
        Ok(young.join().expect("renaming does not panic")?)
    })?;
    let (mut kinds, expected) = (Vec::new(), observation.info.start * TICK);
    for received in &observation.events {
        let Identity {
            process, thread, ..
        } = exact(received)?;
        kinds.push((received.event.kind(), thread == process));
        expect_eq("start", identity(received)?.start_ns, expected)?;
    }
    let threads = kinds.iter().filter(|(_, is_process)| !is_process);
    let threads: Vec<_> = threads.map(|(kind, _)| *kind).collect();
    expect_eq(
        "events of the thread",
        threads,
        vec!["fork", "comm", "exit"],
    )
}

/// Another thread renames the thread while it ends. The event is encoded anew for each listener, since
/// each one asked for another form than the one before.
fn a_thread_that_ends_meanwhile_has_the_start_of_its_process() -> TestResult {
    const LISTENERS: usize = 32;
    const THREADS: usize = 50;
    let mut listeners = Vec::new();
    for form in [IDENTITY, IDENTITY | BATCH]
        .into_iter()
        .cycle()
        .take(LISTENERS)
    {
        let mut listener = Listener::listen_with(mask::COMM, form)?;
        listener.take_answers()?;
        listeners.push(listener);
    }
    let mut starts = BTreeSet::new();
    for _ in 0..THREADS {
        let (begun, may_end) = (mpsc::channel(), Barrier::new(2));
        thread::scope(|scope| -> TestResult {
            scope.spawn(|| {
                let sent = begun.0.send(own_tid());
                may_end.wait();
                sent
            });
            let name = format!("/proc/self/task/{}/comm", begun.1.recv()?);
            let mut name = File::options().write(true).open(name)?;
            name.write_all(b"lives")?;
            may_end.wait();
            while name.write_all(b"ends").is_ok() {}
            Ok(())
        })?;
        for listener in &mut listeners {
            for received in listener.take_queued()? {
                starts.insert(identity(&received)?.start_ns);
            }
        }
    }
    let expected = Stat::of(own_pid())?.start * TICK;
    expect_eq("starts", starts, BTreeSet::from([expected]))
}

fn the_start_is_by_the_clock_of_the_listeners_time_namespace() -> TestResult {
    let mut outside = Listener::listen_with(mask::COMM, IDENTITY)?;
    let handover = Handover::new()?;
    let (numbers, go) = (Gate::new()?, Gate::new()?);
    let maker = with_other_clock(|| {
        handover.send(&Listener::listen_with(mask::COMM, IDENTITY)?)?;
        numbers.open(own_pid())?;
        go.pass()?;
        mark("seen twice")?;
        // The start as this process sees it. The test sees it from outside.
        numbers.open(i32::try_from(Stat::of("self")?.start)?)?;
        go.pass()?;
        Ok(())
    })?;
    let pid = numbers.pass()?;
    let mut inside = handover.receive()?;
    go.open(0)?;
    let start_inside = u64::try_from(numbers.pass()?)?;
    let start_outside = Stat::of(pid)?.start;
    go.open(0)?;
    succeed(maker)?;
    let mut starts = Vec::new();
    for listener in [&mut inside, &mut outside] {
        let comm = listener.wait_for("COMM", |received| {
            received.event.bit() == mask::COMM && received.event.subject().pid == pid
        })?;
        starts.push(exact(&comm)?.start_ns);
    }
    let ticks: Vec<_> = starts.iter().map(|start_ns| start_ns / TICK).collect();
    expect_eq("ticks", ticks, vec![start_inside, start_outside])?;
    let offset = Duration::from_nanos(starts[0].wrapping_sub(starts[1]));
    expect_eq("offset", offset, Duration::from_secs(SECONDS_AHEAD))
}

fn each_listener_gets_the_start_by_its_own_clock() -> TestResult {
    let handover = Handover::new()?;
    let mut listeners = Vec::new();
    // An event is sent to one listener after the other. The next listener must not get the encoding
    // of the one before it.
    for (flags, is_ahead) in [
        (IDENTITY, false),
        (0, true),
        (IDENTITY, false),
        (IDENTITY, true),
        (0, false),
        (IDENTITY, true),
        (IDENTITY, false),
    ] {
        let listen = || Ok::<_, Failure>(Listener::listen_with(mask::COMM, flags)?);
        let listener = match is_ahead {
            true => {
                succeed(with_other_clock(|| handover.send(&listen()?))?)?;
                handover.receive()?
            }
            false => listen()?,
        };
        listeners.push((flags, is_ahead, listener));
    }
    mark("seen by all")?;
    let own = ProcessInfo::of(own_pid())?;
    for (flags, is_ahead, mut listener) in listeners {
        let comm = listener.wait_for("COMM", |received| received.event.bit() == mask::COMM)?;
        let mut expected = own.process(0);
        if is_ahead {
            expected.start_ns += SECONDS_AHEAD * 1_000_000_000;
        }
        let expected = (flags == IDENTITY).then_some(expected);
        let got = match comm.identity {
            Some(_) => Some(identity(&comm)?),
            None => None,
        };
        expect_eq("identity", got, expected)?;
    }
    Ok(())
}

/// Takes all events of a process up to its end. Returns the kind of each, and the number of the
/// other process in it.
fn others(listener: &mut Listener, pid: i32) -> Result<Vec<(&'static str, u64)>, Failure> {
    let events = take_through_exit(listener, pid)?;
    let own = events
        .iter()
        .filter(|received| received.event.subject().tgid == pid);
    own.map(|received| Ok((received.event.kind(), exact(received)?.other)))
        .collect()
}

fn a_process_that_cannot_be_seen_has_no_number() -> TestResult {
    let container = Container::idle(PID)?;
    let asked = mask::FORK | mask::SID | mask::PTRACE | mask::COREDUMP | mask::EXIT;
    let mut inside = container.listen_by(&proc_listen(LISTEN, asked, IDENTITY))?;
    let mut outside = Listener::listen_with(asked, IDENTITY)?;
    let (ready, go) = (Gate::new()?, Gate::new()?);
    let maker = child::fork(|| {
        status(|| {
            container.enter(PID)?;
            let visitor = child::fork(|| {
                status(|| {
                    ready.open(own_pid())?;
                    go.pass()?;
                    setsid()?;
                    abort()
                })
            })?;
            let ended = WaitStatus::Signaled(visitor.pid(), Signal::SIGABRT, false);
            expect_eq("the end", visitor.wait()?, ended)
        })
    })?;
    let inner = ready.pass()?;
    let outer = container.outer(inner)?;
    let parent = number(maker.pid().as_raw())?;
    trace(Pid::from_raw(outer))?;
    go.open(0)?;
    succeed(maker)?;
    let expected = |parent, tracer| {
        vec![
            ("fork", parent),
            ("ptrace", tracer),
            ("ptrace", 0),
            ("sid", parent),
            ("coredump", parent),
            ("exit", parent),
        ]
    };
    expect_eq("inside", others(&mut inside, inner)?, expected(0, 0))?;
    let seen = expected(parent, own_number()?);
    expect_eq("outside", others(&mut outside, outer)?, seen)
}

fn numbers_are_the_same_in_all_pid_namespaces() -> TestResult {
    let handover = Handover::new()?;
    let go = Gate::new()?;
    let mut outside = Listener::listen_with(mask::EVERYTHING, IDENTITY)?;
    let container = Container::start(PID, || {
        let request = proc_listen(LISTEN, mask::EVERYTHING, IDENTITY);
        handover.listen(&request)?;
        go.pass()?;
        every_kind(&mut Listener::listen(mask::EVERYTHING)?).map(drop)
    })?;
    let mut inside = handover.receive_from(&container)?;
    let init = container.task().pid;
    let init_number = number(init)?;
    go.open(0)?;
    container.finish()?;
    let taken = [
        take_through_exit(&mut inside, 1)?,
        take_through_exit(&mut outside, init)?,
    ];
    // Only one of the listeners sees the parent of the first process.
    let of_others = |messages: &[Received], known: Option<&BTreeSet<u64>>| {
        let events = messages.iter().filter(|one| one.event.bit() != 0);
        let mut found = Vec::new();
        for received in events {
            let identity = exact(received)?;
            let is_known = known.is_none_or(|known| known.contains(&identity.process));
            if identity.process != init_number && is_known {
                found.push((received.event.kind(), identity, received.event.subject()));
            }
        }
        // Two listeners may get events in different orders if they are of two processes, and happen
        // at the same time on two CPUs. The events of one process are in the same order for both.
        found.sort_by_key(|(_, identity, _)| identity.process);
        Ok::<_, Failure>(found)
    };
    let inside = of_others(&taken[0], None)?;
    let processes = inside.iter().map(|(_, identity, _)| identity.process);
    let processes: BTreeSet<_> = processes.collect();
    let outside = of_others(&taken[1], Some(&processes))?;
    // The process that every kind of event is about, and a child of it.
    expect_eq("processes", processes.len(), 2)?;
    expect_eq("events outside", outside.len(), inside.len())?;
    for (inside, outside) in inside.iter().zip(&outside) {
        expect_eq("event", (outside.0, outside.1), (inside.0, inside.1))?;
        expect(outside.2 != inside.2, "other pids")?;
    }
    Ok(())
}

/// Whether a pid still names the process that an event was about. The interface document describes
/// this check.
fn is_still_there(received: &Received) -> Result<bool, Failure> {
    let process = exact(received)?.process;
    match identities::number_of(Pid::from_raw(received.event.subject().tgid)) {
        Ok(number) => Ok(number == process),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn a_late_end_differs_from_the_begin_of_the_next_process_with_its_pid() -> TestResult {
    let mut listener = open()?;
    listener.request(&proc_listen(LISTEN, mask::FORK | mask::EXIT, IDENTITY))?;
    let go = Gate::new()?;
    let first = child::fork(|| i32::from(go.pass().is_err()))?;
    let pid = first.pid();
    let old = number(pid.as_raw())?;
    go.open(0)?;
    succeed(first)?;
    // No process has this pid now.
    let gone = pidfd(pid).map(drop);
    expect_eq("opening a pidfd", gone, Err(Errno::ESRCH))?;
    fork_as(pid.as_raw(), timeouts::deadline(EVENT_LIMIT), || {
        i32::from(go.pass().is_err())
    })?;
    let new = number(pid.as_raw())?;
    expect(old != new, "another number")?;
    // The events that are read now were sent before.
    let mut received_kinds = Vec::new();
    for _ in 0..3 {
        let received = listener.wait_for("FORK, EXIT and FORK", |received| {
            received.event.subject().tgid == pid.as_raw()
        })?;
        let is_there = is_still_there(&received)?;
        received_kinds.push((received.event.kind(), exact(&received)?.process, is_there));
    }
    go.open(0)?;
    expect_eq("the end", waitpid(pid, None)?, WaitStatus::Exited(pid, 0))?;
    // The old process may have been reaped, and its pid reused, before its EXIT was sent.
    received_kinds.sort_unstable();
    let mut expected = vec![
        ("fork", old, false),
        ("exit", old, false),
        ("fork", new, true),
    ];
    expected.sort_unstable();
    expect_eq(
        "events (kind, process, still there)",
        received_kinds,
        expected,
    )
}

fn a_late_end_in_a_container_differs_from_the_begin_of_the_next_process_with_its_pid() -> TestResult
{
    Container::start(
        PID,
        a_late_end_differs_from_the_begin_of_the_next_process_with_its_pid,
    )?
    .finish()
}

/// A listener for COMM events with identities. The answer to its request has been read.
fn listen(flags: u32) -> Result<Listener, Failure> {
    let mut listener = Listener::listen_with(mask::COMM, IDENTITY | flags)?;
    SequenceNumbers::first(&mut listener)?;
    Ok(listener)
}

fn an_event_has_116_bytes() -> TestResult {
    let listener = listen(0)?;
    mark("long")?;
    mark("another")?;
    for _ in 0..2 {
        let mut bytes = [0; IDENTITY_MESSAGE_SIZE + 1];
        let socket = listener.as_fd().as_raw_fd();
        let length = recv(socket, &mut bytes, MsgFlags::MSG_DONTWAIT)?;
        expect_eq("bytes", length, 116)?;
        let received = Received::decode(&bytes[..length], (0, 1)).map_err(Failure::new)?;
        let (netlink, connector) = (received.message.netlink, received.message.connector);
        let lengths = (netlink.length, connector.length);
        expect_eq("lengths in the headers", lengths, (116, 80))?;
        expect_eq("type", netlink.kind, NLMSG_DONE)?;
        let own = ProcessInfo::of(own_pid())?;
        expect_eq("identity", identity(&received)?, own.process(0))?;
    }
    Ok(())
}

fn an_answer_still_has_76_bytes() -> TestResult {
    for flags in [IDENTITY, IDENTITY | BATCH] {
        let listener = Listener::listen_with(mask::COMM, flags)?;
        listener.request(&proc_listen(LISTEN, mask::COMM, flags))?;
        listener.request(&[99])?;
        for _ in 0..3 {
            let mut bytes = [0; IDENTITY_MESSAGE_SIZE + 1];
            let socket = listener.as_fd().as_raw_fd();
            let length = recv(socket, &mut bytes, MsgFlags::MSG_DONTWAIT)?;
            expect_eq("bytes", length, MESSAGE_SIZE)?;
            let received = Received::decode(&bytes[..length], (0, 1)).map_err(Failure::new)?;
            expect_eq("bit of an answer", received.event.bit(), 0)?;
        }
    }
    Ok(())
}

fn the_event_before_an_identity_is_what_others_get() -> TestResult {
    let mut with = Listener::listen_with(mask::EVERYTHING, IDENTITY)?;
    let mut without = Listener::listen(mask::EVERYTHING)?;
    let (pid, _) = every_kind(&mut Listener::listen_all()?)?;
    let mut taken = Vec::new();
    for listener in [&mut with, &mut without] {
        let mut events = take_through_exit(listener, pid)?;
        events.retain(|received| received.event.subject().tgid == pid);
        taken.push(events);
    }
    let bodies = |received: &[Received]| -> Vec<_> {
        let messages = received.iter().map(|received| received.message);
        messages
            .map(|message| (message.netlink.kind, message.connector.ack, message.body))
            .collect()
    };
    expect_eq("bytes", bodies(&taken[0]), bodies(&taken[1]))?;
    let has = |received: &Received| received.identity.is_some();
    expect(taken[0].iter().all(has), "an identity with each event")?;
    expect(
        !taken[1].iter().any(has),
        "no identity for the listener that asked for none",
    )
}

/// Expects an event in the form that these flags ask for.
#[track_caller]
fn expect_form(received: &Received, flags: u32) -> TestResult {
    let kind = match flags & BATCH {
        0 => NLMSG_DONE,
        _ => NLMSG_EVENT,
    };
    let form = (received.message.netlink.kind, received.identity.is_some());
    let expected = (kind, flags & IDENTITY != 0);
    expect_eq(&format!("form with {flags:#x}"), form, expected)
}

fn each_listener_gets_the_form_that_it_asked_for() -> TestResult {
    // Listeners in the order in which they get an event, and in the opposite order.
    let forms = [0, IDENTITY, BATCH, IDENTITY | BATCH];
    let mut listeners = Vec::new();
    for flags in forms.into_iter().chain(forms.into_iter().rev()) {
        let mut listener = Listener::listen_with(mask::COMM, flags)?;
        listener.take_queued()?;
        listeners.push((flags, listener));
    }
    let own = ProcessInfo::of(own_pid())?;
    for _ in 0..3 {
        mark("for all")?;
        for (flags, listener) in &mut listeners {
            let messages = listener.take_queued()?;
            let [event] = messages.as_slice() else {
                return Err(Failure::new(format!("one event, got {messages:?}")));
            };
            expect_form(event, *flags)?;
            if event.identity.is_some() {
                expect_eq("identity", identity(event)?, own.process(0))?;
            }
        }
    }
    Ok(())
}

fn listening_again_begins_and_ends_it_without_a_gap() -> TestResult {
    let mut listener = Listener::listen(mask::COMM)?;
    let first = SequenceNumbers::first(&mut listener)?;
    let mut events = Vec::new();
    for flags in [IDENTITY, 0, IDENTITY | BATCH, BATCH, IDENTITY, IDENTITY] {
        listener.request(&proc_listen(LISTEN, mask::COMM, flags))?;
        mark("in this form")?;
        mark("and again")?;
        let mut messages = listener.take_queued()?;
        messages.retain(|received| received.event.bit() != 0);
        expect_eq("events", messages.len(), 2)?;
        for received in &messages {
            expect_form(received, flags)?;
        }
        events.extend(messages);
    }
    expect_eq("missing numbers", first.missing(&events)?, 0)
}

fn events_that_share_a_datagram_have_one_each() -> TestResult {
    const EVENTS: usize = 300;
    /// The least number of events in a datagram, if more than that wait.
    const FULL_AT_LEAST: usize = 25;
    let listener = listen(BATCH)?;
    let own = ProcessInfo::of(own_pid())?;
    for _ in 0..EVENTS {
        mark("in a batch")?;
    }
    let datagrams = listener.take_datagrams()?;
    let lengths: Vec<_> = datagrams.iter().map(Vec::len).collect();
    println!("{lengths:?}");
    for received in datagrams.iter().flatten() {
        expect_eq("type", received.message.netlink.kind, NLMSG_EVENT)?;
        expect_eq("length", received.message.netlink.length, 116)?;
        expect_eq("identity", identity(received)?, own.process(0))?;
    }
    expect_eq("events", lengths.iter().sum(), EVENTS)?;
    // The first datagram was made for one event, when none waited. The last one may not be full.
    let [_, full @ .., _] = lengths.as_slice() else {
        return Err(Failure::new("no batches"));
    };
    let are_full = full.iter().all(|length| *length >= FULL_AT_LEAST);
    expect(are_full, format!("full datagrams, got {lengths:?}"))
}

/// How many containers are followed.
const CONTAINERS: usize = 200;

/// How many processes each of them makes.
const FORKS: usize = 5;

/// How long a container may wait until all of them are there.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

/// What was reported about a container: which processes were forked, and which ended.
#[derive(Default)]
struct Share {
    forked: BTreeSet<u64>,
    ended: BTreeSet<u64>,
    events: usize,
}

fn two_hundred_containers_are_told_apart_by_their_cgroups() -> TestResult {
    let group = Group::new()?;
    let mut cgroups = Vec::new();
    allow_descriptors(CONTAINERS)?;
    let mut listener = Listener::listen_with(mask::FORK | mask::EXIT, IDENTITY)?;
    let (ready, begin) = (Gate::new()?, Gate::new()?);
    let mut containers = Vec::new();
    // By the cgroup's id: the pid of each container's first process outside, and its number.
    let mut firsts = BTreeMap::new();
    while containers.len() < CONTAINERS && is_room()? {
        let name = format!("container-{}", containers.len());
        let cgroup = Cgroup::within(&group.directory(), &name)?;
        let id = cgroup.id()?;
        let container = Container::start(PID, || {
            cgroup.add(0)?;
            ready.open(0)?;
            begin.pass_within(timeouts::scaled(BEGIN_LIMIT))?;
            (0..FORKS).try_for_each(|_| succeed(child::fork(|| 0)?))
        })?;
        ready.pass()?;
        let first = container.task().pid;
        let known = firsts.insert(id, (first, number(first)?));
        expect_eq("another cgroup with that id", known, None)?;
        containers.push(container);
        cgroups.push(cgroup);
    }
    println!("{} containers", containers.len());
    expect(!containers.is_empty(), "memory for a container")?;
    // From here on, the containers do everything in their cgroups.
    listener.take_queued()?;
    (0..containers.len()).try_for_each(|_| begin.open(0))?;
    containers.into_iter().try_for_each(Container::finish)?;
    let mut events = Vec::new();
    for (first, _) in firsts.values() {
        let end = listener.wait_for("the end of a container", |received| {
            is_exit(received, *first)
        })?;
        events.push(end);
    }
    events.extend(listener.take_queued()?);
    let mut shares: BTreeMap<u64, Share> = BTreeMap::new();
    for received in &events {
        let Identity {
            process, cgroup, ..
        } = exact(received)?;
        let Some((first, _)) = firsts.get(&cgroup) else {
            continue;
        };
        let event = received.event;
        let is_its = event.subject().tgid == *first || event.other() == *first;
        expect(is_its, format!("events of {first}, got {event:?}"))?;
        let share = shares.entry(cgroup).or_default();
        share.events += 1;
        match event.bit() {
            mask::FORK => share.forked.insert(process),
            _ => share.ended.insert(process),
        };
    }
    for (id, (_, first)) in &firsts {
        let mut share = shares.remove(id).unwrap_or_default();
        expect_eq("processes of a container", share.forked.len(), FORKS)?;
        expect(share.ended.remove(first), "the end of the first process")?;
        expect_eq("ends", share.ended, share.forked)?;
        expect_eq("events", share.events, 2 * FORKS + 1)?;
    }
    Ok(())
}
