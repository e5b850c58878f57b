// SPDX-License-Identifier: GPL-2.0
//! Events that share a datagram (C54), if the listener asked for it, and while they wait to be read.

use std::hint;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, MultiHeaders, recv, recvmmsg, recvmsg, setsockopt, sockopt};
use nix::unistd::{pipe, read};

use crate::child::{self, Gate};
use crate::cpus::{cpus, pin};
use crate::debugfs::Listing;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{Drained, Listener};
use crate::results;
use crate::support::container::{self, Container, FIRST_ID, PID, map, unmapped};
use crate::support::process::status;
use crate::support::process::succeed;
use crate::support::scenario::{every_kind, mark};
use crate::support::sender::{OVERFLOW_ID, ROOT, Sender, UNMAPPED, receive};
use crate::support::sequence_numbers::{SequenceNumbers, cpu_and_seq};
use crate::support::socket_filter::keep_bytes;
use crate::support::stock::NO_FLAGS;
use crate::test;
use crate::timeouts;
use crate::wire::{
    BATCH, BATCH_SIZE, Event, LISTEN, MESSAGE_SIZE, NLMSG_DONE, NLMSG_EVENT, Received, mask,
    proc_listen,
};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_FLAGS)
    .covers(&[Line::C54])
    .of([
        test!(unread_events_share_a_datagram).covers(&[Line::C5]),
        test!(an_event_can_be_read_at_once),
        test!(a_batch_has_the_events_that_others_get_one_by_one),
        test!(an_answer_has_a_datagram_of_its_own).covers(&[Line::C19]),
        test!(the_default_buffer_keeps_2300_events),
        test!(an_overrun_is_a_gap[and_one_enobufs](false, 1)).covers(&[Line::C5, Line::C6]),
        test!(an_overrun_is_a_gap[without_enobufs](true, 0)).covers(&[Line::C5, Line::C6]),
        test!(a_datagram_that_was_peeked_at_stays_as_it_is),
        test!(a_datagram_has_the_length_that_a_peek_returned[alone](
            0,
            MsgFlags::MSG_TRUNC
        )),
        test!(a_datagram_has_the_length_that_a_peek_returned
            [with_its_data](BATCH_SIZE, MsgFlags::empty())),
        test!(a_buffer_that_is_too_small_is_reported),
        test!(with_a_filter_each_event_has_a_datagram),
        test!(an_event_that_a_filter_drops_takes_no_number).covers(&[Line::C5]),
        test!(a_buffer_that_shrinks_keeps_what_is_queued).covers(&[Line::C5]),
        test!(each_datagram_names_its_sender).covers(&[Line::C48]),
        test!(events_from_two_senders_share_no_datagram).covers(&[Line::C48]),
        test!(recvmmsg_gets_whole_datagrams),
        test!(splice_gets_whole_datagrams),
        test!(a_reader_that_is_woken_once_gets_all_events),
        test!(readers_on_all_cpus_get_each_event_once)
            .limit(Duration::from_secs(60))
            .covers(&[Line::C5]),
        test!(a_listener_in_a_container_gets_batches).covers(&[Line::C21]),
    ]);

/// How many events the first datagram may have: it was made for one event, when none was queued.
const FIRST_AT_MOST: usize = 8;

/// How many events each further datagram has at least, if more than that are queued.
const FULL_AT_LEAST: usize = 40;

/// Returns a listener for renames in batches, whose answer was read, and the next sequence number of
/// the answer's CPU.
fn listen(listener: Listener) -> Result<(Listener, SequenceNumbers), Failure> {
    listener.request(&proc_listen(LISTEN, mask::COMM, BATCH))?;
    let answer = listener.receive_datagram()?;
    let Some([answer]) = answer.as_deref() else {
        return Err(Failure::new(format!("expected one answer, got {answer:?}")));
    };
    expect_eq("answer", answer.event, Event::Ack { err: 0 })?;
    let first = SequenceNumbers::after(&[*answer]);
    Ok((listener, first))
}

fn batches() -> Result<(Listener, SequenceNumbers), Failure> {
    listen(Listener::open()?)
}

fn rename(times: usize) -> TestResult {
    for _ in 0..times {
        mark("in a batch")?;
    }
    Ok(())
}

fn lengths(datagrams: &[Vec<Received>]) -> Vec<usize> {
    datagrams.iter().map(Vec::len).collect()
}

/// Expects `count` events, all of the type that may share a datagram, and no gap.
#[track_caller]
fn expect_all(events: &[Received], first: &SequenceNumbers, count: usize) -> TestResult {
    expect_eq("events", events.len(), count)?;
    let other = events
        .iter()
        .find(|received| received.message.netlink.kind != NLMSG_EVENT);
    expect(other.is_none(), format!("events in batches, got {other:?}"))?;
    expect_eq("missing numbers", first.missing(events)?, 0)
}

fn unread_events_share_a_datagram() -> TestResult {
    const EVENTS: usize = 500;
    let (listener, first) = batches()?;
    rename(EVENTS)?;
    let got = listener.take_datagrams()?;
    println!("{:?}", lengths(&got));
    expect_all(&got.concat(), &first, EVENTS)?;
    let lengths = lengths(&got);
    let [small, full @ .., _last] = lengths.as_slice() else {
        return Err(Failure::new("no batches"));
    };
    expect(*small <= FIRST_AT_MOST, "a small datagram first")?;
    expect(
        full.iter().all(|length| *length >= FULL_AT_LEAST),
        format!("full datagrams after it, got {full:?}"),
    )
}

fn an_event_can_be_read_at_once() -> TestResult {
    let (listener, mut first) = batches()?;
    for _ in 0..100 {
        rename(1)?;
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        expect_eq("sockets to read", poll(&mut ready, PollTimeout::ZERO)?, 1)?;
        let got = listener.take_datagrams()?;
        expect_eq("datagrams", lengths(&got), vec![1])?;
        expect_all(&got[0], &first, 1)?;
        first.advance(&got[0])?;
    }
    Ok(())
}

fn a_batch_has_the_events_that_others_get_one_by_one() -> TestResult {
    let mut batches = Listener::listen_with(mask::EVERYTHING, BATCH)?;
    let mut alone = Listener::listen(mask::EVERYTHING)?;
    let (pid, _) = every_kind(&mut Listener::listen_all()?)?;
    let is_its = |received: &Received| received.event.subject().tgid == pid;
    let has_exit = |received: &Received| crate::support::scenario::is_exit(received, pid);
    let mut taken = Vec::new();
    for listener in [&mut batches, &mut alone] {
        let mut events = listener.take_through("EXIT", has_exit)?;
        events.retain(is_its);
        taken.push(events);
    }
    let events = |received: &[Received]| -> Vec<_> {
        received.iter().map(|received| received.event).collect()
    };
    expect_eq("events", events(&taken[0]), events(&taken[1]))?;
    let data = |received: &[Received]| -> Vec<_> {
        let messages = received.iter().map(|received| received.message);
        messages
            .map(|message| (message.netlink.length, message.netlink.flags, message.body))
            .collect()
    };
    expect_eq("bytes", data(&taken[0]), data(&taken[1]))
}

fn an_answer_has_a_datagram_of_its_own() -> TestResult {
    let (listener, first) = batches()?;
    rename(2)?;
    listener.request(&[99])?;
    rename(3)?;
    listener.request(&proc_listen(LISTEN, mask::COMM, BATCH))?;
    rename(1)?;
    let got = listener.take_datagrams()?;
    expect_eq("datagrams", lengths(&got), vec![2, 1, 3, 1, 1])?;
    for answer in [&got[1][0], &got[3][0]] {
        expect_eq("bit of an answer", answer.event.bit(), 0)?;
        let kind = answer.message.netlink.kind;
        expect_eq("type of an answer", kind, NLMSG_DONE)?;
    }
    let mut events = got.concat();
    events.retain(|received| received.event.bit() != 0);
    expect_all(&events, &first, 6)
}

/// Returns how many events a new listener with the default buffer keeps, if it does not read.
fn kept(flags: u32) -> Result<usize, Failure> {
    const TOO_MANY: usize = 5000;
    let mut listener = Listener::open_unprivileged()?;
    listener.request(&proc_listen(LISTEN, mask::COMM, flags))?;
    listener.take_queued()?;
    rename(TOO_MANY)?;
    let lost = Listing::of(listener.port_id()?)?.lost;
    expect(lost > 0, "an overrun")?;
    Ok(TOO_MANY - usize::try_from(lost)?)
}

fn the_default_buffer_keeps_2300_events() -> TestResult {
    let (alone, batches) = (kept(0)?, kept(BATCH)?);
    results::figure("events kept one a datagram", alone as f64);
    results::figure("events kept in batches", batches as f64);
    expect(batches >= 2300, format!("2300 events, got {batches}"))
}

/// A listener with the default buffer overruns. Each event is read, or is missing and counted as lost.
/// The listener gets `expected` ENOBUFS.
fn an_overrun_is_a_gap(no_enobufs: bool, expected: usize) -> TestResult {
    const TOO_MANY: usize = 3000;
    let (mut listener, first) = listen(Listener::open_unprivileged()?)?;
    listener.socket().set_no_enobufs(no_enobufs)?;
    pin(cpus()?[0])?;
    rename(TOO_MANY)?;
    let drained = listener.drain()?;
    rename(3)?;
    let after = listener.drain()?;
    let events = [drained.messages, after.messages].concat();
    let line = Listing::of(listener.port_id()?)?;
    expect_eq(
        "number of ENOBUFS",
        drained.enobufs + after.enobufs,
        expected,
    )?;
    expect_eq("delivered", line.delivered, events.len() as u64)?;
    expect_eq("lost", line.lost, first.missing(&events)?)?;
    expect(line.lost > 0, "an overrun")?;
    expect_eq("all", line.delivered + line.lost, TOO_MANY as u64 + 3)
}

/// Peeks into a buffer of this size, in bytes. With `MSG_TRUNC`, returns the length of the whole
/// datagram, else that of what is in the buffer.
fn peek(listener: &Listener, buffer: usize, flags: MsgFlags) -> nix::Result<usize> {
    let mut bytes = vec![0; buffer];
    let flags = flags | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(listener.as_fd().as_raw_fd(), &mut bytes, flags)
}

fn a_datagram_that_was_peeked_at_stays_as_it_is() -> TestResult {
    let (listener, first) = batches()?;
    rename(3)?;
    // This is how a program finds out which buffer size it needs.
    let length = peek(&listener, 0, MsgFlags::MSG_TRUNC)?;
    expect_eq("bytes", length, 3 * MESSAGE_SIZE)?;
    rename(4)?;
    let again = peek(&listener, BATCH_SIZE, MsgFlags::MSG_TRUNC)?;
    expect_eq("bytes, again", again, length)?;
    rename(5)?;
    let got = listener.take_datagrams()?;
    expect_eq("datagrams", lengths(&got), vec![3, 9])?;
    expect_all(&got.concat(), &first, 12)
}

fn a_buffer_that_is_too_small_is_reported() -> TestResult {
    let (listener, mut first) = batches()?;
    pin(cpus()?[0])?;
    rename(1)?;
    first.advance(&listener.take_datagrams()?.concat())?;
    rename(4)?;
    let mut bytes = [0; MESSAGE_SIZE + 10];
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let socket = listener.as_fd().as_raw_fd();
    let message = recvmsg::<()>(socket, &mut buffers, None, MsgFlags::MSG_DONTWAIT)?;
    expect(
        message.flags.contains(MsgFlags::MSG_TRUNC),
        format!("MSG_TRUNC, got {:?}", message.flags),
    )?;
    expect_eq("bytes", message.bytes, MESSAGE_SIZE + 10)?;
    let event = Received::decode(&bytes[..MESSAGE_SIZE], (0, 1)).map_err(Failure::new)?;
    expect_eq("missing numbers before it", first.advance_to(&event)?, 0)?;
    // The rest of the datagram is lost, which the sequence numbers show.
    rename(1)?;
    let after = listener.take_datagrams()?.concat();
    expect_eq("events after it", after.len(), 1)?;
    expect_eq("missing numbers", first.advance_to(&after[0])?, 3)
}

fn with_a_filter_each_event_has_a_datagram() -> TestResult {
    let (listener, first) = batches()?;
    rename(3)?;
    // The filter does not affect events that are already queued.
    keep_bytes(&listener, u32::MAX)?;
    rename(3)?;
    setsockopt_none(&listener, libc::SO_DETACH_FILTER)?;
    rename(3)?;
    let got = listener.take_datagrams()?;
    expect_eq("datagrams", lengths(&got), vec![3, 1, 1, 1, 3])?;
    expect_all(&got.concat(), &first, 9)
}

fn setsockopt_none(listener: &Listener, option: i32) -> io::Result<()> {
    let nothing: i32 = 0;
    // SAFETY: The kernel reads the number in this call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const nothing).cast(),
            size_of_val(&nothing) as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

fn an_event_that_a_filter_drops_takes_no_number() -> TestResult {
    let (listener, first) = batches()?;
    rename(2)?;
    keep_bytes(&listener, 0)?;
    rename(20)?;
    setsockopt_none(&listener, libc::SO_DETACH_FILTER)?;
    rename(2)?;
    expect_all(&listener.take_datagrams()?.concat(), &first, 4)
}

fn a_buffer_that_shrinks_keeps_what_is_queued() -> TestResult {
    const QUEUED: usize = 300;
    let (mut listener, first) = batches()?;
    pin(cpus()?[0])?;
    rename(QUEUED)?;
    setsockopt(&listener.as_fd(), sockopt::RcvBuf, &0)?;
    rename(QUEUED)?;
    let Drained {
        messages: mut events,
        enobufs,
    } = listener.drain()?;
    expect(events.len() >= QUEUED, "the events that were queued before")?;
    expect_eq("number of ENOBUFS", enobufs, 1)?;
    // Even with hardly any room, there is always room for a first datagram.
    rename(1)?;
    events.extend(listener.take_queued()?);
    let line = Listing::of(listener.port_id()?)?;
    expect_eq("delivered", line.delivered, events.len() as u64)?;
    expect_eq("lost", line.lost, first.missing(&events)?)?;
    expect_eq("all", line.delivered + line.lost, 2 * QUEUED as u64 + 1)
}

/// Returns all queued datagrams, each with its sender.
fn datagrams_and_senders(listener: &Listener) -> Result<Vec<(Vec<Received>, Sender)>, Failure> {
    let mut datagrams = Vec::new();
    while let Some((bytes, sender)) = receive(listener, BATCH_SIZE)? {
        let datagram = Received::decode_all(&bytes, (0, 1)).map_err(Failure::new)?;
        datagrams.push((datagram, sender));
    }
    Ok(datagrams)
}

fn each_datagram_names_its_sender() -> TestResult {
    let (listener, _) = batches()?;
    setsockopt(&listener.as_fd(), sockopt::PassCred, &true)?;
    rename(100)?;
    let got = datagrams_and_senders(&listener)?;
    for (_, sender) in &got {
        expect_eq("sender", *sender, ROOT)?;
    }
    expect(got.len() > 1, "several datagrams")
}

/// The listener is in a user namespace whose ids are mapped while events are queued. Each map makes a
/// new sender.
fn events_from_two_senders_share_no_datagram() -> TestResult {
    const EVENTS: usize = 20;
    const SENDERS: [Sender; 3] = [UNMAPPED, (0, 0, OVERFLOW_ID), ROOT];
    let (raised, mapped) = (Gate::new()?, Gate::new()?);
    let process = unmapped(|| {
        let (listener, first) = listen(container::open()?)?;
        setsockopt(&listener.as_fd(), sockopt::PassCred, &true)?;
        pin(cpus()?[0])?;
        for _ in SENDERS {
            rename(EVENTS)?;
            raised.open(0)?;
            mapped.pass()?;
        }
        let got = datagrams_and_senders(&listener)?;
        let (datagrams, senders): (Vec<_>, Vec<_>) = got.into_iter().unzip();
        println!("{:?}", lengths(&datagrams));
        expect(datagrams.len() < EVENTS, "events that share datagrams")?;
        expect_all(&datagrams.concat(), &first, SENDERS.len() * EVENTS)?;
        // The sender of each event, in the order in which the events were raised.
        let received = datagrams.iter().zip(senders);
        let received: Vec<_> = received
            .flat_map(|(datagram, sender)| vec![sender; datagram.len()])
            .collect();
        let expected = SENDERS.map(|sender| [sender; EVENTS]).concat();
        expect_eq("senders of events", received, expected)
    })?;
    for kind in ["uid", "gid"] {
        raised.pass()?;
        map(process.pid(), kind, &format!("0 {FIRST_ID} 1"))?;
        mapped.open(0)?;
    }
    raised.pass()?;
    mapped.open(0)?;
    succeed(process)
}

fn recvmmsg_gets_whole_datagrams() -> TestResult {
    const AT_ONCE: usize = 8;
    let (listener, first) = batches()?;
    rename(200)?;
    let mut bytes = vec![[0; BATCH_SIZE]; AT_ONCE];
    let mut buffers: Vec<_> = bytes
        .iter_mut()
        .map(|bytes| [IoSliceMut::new(bytes)])
        .collect();
    let mut headers = MultiHeaders::<()>::preallocate(AT_ONCE, None);
    let lengths: Vec<_> = recvmmsg(
        listener.as_fd().as_raw_fd(),
        &mut headers,
        buffers.iter_mut(),
        MsgFlags::MSG_DONTWAIT,
        None,
    )?
    .map(|message| message.bytes)
    .collect();
    let mut events = Vec::new();
    for (bytes, length) in bytes.iter().zip(&lengths) {
        let datagram = Received::decode_all(&bytes[..*length], (0, 1));
        events.extend(datagram.map_err(Failure::new)?);
    }
    expect(lengths.len() > 1, "several datagrams")?;
    expect_all(&events, &first, 200)
}

fn splice_gets_whole_datagrams() -> TestResult {
    let (listener, first) = batches()?;
    rename(3)?;
    let (reader, writer) = pipe()?;
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
    let moved = splice(&listener, None, &writer, None, 2 * BATCH_SIZE, flags)?;
    let mut bytes = [0; 2 * BATCH_SIZE];
    let length = read(&reader, &mut bytes)?;
    expect_eq("bytes in the pipe", length, moved)?;
    let events = Received::decode_all(&bytes[..length], (0, 1));
    expect_all(&events.map_err(Failure::new)?, &first, 3)
}

fn a_reader_that_is_woken_once_gets_all_events() -> TestResult {
    let (listener, mut first) = batches()?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let interest = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
    epoll.add(&listener, interest)?;
    let mut woken = [EpollEvent::empty()];
    for round in 0..100 {
        rename(1 + round % 7)?;
        let count = epoll.wait(&mut woken, EpollTimeout::ZERO)?;
        expect_eq("sockets to read", count, 1)?;
        // Reads until EAGAIN, as a program has to with edge-triggered epoll.
        let events = listener.take_datagrams()?.concat();
        expect_all(&events, &first, 1 + round % 7)?;
        first.advance(&events)?;
        let count = epoll.wait(&mut woken, EpollTimeout::ZERO)?;
        expect_eq("sockets to read, without an event", count, 0)?;
    }
    Ok(())
}

/// One CPU raises events. On another CPU, a program peeks for the length of each datagram, with a buffer
/// of this size and these flags, before it reads the datagram. Without pauses, it would always peek right
/// after an event, and never during the next one.
fn a_datagram_has_the_length_that_a_peek_returned(buffer: usize, flags: MsgFlags) -> TestResult {
    const EVENTS: usize = 20_000;
    /// In microseconds: several events take as long.
    const LONGEST_PAUSE: u64 = 100;
    let [writers, readers, ..] = cpus()?[..] else {
        return Err(Failure::skip("there is one CPU"));
    };
    let (listener, first) = batches()?;
    let gate = Gate::new()?;
    let writer = child::fork(|| {
        status(|| {
            pin(writers)?;
            gate.pass()?;
            rename(EVENTS)
        })
    })?;
    pin(readers)?;
    gate.open(0)?;
    let deadline = timeouts::deadline(Duration::from_secs(40));
    let mut events = Vec::new();
    for pause in (0..LONGEST_PAUSE).cycle().map(Duration::from_micros) {
        if events.len() >= EVENTS || Instant::now() > deadline {
            break;
        }
        let begin = Instant::now();
        while begin.elapsed() < pause {
            hint::spin_loop();
        }
        match peek(&listener, buffer, flags) {
            Ok(length) => {
                let datagram = listener.receive_datagram()?.unwrap_or_default();
                expect_eq("bytes", datagram.len() * MESSAGE_SIZE, length)?;
                events.extend(datagram);
            }
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    writer.wait()?;
    expect_all(&events, &first, EVENTS)
}

/// One CPU raises events. Threads on all CPUs read, and others peek, through the same socket.
fn readers_on_all_cpus_get_each_event_once() -> TestResult {
    const EVENTS: usize = 20_000;
    let (listener, first) = batches()?;
    let cpus = cpus()?;
    let gate = Gate::new()?;
    let writer = child::fork(|| {
        let raised = (|| -> Result<(), Failure> {
            pin(cpus[0])?;
            gate.pass()?;
            rename(EVENTS)
        })();
        i32::from(raised.is_err())
    })?;
    // The threads of this process get no names, because each rename would be an event, too.
    let deadline = timeouts::deadline(Duration::from_secs(40));
    let count = std::sync::atomic::AtomicUsize::new(0);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let is_over = || count.load(relaxed) >= EVENTS || Instant::now() > deadline;
    gate.open(0)?;
    let take = || -> Result<Vec<Received>, Failure> {
        let mut events = Vec::new();
        while !is_over() {
            match listener.receive_datagram()? {
                Some(datagram) => {
                    count.fetch_add(datagram.len(), relaxed);
                    events.extend(datagram);
                }
                None => thread::yield_now(),
            }
        }
        Ok(events)
    };
    let look = || -> TestResult {
        let mut bytes = [0; BATCH_SIZE];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        while !is_over() {
            match recv(listener.as_fd().as_raw_fd(), &mut bytes, flags) {
                Ok(length) => {
                    let seen = Received::decode_all(&bytes[..length], (0, 1));
                    let seen = seen.map_err(Failure::new)?;
                    let first = cpu_and_seq(&seen[0]);
                    let follow = seen.iter().zip(0u32..).all(|(received, index)| {
                        cpu_and_seq(received) == (first.0, first.1.wrapping_add(index))
                    });
                    expect(follow, format!("events in a row, got {seen:?}"))?;
                }
                Err(Errno::EAGAIN) => thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    let mut events = thread::scope(|scope| -> Result<_, Failure> {
        let readers: Vec<_> = cpus.iter().map(|_| scope.spawn(take)).collect();
        let lookers: Vec<_> = cpus.iter().map(|_| scope.spawn(look)).collect();
        let mut events = Vec::new();
        for reader in readers {
            events.extend(reader.join().expect("reading does not panic")?);
        }
        for looker in lookers {
            looker.join().expect("peeking does not panic")?;
        }
        Ok(events)
    })?;
    writer.wait()?;
    events.sort_by_key(|received| received.timestamp_ns());
    expect_all(&events, &first, EVENTS)
}

fn a_listener_in_a_container_gets_batches() -> TestResult {
    let container = Container::start(PID, || {
        let (listener, first) = batches()?;
        rename(100)?;
        let got = listener.take_datagrams()?;
        expect(got.len() < 10, "events that share datagrams")?;
        expect_all(&got.concat(), &first, 100)?;
        let own = crate::support::scenario::own_task();
        let is_own = |received: &Received| received.event.subject() == own;
        expect(got.concat().iter().all(is_own), "its own numbers")
    })?;
    container.finish()
}
