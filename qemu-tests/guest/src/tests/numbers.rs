// SPDX-License-Identifier: GPL-2.0
//! Numbers (C5) and losses (C6): every loss is a gap and every gap a loss, and both are reported.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::setsid;
use zerocopy::IntoBytes;

use crate::child;
use crate::cpus::{cpus, pin};
use crate::debugfs::Listing;
use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{Drained, Listener};
use crate::support::scenario::{mark_on, mark_on_each_cpu};
use crate::support::sequence_numbers::{SequenceNumbers, cpu_and_seq};
use crate::support::socket_filter::keep_bytes;
use crate::test;
use crate::wire::{Event, IGNORE, LISTEN, NO_CPU, Received, mask};

pub const TESTS: &[Test] = &[
    test!(each_listener_and_cpu_counts_on_its_own)
        .stock_fails("all listeners share one count, and what they filter out takes numbers")
        .covers(&[Line::C5]),
    test!(the_first_answer_starts_the_count_of_its_cpu)
        .stock_fails("the answer's numbers are not the request's")
        .covers(&[Line::C5, Line::C19]),
    test!(other_answers_take_no_number)
        .stock_fails("answers take numbers, and filtered listeners get none")
        .covers(&[Line::C5, Line::C19]),
    test!(listening_again_after_ignore_starts_anew)
        .stock_fails("the count continues from one listener to the next")
        .covers(&[Line::C5, Line::C19]),
    test!(an_overrun_is_a_gap[and_one_enobufs](false, 1)).covers(&[Line::C5, Line::C6]),
    test!(an_overrun_is_a_gap[without_enobufs](true, 0)).covers(&[Line::C5, Line::C6]),
    test!(an_overrun_is_no_loss_of_other_listeners).covers(&[Line::C5, Line::C6]),
    test!(accounts_balance_after_an_overrun)
        .not_on_stock("there are no accounts")
        .covers(&[Line::C5, Line::C6, Line::C30])
        .limit(Duration::from_secs(20)),
    test!(accounts_count_only_what_was_asked_for)
        .not_on_stock("there are no accounts")
        .covers(&[Line::C5, Line::C30]),
    test!(an_event_that_its_own_filter_drops_takes_no_number)
        .stock_fails("a filtered listener gets no answer, and what it drops takes a number")
        .covers(&[Line::C5]),
    test!(an_answer_that_finds_no_room_is_reported_by_enobufs)
        .not_on_stock("there are no accounts")
        .covers(&[Line::C6, Line::C19]),
    test!(requests_are_answered_after_a_loss)
        .stock_fails("a socket takes no message after a loss, until it was read empty")
        .covers(&[Line::C6, Line::C19]),
    test!(an_answer_that_is_lost_after_a_loss_is_reported_by_enobufs)
        .stock_fails("ENOBUFS is reported once until the socket was read empty")
        .covers(&[Line::C6, Line::C19]),
];

/// Starts a listener and takes the answer. Returns the number that comes next on the answer's CPU.
fn listen(listener: &mut Listener, mask: u32) -> Result<SequenceNumbers, Failure> {
    listener.send([LISTEN, mask].as_bytes(), SEQ, 0)?;
    Ok(SequenceNumbers::after(&[listener.answer()?]))
}

/// The number of a request. It is close to the maximum, so that the count has to wrap.
const SEQ: u32 = u32::MAX - 2;

fn each_listener_and_cpu_counts_on_its_own() -> TestResult {
    const ROUNDS: usize = 10;
    let masks = [mask::ALL, mask::COMM, mask::SID, mask::FORK | mask::EXIT];
    let mut listeners = Vec::new();
    for mask in masks {
        let mut listener = Listener::open()?;
        let first = listen(&mut listener, mask)?;
        listeners.push((mask, listener, first));
    }
    for _ in 0..ROUNDS {
        mark_on_each_cpu(1)?;
        child::fork(|| i32::from(setsid().is_err()))?.wait()?;
    }
    for (mask, mut listener, first) in listeners {
        let messages = listener.take_queued()?;
        let enough = messages.len() >= ROUNDS;
        expect(enough, format!("{ROUNDS} events for mask 0x{mask:08x}"))?;
        let missing = first.missing(&messages)?;
        expect_eq(&format!("missing for mask 0x{mask:08x}"), missing, 0)?;
        let foreign = messages
            .iter()
            .any(|message| message.event.bit() & mask == 0);
        expect(!foreign, format!("only events of mask 0x{mask:08x}"))?;
    }
    Ok(())
}

fn the_first_answer_starts_the_count_of_its_cpu() -> TestResult {
    for cpu in cpus()? {
        pin(cpu)?;
        let mut listener = Listener::open()?;
        listener.send([LISTEN, mask::COMM].as_bytes(), SEQ, 0)?;
        let answer = listener.answer()?;
        expect_eq(
            "the answer's CPU and seq",
            cpu_and_seq(&answer),
            (cpu as u32, SEQ),
        )?;
        mark_on(cpu, 4)?;
        let numbers: Vec<_> = listener.take_queued()?.iter().map(cpu_and_seq).collect();
        let expected = (1..=4).map(|step| (cpu as u32, SEQ.wrapping_add(step)));
        expect_eq("CPUs and seqs", numbers, expected.collect())?;
        for other in cpus()?.into_iter().filter(|other| *other != cpu) {
            mark_on(other, 2)?;
            let numbers: Vec<_> = listener.take_queued()?.iter().map(cpu_and_seq).collect();
            let expected = vec![(other as u32, 0), (other as u32, 1)];
            expect_eq("CPUs and seqs elsewhere", numbers, expected)?;
        }
    }
    Ok(())
}

fn other_answers_take_no_number() -> TestResult {
    let mut listener = Listener::open()?;
    let first = listen(&mut listener, mask::COMM)?;
    let mut events = Vec::new();
    for words in [&[LISTEN, mask::COMM | mask::SID][..], &[LISTEN], &[99], &[]] {
        mark_on_each_cpu(1)?;
        events.extend(listener.take_queued()?);
        listener.send(words.as_bytes(), 7, 0)?;
        let answer = listener.answer()?;
        expect_eq(
            "the answer's CPU and seq",
            cpu_and_seq(&answer),
            (NO_CPU, 7),
        )?;
    }
    mark_on_each_cpu(1)?;
    events.extend(listener.take_queued()?);
    expect_eq("events", events.len(), 5 * cpus()?.len())?;
    expect_eq("missing numbers", first.missing(&events)?, 0)?;
    listener.ignore()?;
    expect_eq(
        "CPU of the last answer",
        cpu_and_seq(&listener.answer()?).0,
        NO_CPU,
    )
}

fn listening_again_after_ignore_starts_anew() -> TestResult {
    let mut listener = Listener::open()?;
    listen(&mut listener, mask::COMM)?;
    mark_on_each_cpu(3)?;
    listener.ignore()?;
    listener.take_queued()?;
    let first = listen(&mut listener, mask::COMM)?;
    mark_on_each_cpu(3)?;
    let messages = listener.take_queued()?;
    expect_eq("events", messages.len(), 3 * cpus()?.len())?;
    expect_eq("missing numbers", first.missing(&messages)?, 0)
}

/// A socket with a small receive buffer.
fn listener_with_little_room() -> Result<Listener, Failure> {
    let listener = Listener::open()?;
    setsockopt(&listener.as_fd(), sockopt::RcvBuf, &4096)?;
    Ok(listener)
}

/// Starts a listener and lets its count begin on each CPU. It does not need the answer, which the
/// stock kernel does not send. Returns the number that comes next on each CPU.
fn listen_and_begin(listener: &mut Listener) -> Result<SequenceNumbers, Failure> {
    listener.request(&[LISTEN, mask::COMM])?;
    mark_on_each_cpu(1)?;
    let mut messages = listener.take_queued()?;
    messages.retain(|received| received.event.bit() != 0);
    expect_eq("events at the beginning", messages.len(), cpus()?.len())?;
    Ok(SequenceNumbers::after(&messages))
}

/// A number of events on each CPU for which a small receive buffer has no room.
const MANY: usize = 200;

/// Lets a listener overrun, and reads what its queue holds. Then reads one more event of each CPU,
/// which shows how many are missing before it.
fn overrun(listener: &mut Listener) -> Result<Drained, Failure> {
    mark_on_each_cpu(MANY)?;
    let mut overrun = listener.drain()?;
    mark_on_each_cpu(1)?;
    let after = listener.drain()?;
    expect_eq(
        "events after the overrun",
        after.messages.len(),
        cpus()?.len(),
    )?;
    expect_eq("ENOBUFS after the overrun", after.enobufs, 0)?;
    overrun.messages.extend(after.messages);
    Ok(overrun)
}

/// Expects the events that were read and those that are missing to be all events. Returns how many
/// are missing.
fn expect_all_accounted(overrun: &Drained, first: &SequenceNumbers) -> Result<u64, Failure> {
    let lost = first.missing(&overrun.messages)?;
    expect(lost > 0, "an overrun")?;
    let all = (MANY + 1) * cpus()?.len();
    expect_eq(
        "read and missing",
        overrun.messages.len() as u64 + lost,
        all as u64,
    )?;
    Ok(lost)
}

fn an_overrun_is_a_gap(no_enobufs: bool, expected: usize) -> TestResult {
    let mut listener = listener_with_little_room()?;
    listener.socket().set_no_enobufs(no_enobufs)?;
    let first = listen_and_begin(&mut listener)?;
    let overrun = overrun(&mut listener)?;
    expect_eq("number of ENOBUFS", overrun.enobufs, expected)?;
    expect_all_accounted(&overrun, &first)?;
    Ok(())
}

fn an_overrun_is_no_loss_of_other_listeners() -> TestResult {
    let mut small = listener_with_little_room()?;
    listen_and_begin(&mut small)?;
    let mut large = Listener::open()?;
    let first = listen_and_begin(&mut large)?;
    overrun(&mut small)?;
    let got = large.drain()?;
    expect_eq("number of ENOBUFS", got.enobufs, 0)?;
    expect_eq("events", got.messages.len(), (MANY + 1) * cpus()?.len())?;
    expect_eq("missing numbers", first.missing(&got.messages)?, 0)
}

fn accounts_balance_after_an_overrun() -> TestResult {
    let mut listener = listener_with_little_room()?;
    let first = listen_and_begin(&mut listener)?;
    let overrun = overrun(&mut listener)?;
    let lost = expect_all_accounted(&overrun, &first)?;
    let line = Listing::of(listener.port_id()?)?;
    let read = cpus()?.len() + overrun.messages.len();
    expect_eq("delivered, as read", line.delivered, read as u64)?;
    expect_eq("lost, as missing", line.lost, lost)
}

fn accounts_count_only_what_was_asked_for() -> TestResult {
    let mut listener = Listener::open()?;
    listen(&mut listener, mask::SID)?;
    mark_on_each_cpu(5)?;
    child::fork(|| i32::from(setsid().is_err()))?.wait()?;
    listener.request(&[LISTEN, mask::COMM])?;
    mark_on_each_cpu(5)?;
    let line = Listing::of(listener.port_id()?)?;
    let expected = 1 + 5 * cpus()?.len() as u64;
    expect_eq(
        "delivered and lost",
        (line.delivered, line.lost),
        (expected, 0),
    )
}

fn an_answer_that_finds_no_room_is_reported_by_enobufs() -> TestResult {
    let mut listener = listener_with_little_room()?;
    listen(&mut listener, mask::COMM)?;
    mark_on_each_cpu(MANY)?;
    listener.drain()?;
    let before = Listing::of(listener.port_id()?)?;
    // Only answers fill the queue, and answers are no events.
    for _ in 0..MANY {
        listener.request(&[LISTEN, mask::COMM])?;
    }
    let answers = listener.drain()?;
    expect_eq("number of ENOBUFS", answers.enobufs, 1)?;
    expect(answers.messages.len() < MANY, "lost answers")?;
    let after = Listing::of(listener.port_id()?)?;
    expect_eq("the account", after, before)
}

/// A listener that lost events and has read `ENOBUFS`, while its queue is full.
fn listener_after_a_loss() -> Result<Listener, Failure> {
    let mut listener = listener_with_little_room()?;
    listen_and_begin(&mut listener)?;
    mark_on_each_cpu(MANY)?;
    match listener.receive_datagram() {
        Err(error) if error.is_overrun() => Ok(listener),
        other => Err(Failure::new(format!("ENOBUFS, got {other:?}"))),
    }
}

fn requests_are_answered_after_a_loss() -> TestResult {
    const UNKNOWN: u32 = 99;
    let requests: [&[u32]; 4] = [&[LISTEN, mask::SID], &[UNKNOWN], &[IGNORE], &[LISTEN]];
    for words in requests {
        let mut listener = listener_after_a_loss()?;
        // There is room again, and the queue is not empty.
        expect(listener.receive_datagram()?.is_some(), "an event")?;
        listener.request(words)?;
        let drained = listener.drain()?;
        let is_answer = |received: &&Received| matches!(received.event, Event::Ack { .. });
        let answers = drained.messages.iter().filter(is_answer).count();
        expect_eq(&format!("answers to {words:?}"), answers, 1)?;
        expect(
            drained.messages.len() > 1,
            "unread events before the answer",
        )?;
        expect_eq("number of ENOBUFS", drained.enobufs, 0)?;
    }
    Ok(())
}

fn an_answer_that_is_lost_after_a_loss_is_reported_by_enobufs() -> TestResult {
    let mut listener = listener_after_a_loss()?;
    listener.request(&[LISTEN, mask::SID])?;
    let drained = listener.drain()?;
    expect_eq("number of ENOBUFS", drained.enobufs, 1)
}

fn an_event_that_its_own_filter_drops_takes_no_number() -> TestResult {
    let mut listener = Listener::open()?;
    let first = listen(&mut listener, mask::COMM)?;
    keep_bytes(&listener, 0)?;
    mark_on_each_cpu(5)?;
    expect_eq("messages", listener.take_queued()?.len(), 0)?;
    keep_bytes(&listener, u32::MAX)?;
    mark_on_each_cpu(1)?;
    let messages = listener.take_queued()?;
    expect_eq("messages", messages.len(), cpus()?.len())?;
    expect_eq("missing numbers", first.missing(&messages)?, 0)
}
