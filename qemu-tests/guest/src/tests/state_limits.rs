// SPDX-License-Identifier: GPL-2.0
//! The state (C55) when something fails or ends: bad requests, a listener, a reader or a namespace
//! that ends in the middle, a listener that never reads, and no memory. No other listener waits, and
//! nothing is left behind.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::unshare;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::wait::WaitStatus;
use nix::unistd::setsid;
use zerocopy::IntoBytes;

use crate::child::{self, Child, Gate};
use crate::debugfs::Listing;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::cgroup::known_flags;
use crate::support::container::{self, ALL, Container, Handover, NET, PID, USER};
use crate::support::ends::ENDS;
use crate::support::fault_injection::FailNth;
use crate::support::idle_processes::{MANY_IDLE, start_many_idle};
use crate::support::memory::{expect_growth_below, used_kb};
use crate::support::module::{self, ModuleGuard, expect_references};
use crate::support::namespace_user::NamespaceUser;
use crate::support::process::{pause_for_ever, status, succeed};
use crate::support::procfs::in_container;
use crate::support::scenario::{ACK, SEQ, expect_count, mark};
use crate::support::sender::{OUTER_ROOT, ROOT, Sender, receive};
use crate::support::state_dump::{RARE, StateDump, ask, is_without_memory, listen, state};
use crate::support::stock::NO_STATE;
use crate::test;
use crate::timeouts;
use crate::wire::{
    BATCH, BATCH_SIZE, CGROUP, CN_PROC, Event, IDENTITY, LISTEN, Received, STATE, mask,
    proc_listen, proc_listen_in,
};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_STATE)
    .covers(&[Line::C55])
    .of([
        test!(a_request_has_4_bytes_or_24_and_more).covers(&[Line::C20, Line::C50]),
        test!(unknown_values_in_a_request_are_refused).covers(&[Line::C20, Line::C50]),
        test!(other_fields_of_a_request_have_no_effect).covers(&[Line::C50]),
        test!(a_socket_that_does_not_listen_gets_no_state).covers(&[Line::C19, Line::C24]),
        test!(a_second_request_is_refused_until_the_answer).covers(&[Line::C19]),
        test!(a_listener_that_ends_in_the_middle_cuts_it_off).covers(&[
            Line::C18,
            Line::C19,
            Line::C27,
        ]),
        test!(a_listener_that_begins_anew_gets_a_state_of_its_own).covers(&[Line::C18]),
        test!(listening_again_changes_nothing_of_a_state).covers(&[Line::C18]),
        test!(a_state_keeps_the_module_until_its_answer_or_the_close).covers(&[Line::C32]),
        test!(a_reader_that_is_killed_leaves_nothing).covers(&[Line::C27, Line::C32]),
        test!(a_listener_that_never_reads_delays_no_other)
            .limit(LIMIT)
            .covers(&[Line::C57]),
        test!(two_readers_share_a_state).limit(LIMIT),
        test!(a_state_keeps_little_of_its_request).covers(&[Line::C58]),
        test!(events_have_room_beside_a_state).covers(&[Line::C6]),
        test!(a_reader_that_peeks_loses_nothing),
        test!(the_smallest_buffer_has_room_for_it),
        test!(a_namespace_that_ends_in_the_middle_ends_it)
            .limit(LIMIT)
            .covers(&[Line::C25]),
        test!(states_that_were_given_up_leave_no_namespace)
            .limit(LIMIT)
            .covers(&[Line::C25]),
        test!(it_is_from_root_of_the_listeners_users).covers(&[Line::C48]),
        test!(a_request_without_memory_gets_an_answer_or_an_error).covers(&[Line::C19]),
    ]);

const LIMIT: Duration = Duration::from_secs(60);

/// Sends a request, and takes its answer, which has to be there. Returns the errno.
#[track_caller]
fn answer(listener: &Listener, data: &[u8]) -> Result<u32, Failure> {
    const OTHER_SEQ: u32 = 7;
    listener.send(data, OTHER_SEQ, 0)?;
    let answer = listener.receive_datagram()?;
    match answer.as_deref() {
        Some([answer]) if answer.message.connector.seq == OTHER_SEQ => match answer.event {
            Event::Ack { err } => Ok(err),
            event => Err(Failure::new(format!("an answer, got {event:?}"))),
        },
        other => Err(Failure::new(format!("an answer, got {other:?}"))),
    }
}

#[track_caller]
fn expect_refused(listener: &Listener, data: &[u8], expected: Errno) -> TestResult {
    let what = format!("answer to {} bytes, {data:?}", data.len());
    expect_eq(&what, answer(listener, data)?, expected as u32)
}

/// Expects a request with this data to be answered with the state.
fn expect_state(listener: &Listener, data: &[u8]) -> TestResult {
    listener.send(data, SEQ, ACK)?;
    let dump = StateDump::default().finish(listener)?;
    expect_eq("err", dump.err(), Some(0))?;
    expect_eq("processes", dump.pids(), vec![1])
}

fn a_request_has_4_bytes_or_24_and_more() -> TestResult {
    Container::start(PID, || {
        let listener = listen(RARE, 0)?;
        let request = proc_listen(STATE, 0, 0);
        for length in (0..=64).chain([4096, 16384 - 20]) {
            let mut data = request.as_bytes().to_vec();
            data.resize(length, 0);
            match length {
                4 | 24.. => expect_state(&listener, &data)?,
                _ => expect_refused(&listener, &data, Errno::EINVAL)?,
            }
        }
        Ok(())
    })?
    .finish()
}

fn unknown_values_in_a_request_are_refused() -> TestResult {
    let known = known_flags();
    let mut requests = vec![[STATE, 0].as_bytes().to_vec()];
    for bit in 0..u32::BITS {
        if known & 1 << bit == 0 {
            requests.push(proc_listen(STATE, 0, 1 << bit).as_bytes().to_vec());
        }
        let mut reserved = proc_listen(STATE, 0, 0);
        reserved[3] = 1 << bit;
        requests.push(reserved.as_bytes().to_vec());
    }
    for bit in 0..u64::BITS {
        let flags = known & !CGROUP;
        let cgroup = proc_listen_in(STATE, 0, flags, 1 << bit);
        requests.push(cgroup.as_bytes().to_vec());
    }
    for length in 25..64 {
        let mut longer = proc_listen(STATE, 0, 0).as_bytes().to_vec();
        longer.resize(length, 0);
        longer[length - 1] = 1;
        requests.push(longer);
    }
    // On a socket that listens, and on one that does not.
    for listener in [listen(RARE, 0)?, container::open()?] {
        for data in &requests {
            expect_refused(&listener, data, Errno::EINVAL)?;
        }
    }
    let line = Listing::read()?.lines;
    expect_eq("listeners left", line.len(), 0)
}

fn other_fields_of_a_request_have_no_effect() -> TestResult {
    Container::start(PID, || {
        let listener = listen(RARE, 0)?;
        for mask in [0, mask::ALL, mask::SID, mask::EVERYTHING] {
            for flags in (0..16).filter(|flags| flags & !known_flags() == 0) {
                let cgroup_id = match flags & CGROUP {
                    0 => 0,
                    // No cgroup has this id.
                    _ => u64::MAX,
                };
                let request = proc_listen_in(STATE, mask, flags, cgroup_id);
                expect_state(&listener, request.as_bytes())?;
            }
        }
        // The mask and the form of messages stay the same.
        mark("not received")?;
        let messages = listener.receive_datagram()?.map(|datagram| datagram.len());
        expect_eq("messages", messages, None)
    })?
    .finish()
}

fn a_socket_that_does_not_listen_gets_no_state() -> TestResult {
    let requests = [
        STATE.as_bytes().to_vec(),
        proc_listen(STATE, 0, 0).as_bytes().to_vec(),
    ];
    let expect_nothing = |listener: &Listener| -> TestResult {
        for request in &requests {
            expect_refused(listener, request, Errno::ENOTCONN)?;
        }
        let more = listener.receive_datagram()?.map(|datagram| datagram.len());
        expect_eq("messages", more, None)
    };
    expect_nothing(&container::open()?)?;
    for end in ENDS {
        let mut listener = listen(RARE, 0)?;
        end(&mut listener)?;
        listener.take_queued()?;
        expect_nothing(&listener)?;
    }
    expect_count(0)
}

fn a_second_request_is_refused_until_the_answer() -> TestResult {
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        let listener = listen(RARE, 0)?;
        ask(&listener)?;
        listener.ask_for_state(1)?;
        let mut dump = StateDump::default();
        dump.read(&listener)?;
        // A request of another process with the same socket is also refused.
        succeed(child::fork(|| status(|| Ok(listener.ask_for_state(2)?)))?)?;
        let dump = dump.finish(&listener)?;
        expect_eq("err", dump.err(), Some(0))?;
        expect_eq("processes", dump.pids().len(), MANY_IDLE + 1)?;
        let refused: Vec<_> = dump
            .others
            .iter()
            .map(|other| (other.message.connector.seq, other.event))
            .collect();
        let err = Errno::EBUSY as u32;
        let expected = [1, 2].map(|seq| (seq, Event::Ack { err }));
        expect_eq("other answers", refused, expected.to_vec())?;
        let again = state(&listener)?;
        expect_eq("processes, again", again.pids(), dump.pids())
    })
}

/// Begins a state that takes several datagrams, and reads the first of them.
#[track_caller]
fn begin(listener: &Listener) -> Result<StateDump, Failure> {
    let mut dump = StateDump::default();
    ask(listener)?;
    let is_over = dump.read(listener)?;
    expect(!is_over && dump.datagrams.len() == 1, "a piece of a state")?;
    Ok(dump)
}

/// Reads the rest of a state that was cut off.
#[track_caller]
fn finish_cut_off(dump: StateDump, listener: &Listener) -> Result<StateDump, Failure> {
    let dump = dump.finish(listener)?;
    expect_eq("err", dump.err(), Some(Errno::ECANCELED as u32))?;
    let count = dump.pids().len();
    expect(count < MANY_IDLE, format!("not all, got {count}"))?;
    Ok(dump)
}

fn a_listener_that_ends_in_the_middle_cuts_it_off() -> TestResult {
    start_many_idle(MANY_IDLE)?;
    for end in ENDS {
        let mut listener = listen(RARE, 0)?;
        let dump = begin(&listener)?;
        end(&mut listener)?;
        expect_count(0)?;
        let dump = finish_cut_off(dump, &listener)?;
        // There may be an answer to IGNORE.
        let done = |other: &Received| other.event == Event::Ack { err: 0 };
        expect(dump.others.iter().all(done), "only answers of success")?;
        expect_refused(&listener, STATE.as_bytes(), Errno::ENOTCONN)?;
    }
    Ok(())
}

fn a_listener_that_begins_anew_gets_a_state_of_its_own() -> TestResult {
    start_many_idle(MANY_IDLE)?;
    for flags in [0, IDENTITY] {
        let listener = listen(RARE, IDENTITY)?;
        let dump = begin(&listener)?;
        listener.ignore()?;
        listener.request(&proc_listen(LISTEN, RARE, flags))?;
        // The first state has not ended.
        listener.ask_for_state(1)?;
        let dump = finish_cut_off(dump, &listener)?;
        let answers: Vec<_> = dump.others.iter().map(|other| other.event).collect();
        let expected = [0, 0, Errno::EBUSY as u32].map(|err| Event::Ack { err });
        expect_eq("other answers", answers, expected.to_vec())?;
        let dump = state(&listener)?;
        expect(dump.pids().len() > MANY_IDLE, "a whole state")?;
        let has = |received: &Received| received.identity.is_some() == (flags == IDENTITY);
        expect(dump.messages().all(has), "the form that was asked for last")?;
    }
    Ok(())
}

fn listening_again_changes_nothing_of_a_state() -> TestResult {
    start_many_idle(MANY_IDLE)?;
    for (before, after) in [(0, IDENTITY), (IDENTITY, 0)] {
        let listener = listen(RARE, before)?;
        let dump = begin(&listener)?;
        listener.request(&proc_listen(LISTEN, RARE, after))?;
        let dump = dump.finish(&listener)?;
        expect_eq("err", dump.err(), Some(0))?;
        expect(dump.pids().len() > MANY_IDLE, "a whole state")?;
        for (dump, flags) in [(dump, before), (state(&listener)?, after)] {
            let has = |received: &Received| received.identity.is_some() == (flags == IDENTITY);
            expect(dump.messages().all(has), "the form that it began with")?;
        }
    }
    Ok(())
}

fn a_state_keeps_the_module_until_its_answer_or_the_close() -> TestResult {
    module::needed()?;
    start_many_idle(MANY_IDLE)?;
    let listener = listen(RARE, 0)?;
    expect_references(1)?;
    let dump = begin(&listener)?;
    expect_references(2)?;
    dump.finish(&listener)?;
    expect_references(1)?;
    // The listener ends while the state waits to be read.
    begin(&listener)?;
    listener.ignore()?;
    expect_references(1)?;
    let refused = ModuleGuard::unloaded().is_err();
    expect(refused, "unloading to be refused while a state is sent")?;
    drop(listener);
    expect_references(0)?;
    drop(ModuleGuard::unloaded()?);
    // The state and its listener end together.
    let listener = listen(RARE, 0)?;
    begin(&listener)?;
    expect_references(2)?;
    drop(listener);
    expect_references(0)?;
    expect_count(0)
}

fn a_reader_that_is_killed_leaves_nothing() -> TestResult {
    const READERS: usize = 10;
    start_many_idle(MANY_IDLE)?;
    for _ in 0..READERS {
        let begun = Gate::new()?;
        let reader = child::fork(|| {
            status(|| {
                let listener = listen(RARE, BATCH)?;
                let mut dump = begin(&listener)?;
                begun.open(0)?;
                // It keeps reading states and requesting more.
                loop {
                    dump.finish(&listener)?;
                    dump = begin(&listener)?;
                }
            })
        })?;
        begun.pass()?;
        let pid = reader.pid();
        kill(pid, Signal::SIGKILL)?;
        let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
        expect_eq("the end of a reader", reader.wait()?, killed)?;
        expect_references(0)?;
        expect_count(0)?;
    }
    Ok(())
}

/// How many bytes a socket has in its receive buffer, with the kernel's overhead.
fn taken(port_id: u32) -> Result<usize, Failure> {
    const FILE: &str = "/proc/net/netlink";
    let text = fs::read_to_string(FILE)?;
    let connector = nix::libc::NETLINK_CONNECTOR.to_string();
    let line = text.lines().find(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(&connector) && words.next() == Some(&port_id.to_string())
    });
    let taken = line.and_then(|line| line.split_whitespace().nth(4));
    let missing = || Failure::new(format!("{port_id} in {FILE}: {text}"));
    Ok(taken.ok_or_else(missing)?.parse()?)
}

fn a_listener_that_never_reads_delays_no_other() -> TestResult {
    const ROUNDS: usize = 100;
    /// More than a datagram takes.
    const ROOM: usize = 16 << 10;
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        let stuck = listen(mask::COMM, 0)?;
        ask(&stuck)?;
        let taken = taken(stuck.port_id()?)?;
        let is_little = taken > 0 && taken < ROOM;
        expect(is_little, format!("one datagram, got {taken} bytes"))?;
        let mut other = listen(mask::COMM | mask::SID, BATCH)?;
        let started = Instant::now();
        for _ in 0..ROUNDS {
            let dump = state(&other)?;
            expect_eq("processes", dump.pids().len(), MANY_IDLE + 1)?;
            mark("for both")?;
            succeed(child::fork(|| i32::from(setsid().is_err()))?)?;
            expect_eq("events", other.take_queued()?.len(), 2)?;
            drop(listen(RARE, 0)?);
        }
        println!("{ROUNDS} rounds in {:?}", started.elapsed());
        expect_references(3)?;
        // The state of the other listener goes on where it was.
        let mut dump = StateDump::default().finish(&stuck)?;
        expect_eq("processes", dump.pids().len(), MANY_IDLE + 1)?;
        while let Some(datagram) = stuck.receive_datagram()? {
            dump.others.extend(datagram);
        }
        expect_eq("events", dump.others.len(), ROUNDS)
    })
}

/// One of the readers makes the kernel send the last part, and then the other one finds nothing to do. Since
/// events come, too, one reader may make the kernel send a part while it does so for the other one.
fn two_readers_share_a_state() -> TestResult {
    const ROUNDS: usize = 1000;
    /// Enough for two datagrams.
    const IDLE: usize = 60;
    /// How many events may be unread: far fewer than the receive buffer has room for.
    const UNREAD: usize = 8;
    in_container(|| {
        start_many_idle(IDLE)?;
        let listener = listen(mask::COMM, 0)?;
        let (raised, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for _ in 0..ROUNDS {
            let deadline = timeouts::deadline(LIMIT);
            let is_over = AtomicBool::new(false);
            let read = || -> Result<Vec<Received>, Failure> {
                let mut messages = Vec::new();
                while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
                    let datagram = listener.receive_datagram()?.unwrap_or_default();
                    let has_answer = datagram
                        .iter()
                        .any(|one| one.event == Event::Ack { err: 0 });
                    is_over.fetch_or(has_answer, Ordering::Relaxed);
                    let events = datagram.iter().filter(|one| one.event.bit() == mask::COMM);
                    taken.fetch_add(events.count(), Ordering::Relaxed);
                    messages.extend(datagram);
                }
                Ok(messages)
            };
            listener.ask_for_state(0)?;
            let mut messages = thread::scope(|scope| -> Result<_, Failure> {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
                        if raised.load(Ordering::Relaxed) < taken.load(Ordering::Relaxed) + UNREAD {
                            mark("busy")?;
                            raised.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok::<_, Errno>(())
                });
                let other = scope.spawn(read);
                let mut messages = read()?;
                messages.extend(other.join().expect("reading does not panic")?);
                Ok(messages)
            })?;
            messages.retain(|one| matches!(one.event, Event::Process { .. }));
            let mut pids: Vec<_> = messages.iter().map(|one| one.event.subject().pid).collect();
            pids.sort_unstable();
            pids.dedup();
            expect_eq("processes", pids.len(), IDLE + 1)?;
            expect_eq("messages about processes", messages.len(), pids.len())?;
        }
        Ok(())
    })
}

fn a_state_keeps_little_of_its_request() -> TestResult {
    const SOCKETS: usize = 64;
    /// Less than the default send buffer.
    const DATAGRAM: usize = 160 << 10;
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        let mut request = Listener::request_datagram(STATE.as_bytes(), SEQ, ACK);
        request.resize(DATAGRAM, 0);
        let before = used_kb()?;
        let mut listeners = Vec::new();
        for _ in 0..SOCKETS {
            let listener = listen(RARE, 0)?;
            listener.send_datagram(&request)?;
            listeners.push(listener);
        }
        // The first datagrams of the answers take memory, too: 25 kB each on a kernel with KASAN.
        let most = (SOCKETS * (DATAGRAM >> 10) / 2) as i64;
        let growth = expect_growth_below(most, before, "after large requests")?;
        println!("{growth} kB more in use");
        for listener in listeners {
            let dump = StateDump::default().finish(&listener)?;
            expect_eq("processes", dump.pids().len(), MANY_IDLE + 1)?;
        }
        Ok(())
    })
}

fn events_have_room_beside_a_state() -> TestResult {
    /// What the answer is read into, more than a datagram of a state.
    const LARGE: usize = 64 << 10;
    /// Room for two datagrams of a state and for the events.
    const ROOM: usize = 12 << 10;
    const EVENTS: usize = 4;
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        let listener = container::open()?;
        listener.request(&proc_listen(LISTEN, mask::COMM, BATCH))?;
        let flags = MsgFlags::MSG_DONTWAIT;
        recv(listener.as_fd().as_raw_fd(), &mut [0; LARGE], flags)?;
        setsockopt(&listener, sockopt::RcvBuf, &(ROOM / 2))?;
        let mut dump = begin(&listener)?;
        let mut marks = 0;
        while !dump.read(&listener)? {
            for _ in 0..EVENTS {
                mark("beside a state")?;
                marks += 1;
            }
        }
        let rest = listener.take_datagrams()?.concat();
        expect_eq("events", dump.others.len() + rest.len(), marks)
    })
}

fn a_reader_that_peeks_loses_nothing() -> TestResult {
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        let listener = listen(RARE, 0)?;
        ask(&listener)?;
        let mut dump = StateDump::default();
        loop {
            // Each look may make the kernel queue another piece.
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
            let socket = listener.as_fd().as_raw_fd();
            let length = recv(socket, &mut [0; 16], flags)?;
            expect(length <= BATCH_SIZE, format!("a datagram, got {length}"))?;
            if dump.read(&listener)? {
                break;
            }
        }
        let dump = dump.finish(&listener)?;
        expect_eq("processes", dump.pids().len(), MANY_IDLE + 1)
    })
}

fn the_smallest_buffer_has_room_for_it() -> TestResult {
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        for flags in [0, IDENTITY] {
            let listener = listen(RARE, flags)?;
            setsockopt(&listener, sockopt::RcvBuf, &0)?;
            let dump = state(&listener)?;
            expect_eq("processes", dump.pids().len(), MANY_IDLE + 1)?;
        }
        Ok(())
    })
}

/// A container of a user, with many idle processes, and a listener that has asked for the state.
struct UserContainer {
    maker: Child,
    leave: Gate,
    listener: Listener,
    dump: StateDump,
}

impl UserContainer {
    fn new(user: &NamespaceUser) -> Result<Self, Failure> {
        let (begun, leave, handover) = (Gate::new()?, Gate::new()?, Handover::new()?);
        let maker = user.spawn(|| {
            // The namespaces that are counted have to be made in this process.
            unshare(USER)?;
            let container = Container::start(PID | NET, || {
                start_many_idle(MANY_IDLE)?;
                let listener = listen(mask::FORK | mask::EXIT, IDENTITY | BATCH)?;
                handover.send(&listener)?;
                begun.open(0)?;
                pause_for_ever()
            })?;
            leave.pass()?;
            container.kill()
        })?;
        begun.pass()?;
        let listener = handover.receive()?;
        Ok(Self {
            dump: begin(&listener)?,
            maker,
            leave,
            listener,
        })
    }
}

fn a_namespace_that_ends_in_the_middle_ends_it() -> TestResult {
    let user = NamespaceUser::new()?;
    let UserContainer {
        maker,
        leave,
        listener,
        dump,
    } = UserContainer::new(&user)?;
    leave.open(0)?;
    succeed(maker)?;
    let dump = dump.finish(&listener)?;
    expect_eq("err", dump.err(), Some(0))?;
    let count = dump.pids().len();
    expect(count < MANY_IDLE, format!("not all, got {count}"))?;
    let dump = state(&listener)?;
    expect_eq("processes that are left", dump.pids(), vec![])?;
    expect_count(1)?;
    drop(listener);
    expect_count(0)?;
    user.expect_nothing_left()
}

fn states_that_were_given_up_leave_no_namespace() -> TestResult {
    const ROUNDS: usize = 6;
    let user = NamespaceUser::new()?;
    for round in 0..ROUNDS {
        let user_container = UserContainer::new(&user)?;
        // The listener ends before the namespace, or the socket is closed with it or after it.
        if round % 3 == 0 {
            user_container.listener.ignore()?;
        }
        let kept = (round % 3 != 1).then_some(user_container.listener);
        user_container.leave.open(0)?;
        succeed(user_container.maker)?;
        drop(kept);
        expect_count(0)?;
        expect_references(0)?;
    }
    user.expect_nothing_left()
}

/// Reads a state from a socket with `SO_PASSCRED`, and expects all messages to be from this sender.
#[track_caller]
fn expect_all_from(listener: &Listener, expected: Sender) -> TestResult {
    let mut datagrams = 0;
    while let Some((bytes, sender)) = receive(listener, BATCH_SIZE)? {
        let messages = Received::decode_all(&bytes, (0, CN_PROC)).map_err(Failure::new)?;
        expect_eq(&format!("sender of {messages:?}"), sender, expected)?;
        datagrams += 1;
    }
    // Several pieces, and the answer.
    expect(datagrams > 2, "a state")
}

fn it_is_from_root_of_the_listeners_users() -> TestResult {
    let handover = Handover::new()?;
    let dump = || -> Result<Listener, Failure> {
        let listener = listen(RARE, 0)?;
        setsockopt(&listener, sockopt::PassCred, &true)?;
        ask(&listener)?;
        Ok(listener)
    };
    let container = Container::start(ALL, || {
        start_many_idle(MANY_IDLE)?;
        expect_all_from(&dump()?, ROOT)?;
        handover.send(&dump()?)?;
        pause_for_ever()
    })?;
    expect_all_from(&handover.receive_from(&container)?, OUTER_ROOT)?;
    start_many_idle(MANY_IDLE)?;
    expect_all_from(&dump()?, ROOT)
}

/// Lets each allocation fail in turn while the state is requested. Either sending the request fails, or
/// there is something to read.
fn a_request_without_memory_gets_an_answer_or_an_error() -> TestResult {
    let faults = FailNth::of_slabs()?;
    let (mut failures, mut answers) = (0, 0);
    for nth in 1.. {
        let listener = listen(RARE, 0)?;
        let (sent, failed) = faults.run(nth, || ask(&listener).is_ok())?;
        expect(sent || failed, "a request to be sent")?;
        if sent {
            // An answer, a piece, or an error.
            let has_result = match listener.receive_datagram() {
                Ok(datagram) => datagram.is_some(),
                Err(error) => failed && is_without_memory(&error),
            };
            let what = format!("an answer, a piece or an error, with failure {nth}");
            expect(has_result, what)?;
            answers += usize::from(failed);
        }
        drop(listener);
        expect_references(0)?;
        if !failed {
            break;
        }
        failures += 1;
    }
    println!("{failures} allocations failed, {answers} of them when the request was sent");
    expect(failures > 0, "an allocation to fail")
}
