// SPDX-License-Identifier: GPL-2.0
//! The contents of the state (C55): the fields of each process, and the form of the messages.
//!
//! The tests compare them with what /proc and pidfds show of processes that wait meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;

use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::{Pid, setpgid, setsid};

use crate::child::{self, Gate, own_pid, own_tid};
use crate::cpus::cpus;
use crate::debugfs::Listing;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{EVENT_LIMIT, Listener};
use crate::proc_stat::{Stat, TICK};
use crate::support::cgroup::{Group, root_of};
use crate::support::container::{SECONDS_AHEAD, with_other_clock};
use crate::support::idle_processes::{MANY_IDLE, start_idle, start_many_idle};
use crate::support::polling::poll_until_done;
use crate::support::process::{pause_for_ever, succeed};
use crate::support::procfs::{
    cgroup_of, events_of_proc, identity_of, in_container, living_in_proc,
};
use crate::support::scenario::{mark, mark_on_each_cpu, own_task};
use crate::support::sequence_numbers::SequenceNumbers;
use crate::support::sessions::fork_as;
use crate::support::socket_filter::keep_bytes;
use crate::support::state_dump::{RARE, StateDump, ask, is_answer, listen, state};
use crate::support::stock::NO_STATE;
use crate::test;
use crate::timeouts;
use crate::wire::{BATCH, BATCH_SIZE, CN_PROC, Event, IDENTITY, PROCESSES, Received, Task, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_STATE)
    .covers(&[Line::C55])
    .of([
        test!(each_process_has_its_parent_session_and_group),
        test!(the_parent_is_the_thread_that_forked),
        test!(the_processes_are_those_that_proc_shows),
        test!(processes_come_by_rising_numbers),
        test!(the_answer_comes_last_and_counts_them).covers(&[Line::C19, Line::C20]),
        test!(a_process_of_many_threads_does_not_end_a_state),
        test!(a_reported_process_takes_no_number).covers(&[Line::C5, Line::C30]),
        test!(an_identity_is_what_a_pidfd_and_proc_show).covers(&[Line::C52]),
        test!(an_identity_has_the_cgroup_that_the_process_is_in).covers(&[Line::C52]),
        test!(the_start_is_by_the_clock_of_the_listener).covers(&[Line::C21, Line::C52]),
        test!(a_listener_that_did_not_ask_for_identities_gets_none).covers(&[Line::C52]),
        test!(the_state_is_the_same_for_every_mask),
        test!(events_in_between_have_datagrams_of_their_own).covers(&[Line::C5, Line::C54]),
        test!(with_a_filter_each_process_has_a_datagram),
        test!(datagrams_are_full_and_fit_into_the_buffer_of_a_batch).covers(&[Line::C54]),
    ]);

fn each_process_has_its_parent_session_and_group() -> TestResult {
    let listener = listen(RARE, 0)?;
    let grandchild = Gate::new()?;
    let own = Pid::from_raw(0);
    let kin = [
        start_idle(|| Ok(()))?,
        start_idle(|| Ok(setsid().map(drop)?))?,
        start_idle(|| Ok(setpgid(own, own)?))?,
        start_idle(|| {
            setsid()?;
            let member = start_idle(|| Ok(()))?;
            Ok(grandchild.open(member)?)
        })?,
        grandchild.pass()?,
    ];
    let dump = state(&listener)?;
    let mut sessions = BTreeSet::new();
    for pid in kin {
        let stat = Stat::of(pid)?;
        sessions.insert(stat.session);
        expect_eq("process", dump.event(pid)?, stat.process(pid))?;
    }
    let expected = BTreeSet::from([Stat::of("self")?.session, kin[1], kin[3]]);
    expect_eq("sessions", sessions, expected)?;
    let of_self = Stat::of("self")?.process(own_pid());
    expect_eq("the listener itself", dump.event(own_pid())?, of_self)
}

fn the_parent_is_the_thread_that_forked() -> TestResult {
    let listener = listen(RARE, 0)?;
    let (made, end) = (Gate::new()?, Gate::new()?);
    thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<i32, Failure> {
            // The process has its own copy of the stack, and only waits.
            let process = child::clone_with(libc::SIGCHLD, || pause_for_ever())?;
            made.open(process.into_pid().as_raw())?;
            end.pass()?;
            Ok(own_tid())
        });
        let pid = made.pass()?;
        let before = state(&listener)?.event(pid)?;
        end.open(0)?;
        let tid = thread.join().expect("forking does not panic")?;
        // The thread's children get another parent before the thread is gone.
        let task = Path::new("/proc/self/task").join(tid.to_string());
        poll_until_done(EVENT_LIMIT, || {
            Ok(task.exists().then(|| "the end of a thread".to_owned()))
        })?;
        let after = state(&listener)?.event(pid)?;
        let parent = |event: Event| match event {
            Event::Process { parent, .. } => Some(parent),
            _ => None,
        };
        let forked = Task {
            pid: tid,
            tgid: own_pid(),
        };
        let expected = (Some(forked), Some(own_task()));
        expect_eq("parents", (parent(before), parent(after)), expected)
    })
}

/// The test runs in the initial namespaces, where there are kernel threads and other processes come and
/// go.
fn the_processes_are_those_that_proc_shows() -> TestResult {
    let listener = listen(mask::FORK, PROCESSES)?;
    let before = living_in_proc()?;
    let dump = state(&listener)?;
    let after = living_in_proc()?;
    for (pid, stat) in &before {
        if after.get(pid) != Some(stat) {
            continue;
        }
        let Event::Process {
            parent,
            session,
            process_group,
            ..
        } = dump.event(*pid)?
        else {
            return Err(Failure::new("a message of the state about no process"));
        };
        let got = (parent.tgid, session, process_group);
        let expected = (stat.parent, stat.session, stat.process_group);
        let what = format!("parent, session and group of {pid}");
        expect_eq(&what, got, expected)?;
    }
    let forked = dump.others.iter().map(|other| other.event.subject().pid);
    let known: BTreeSet<_> = before.into_keys().chain(after.into_keys()).collect();
    let known: BTreeSet<_> = known.into_iter().chain(forked).collect();
    let strange = dump.pids().into_iter().find(|pid| !known.contains(pid));
    expect_eq("unknown process", strange, None)?;
    // kthreadd is the parent of all other kernel threads, and has no parent.
    const KTHREADD: i32 = 2;
    let kthreadd = Event::Process {
        task: Task::leader(KTHREADD),
        parent: Task::NONE,
        session: 0,
        process_group: 0,
    };
    expect_eq("kthreadd", dump.event(KTHREADD)?, kthreadd)?;
    let events = dump.events();
    let mut kernel_threads = events.iter().filter(|event| event.other() == KTHREADD);
    expect(kernel_threads.next().is_some(), "a kernel thread")
}

fn processes_come_by_rising_numbers() -> TestResult {
    const NUMBERS: [i32; 5] = [900, 300, 700, 301, 500];
    in_container(|| {
        for pid in NUMBERS {
            fork_as(pid, timeouts::deadline(EVENT_LIMIT), || pause_for_ever())?;
        }
        let dump = state(&listen(RARE, 0)?)?;
        expect_eq("numbers", dump.pids(), vec![1, 300, 301, 500, 700, 900])
    })
}

fn the_answer_comes_last_and_counts_them() -> TestResult {
    in_container(|| {
        let listener = listen(RARE, 0)?;
        for more in [0, 1, MANY_IDLE] {
            let before = state(&listener)?.pids().len();
            start_many_idle(more)?;
            let dump = state(&listener)?;
            expect_eq("processes", dump.pids().len(), before + more)?;
            let after = listener.receive_datagram()?.map(|after| after.len());
            expect_eq("messages after the answer", after, None)?;
        }
        Ok(())
    })
}

/// The walk looks at some ids at a time. These include the ids of threads, which are in no message.
fn a_process_of_many_threads_does_not_end_a_state() -> TestResult {
    in_container(|| {
        start_idle(|| {
            for _ in 0..MANY_IDLE {
                thread::Builder::new().spawn(|| pause_for_ever())?;
            }
            Ok(())
        })?;
        let last = start_idle(|| Ok(()))?;
        let pids = state(&listen(RARE, 0)?)?.pids();
        expect(pids.contains(&last), format!("{last} in {pids:?}"))
    })
}

fn a_reported_process_takes_no_number() -> TestResult {
    in_container(|| {
        let mut listener = Listener::listen(mask::COMM)?;
        let first = SequenceNumbers::first(&mut listener)?;
        start_many_idle(MANY_IDLE)?;
        let events = 4 * cpus()?.len();
        mark_on_each_cpu(1)?;
        let mut dump = StateDump::default();
        ask(&listener)?;
        mark_on_each_cpu(1)?;
        dump.read(&listener)?;
        mark_on_each_cpu(1)?;
        let mut dump = dump.finish(&listener)?;
        mark_on_each_cpu(1)?;
        dump.others.extend(listener.take_queued()?);
        expect_eq("events", dump.others.len(), events)?;
        expect_eq("missing numbers", first.missing(&dump.others)?, 0)?;
        let line = Listing::of(listener.port_id()?)?;
        let account = (line.delivered, line.lost);
        expect_eq("delivered and lost", account, (events as u64, 0))
    })
}

fn an_identity_is_what_a_pidfd_and_proc_show() -> TestResult {
    in_container(|| {
        let made = Gate::new()?;
        for _ in 0..3 {
            start_idle(|| Ok(made.open(start_idle(|| Ok(()))?)?))?;
            made.pass()?;
        }
        let dump = state(&listen(RARE, IDENTITY)?)?;
        expect_eq("processes", dump.pids().len(), 7)?;
        let mut numbers = BTreeSet::new();
        for pid in dump.pids() {
            let (got, expected) = (dump.identity(pid)?, identity_of(pid)?);
            expect_eq(&format!("identity of {pid}"), got, expected)?;
            numbers.insert(got.process);
        }
        expect_eq("different numbers", numbers.len(), 7)
    })
}

fn an_identity_has_the_cgroup_that_the_process_is_in() -> TestResult {
    let group = Group::new()?;
    let listener = listen(RARE, IDENTITY)?;
    let (mover, other) = (start_idle(|| Ok(()))?, start_idle(|| Ok(()))?);
    let outside = cgroup_of(own_pid())?;
    let cgroups = || -> Result<_, Failure> {
        let dump = state(&listener)?;
        Ok([mover, other].map(|pid| dump.identity(pid).map(|identity| identity.cgroup).ok()))
    };
    expect_eq("cgroups", cgroups()?, [Some(outside); 2])?;
    let procs = group.directory().join("cgroup.procs");
    fs::write(procs, mover.to_string())?;
    let inside = cgroups()?;
    // The process moves back, so that the group is empty.
    fs::write(root_of(&group), mover.to_string())?;
    expect_eq("cgroups", inside, [Some(group.id()?), Some(outside)])?;
    expect_eq("cgroups", cgroups()?, [Some(outside); 2])
}

/// The test runs in a time namespace whose clock is ahead.
fn the_start_is_by_the_clock_of_the_listener() -> TestResult {
    let look = || {
        let dump = state(&listen(RARE, IDENTITY)?)?;
        let start = Stat::of("self")?.start;
        let dump = dump.identity(own_pid())?.start_ns;
        expect_eq("start in ticks", dump / TICK, start)?;
        expect(dump / 1_000_000_000 >= SECONDS_AHEAD, "a clock ahead")
    };
    succeed(with_other_clock(look)?)
}

fn a_listener_that_did_not_ask_for_identities_gets_none() -> TestResult {
    in_container(|| {
        start_many_idle(10)?;
        let with = state(&listen(RARE, IDENTITY)?)?;
        let without = state(&listen(RARE, 0)?)?;
        expect_eq("processes", without.events(), with.events())?;
        let has = |received: &Received| received.identity.is_some();
        expect(with.messages().all(has), "an identity for each process")?;
        expect(!without.messages().any(has), "no identity")
    })
}

fn the_state_is_the_same_for_every_mask() -> TestResult {
    in_container(|| {
        start_many_idle(10)?;
        let expected = events_of_proc()?;
        for mask in [
            mask::FORK | mask::EXIT,
            mask::COMM,
            mask::SESSION_END,
            mask::NONZERO_EXIT,
            mask::ALL,
        ] {
            for flags in [0, PROCESSES, BATCH, IDENTITY, PROCESSES | IDENTITY | BATCH] {
                let dump = state(&listen(mask, flags)?)?;
                let what = format!("processes for mask {mask:#010x} and flags {flags:#x}");
                expect_eq(&what, dump.events(), expected.clone())?;
            }
        }
        Ok(())
    })
}

fn events_in_between_have_datagrams_of_their_own() -> TestResult {
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        for flags in [BATCH, BATCH | IDENTITY] {
            let mut listener = listen(mask::COMM, flags)?;
            let mut dump = StateDump::default();
            let mut marks = 0;
            ask(&listener)?;
            // `StateDump::read` fails if a datagram has both parts of the state and events.
            loop {
                mark("in between")?;
                mark("and another")?;
                marks += 2;
                if dump.read(&listener)? {
                    break;
                }
            }
            let mut dump = dump.finish(&listener)?;
            dump.others.extend(listener.take_queued()?);
            let is_event = |received: &Received| received.event.bit() == mask::COMM;
            expect(dump.others.iter().all(is_event), "renames in between")?;
            expect_eq("events", dump.others.len(), marks)?;
            expect_eq("processes", dump.pids().len(), MANY_IDLE + 1)?;
        }
        Ok(())
    })
}

fn with_a_filter_each_process_has_a_datagram() -> TestResult {
    in_container(|| {
        start_many_idle(20)?;
        for flags in [0, IDENTITY] {
            let listener = listen(RARE, flags)?;
            let expected = state(&listener)?.events();
            keep_bytes(&listener, u32::MAX)?;
            let dump = state(&listener)?;
            expect_eq("processes", dump.events(), expected)?;
            let alone = dump.datagrams.iter().all(|datagram| datagram.len() == 1);
            expect(alone, "one process per datagram")?;
        }
        Ok(())
    })
}

/// Reads a state into a buffer of this size. Returns how many messages each datagram had.
fn lengths(listener: &Listener, room: usize) -> Result<Vec<usize>, Failure> {
    let mut bytes = vec![0; room];
    let mut lengths = Vec::new();
    ask(listener)?;
    loop {
        // This is the length of the datagram, even if the buffer is shorter.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let length = recv(listener.as_fd().as_raw_fd(), &mut bytes, flags)?;
        expect(
            length <= BATCH_SIZE,
            format!("{BATCH_SIZE} bytes at most, got {length}"),
        )?;
        let messages = Received::decode_all(&bytes[..length], (0, CN_PROC));
        let messages = messages.map_err(Failure::new)?;
        if messages.iter().any(is_answer) {
            expect_eq("messages in the datagram of the answer", messages.len(), 1)?;
            return Ok(lengths);
        }
        lengths.push(messages.len());
    }
}

fn datagrams_are_full_and_fit_into_the_buffer_of_a_batch() -> TestResult {
    /// How many messages a datagram has at least, unless it is the last.
    const FULL: [(u32, usize); 2] = [(0, 40), (IDENTITY, 25)];
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        for (flags, full) in FULL {
            for room in [BATCH_SIZE, 1 << 15, 1 << 17] {
                let listener = listen(RARE, flags)?;
                // The size of the datagrams depends on the buffers of earlier reads.
                for _ in 0..2 {
                    let lengths = lengths(&listener, room)?;
                    let what = format!("processes read with {room} bytes");
                    expect_eq(&what, lengths.iter().sum(), MANY_IDLE + 1)?;
                    let [before @ .., _] = lengths.as_slice() else {
                        return Err(Failure::new("no datagrams"));
                    };
                    let are_full = before.iter().all(|length| *length >= full);
                    expect(are_full, format!("full datagrams, got {lengths:?}"))?;
                }
            }
        }
        Ok(())
    })
}
