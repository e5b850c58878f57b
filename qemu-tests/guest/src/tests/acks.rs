// SPDX-License-Identifier: GPL-2.0
//! Acknowledgements (C19, C20): exactly one for each request, to the requester only.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::setsid;
use zerocopy::IntoBytes;

use crate::child::own_pid;
use crate::harness::{Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::cgroup;
use crate::support::scenario::{
    ACK, SEQ, comm, events_of, expect_answer, in_child, in_self, mark, own_task,
};
use crate::support::scheduling::run_first;
use crate::support::socket_filter::keep_bytes_slowly;
use crate::test;
use crate::wire::{Event, IGNORE, LISTEN, mask};

pub const TESTS: &[Test] = &[
    test!(answers_listen_with_its_numbers)
        .stock_fails("the answer's seq is overwritten")
        .covers(&[Line::C19]),
    test!(answers_a_listener_that_filters)
        .stock_fails("a filtered listener gets no answer")
        .covers(&[Line::C19]),
    test!(answers_listening_again)
        .stock_fails("a filtered listener gets no answer")
        .covers(&[Line::C18, Line::C19]),
    test!(answers_ignore)
        .stock_fails("IGNORE is not answered")
        .covers(&[Line::C18, Line::C19]),
    test!(answers_ignore_of_a_socket_that_does_not_listen)
        .stock_fails("IGNORE is not answered")
        .covers(&[Line::C19]),
    test!(goes_to_the_requester_alone)
        .stock_fails("every listener gets every answer")
        .covers(&[Line::C19]),
    test!(is_in_the_wire_format_of_events).covers(&[Line::C1, Line::C2, Line::C19]),
    test!(refuses_an_unknown_operation)
        .stock_fails(
            "the answer's seq is overwritten, and nothing is answered if there is no listener",
        )
        .covers(&[Line::C20]),
    test!(refuses_a_wrong_length)
        .stock_fails("a wrong length is not answered")
        .covers(&[Line::C20]),
    test!(a_refused_request_changes_nothing)
        .stock_fails("an unknown operation changes the mask")
        .covers(&[Line::C20]),
    test!(threads_that_share_a_socket_get_all_their_answers)
        .stock_fails("IGNORE is not answered")
        .covers(&[Line::C19])
        .limit(Duration::from_secs(60)),
    test!(whoever_reads_the_answer_gets_the_next_event).covers(&[Line::C19]),
    test!(carries_the_feature_word)
        .stock_fails("there is no feature word")
        .covers(&[Line::C20]),
];

/// An operation that does not exist.
const UNKNOWN: u32 = 4;

fn answers_listen_with_its_numbers() -> TestResult {
    let mut listener = Listener::open()?;
    expect_answer(&mut listener, &[LISTEN], 0)?;
    expect_answer(&mut Listener::open()?, &[LISTEN, mask::ALL], 0)
}

fn answers_a_listener_that_filters() -> TestResult {
    expect_answer(&mut Listener::open()?, &[LISTEN, mask::SID], 0)
}

fn answers_listening_again() -> TestResult {
    let mut listener = Listener::open()?;
    expect_answer(&mut listener, &[LISTEN, mask::SID], 0)?;
    expect_answer(&mut listener, &[LISTEN, mask::EXEC], 0)
}

fn answers_ignore() -> TestResult {
    let mut listener = Listener::open()?;
    listener.request(&[LISTEN, mask::SID])?;
    listener.take_queued()?;
    expect_answer(&mut listener, &[IGNORE], 0)
}

fn answers_ignore_of_a_socket_that_does_not_listen() -> TestResult {
    expect_answer(&mut Listener::open()?, &[IGNORE], 0)
}

fn goes_to_the_requester_alone() -> TestResult {
    let mut other = Listener::listen_all()?;
    let messages = in_self(&mut other, || {
        Listener::listen_all()?;
        Ok(())
    })?;
    let answers = messages
        .iter()
        .filter(|received| received.event.bit() == 0)
        .count();
    expect_eq("answers to others", answers, 0)
}

fn is_in_the_wire_format_of_events() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let answer = listener.answer()?;
    let (netlink, connector) = (answer.message.netlink, answer.message.connector);
    expect_eq("sender", answer.sender, (0, 1))?;
    expect_eq(
        "netlink flags and pid",
        (netlink.flags, netlink.pid),
        (0, 0),
    )?;
    expect_eq("seq of both headers", netlink.seq, connector.seq)?;
    expect_eq(
        "idx, val, length",
        (connector.idx, connector.val, connector.length),
        (1, 1, 40),
    )?;
    expect_eq("err", answer.event, Event::Ack { err: 0 })
}

fn refuses_an_unknown_operation() -> TestResult {
    expect_answer(&mut Listener::open()?, &[UNKNOWN], Errno::EINVAL as u32)?;
    expect_answer(
        &mut Listener::open()?,
        &[UNKNOWN, mask::SID],
        Errno::EINVAL as u32,
    )?;
    expect_answer(&mut Listener::open()?, &[0], Errno::EINVAL as u32)
}

fn refuses_a_wrong_length() -> TestResult {
    let request = [LISTEN, mask::SID, 0, 0];
    for length in [0, 1, 3, 5, 7, 9, 12, 16] {
        let request = &request.as_bytes()[..length];
        expect_answer(&mut Listener::open()?, request, Errno::EINVAL as u32)?;
    }
    Ok(())
}

fn a_refused_request_changes_nothing() -> TestResult {
    const INVALID: u32 = Errno::EINVAL as u32;
    let mut everything = Listener::listen_all()?;
    let mut listener = Listener::listen(mask::SID)?;
    listener.take_queued()?;
    listener.send([UNKNOWN, mask::COMM].as_bytes(), SEQ, ACK)?;
    listener.send([LISTEN, mask::COMM, 0].as_bytes(), SEQ + 1, ACK)?;
    let scene = in_child(&mut everything, || Ok(setsid()?.as_raw()))?;
    let (answers, events): (Vec<_>, Vec<_>) = listener
        .take_queued()?
        .into_iter()
        .partition(|received| received.event.bit() == 0);
    let kinds = events
        .iter()
        .map(|received| (received.event.kind(), received.event.subject()))
        .collect();
    expect_eq("events", kinds, vec![("sid", scene.child)])?;
    let answers = answers
        .iter()
        .map(|answer| {
            let connector = answer.message.connector;
            (answer.event, connector.seq, connector.ack)
        })
        .collect();
    let refusal = |seq| (Event::Ack { err: INVALID }, seq, ACK + 1);
    expect_eq("answers", answers, vec![refusal(SEQ), refusal(SEQ + 1)])
}

/// The answer's second word has a bit for each feature of the kernel. It is 0 on older kernels.
fn carries_the_feature_word() -> TestResult {
    // Only kernels with cgroups have bit 8.
    let features: u32 = 0x2ff | u32::from(cgroup::are_there()) << 8;
    let mut listener = Listener::open()?;
    for words in [&[LISTEN][..], &[LISTEN, mask::SID], &[UNKNOWN], &[IGNORE]] {
        listener.request(words)?;
        let data = listener.answer()?.message.body.data;
        let (word, rest) = (&data[4..8], &data[8..]);
        expect_eq("feature word", word, features.as_bytes())?;
        expect_eq("bytes after it", rest, &[0; 16])?;
    }
    Ok(())
}

/// Each IGNORE that ends a listener drops what is being sent to it, while another thread's request is
/// being answered.
fn threads_that_share_a_socket_get_all_their_answers() -> TestResult {
    const THREADS: u32 = 2;
    /// Requests of each thread before the answers are read: all of them fit into the buffer.
    const REQUESTS: u32 = 50;
    const ROUNDS: u32 = 40;
    let mut listener = Listener::open()?;
    // This keeps an answer on its way for a while.
    keep_bytes_slowly(&listener, u32::MAX)?;
    for _ in 0..ROUNDS {
        let shared = &listener;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| scope.spawn(move || ask(shared, thread * REQUESTS, REQUESTS)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("asking does not panic"))
        })?;
        let answers = listener.take_queued()?;
        let seqs: BTreeSet<_> = answers
            .iter()
            .map(|answer| answer.message.connector.seq)
            .collect();
        let expected: BTreeSet<_> = (0..THREADS * REQUESTS).collect();
        expect_eq("answers", answers.len(), expected.len())?;
        expect_eq("requests that were answered", seqs, expected)?;
    }
    Ok(())
}

/// The reader runs as soon as the answer is queued, before the request has returned.
fn whoever_reads_the_answer_gets_the_next_event() -> TestResult {
    const NEXT: &str = "next";
    let mut listener = Listener::open()?;
    let requester = listener.duplicate()?;
    run_first()?;
    let request = thread::spawn(move || requester.request(&[LISTEN]));
    listener.answer()?;
    mark(NEXT)?;
    let event = Event::Comm {
        task: own_task(),
        comm: comm(NEXT),
    };
    let events = events_of(&listener.take_queued()?, mask::COMM, own_pid());
    expect_eq("events", events, vec![event])?;
    Ok(request.join().expect("asking does not panic")?)
}

/// Listens for an event that no process raises, and stops, again and again. The sequence numbers of
/// the requests begin at `first`.
fn ask(listener: &Listener, first: u32, requests: u32) -> TestResult {
    for seq in first..first + requests {
        let request = match seq % 2 {
            0 => [LISTEN, mask::PTRACE],
            _ => [IGNORE, 0],
        };
        listener.send(request.as_bytes(), seq, ACK)?;
    }
    Ok(())
}
