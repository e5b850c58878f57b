// SPDX-License-Identifier: GPL-2.0
//! The senders of messages, as SO_PASSCRED shows them (C48): process 0, and root of the listener's
//! user namespace. An answer is from root of the requester's user namespace.

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{Gid, Uid, setresgid, setresuid};

use crate::child::{self, Gate};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{
    ALL, Container, FIRST_ID, Handover, NET, USER, become_unprivileged_in, map, open, require,
    unmapped,
};
use crate::support::module::ModuleGuard;
use crate::support::process::{status, succeed};
use crate::support::scenario::mark;
use crate::support::sender::{OUTER_ROOT, OVERFLOW_ID, ROOT, Sender, UNMAPPED, receive};
use crate::test;
use crate::wire::{Event, IGNORE, LISTEN, MESSAGE_SIZE, Received, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(IGNORED)
    .covers(&[Line::C48])
    .of([
        test!(events_are_from_root).stock_passes(),
        test!(answers_are_from_root)
            .stock_fails("not every request is answered")
            .covers(&[Line::C19]),
        test!(messages_in_a_container_are_from_its_root),
        test!(messages_in_a_user_namespace_alone_are_from_its_root),
        test!(messages_where_0_is_not_mapped_are_from_the_overflow_id),
        test!(messages_are_from_root_as_soon_as_it_is_mapped),
        test!(an_answer_is_from_the_requesters_root),
        test!(a_refusal_in_a_sandbox_is_from_its_root).covers(&[Line::C46]),
        test!(a_refusal_without_a_module_is_from_the_requesters_root)
            .not_on_stock("cn_proc is built in, there is no module")
            .covers(&[Line::C33]),
    ]);

const IGNORED: &str = "LISTEN from another pid or network namespace is ignored or refused";

/// An operation that does not exist.
const UNKNOWN: u32 = 9;

/// A socket that gets the sender of each message.
fn socket_with_senders() -> Result<Listener, Failure> {
    let socket = open()?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    Ok(socket)
}

/// Takes the queued messages, each with its sender.
fn read(socket: &Listener) -> Result<Vec<(Event, Sender)>, Failure> {
    let mut messages = Vec::new();
    while let Some((bytes, sender)) = receive(socket, MESSAGE_SIZE + 1)? {
        let received = Received::decode(&bytes, (0, 1)).map_err(Failure::new)?;
        messages.push((received.event, sender));
    }
    Ok(messages)
}

/// Expects one answer and at least one event among the queued messages, all of them from this
/// sender.
#[track_caller]
fn expect_answer_and_event(socket: &Listener, sender: Sender) -> TestResult {
    let messages = read(socket)?;
    let (answers, events): (Vec<_>, Vec<_>) =
        messages.iter().partition(|(event, _)| event.bit() == 0);
    expect_eq("answers", answers, vec![&(Event::Ack { err: 0 }, sender)])?;
    let mut senders: Vec<_> = events.iter().map(|(_, sender)| *sender).collect();
    senders.dedup();
    expect_eq("senders of events", senders, vec![sender])
}

/// Sends a request, and expects only its answer.
#[track_caller]
fn expect_answer(socket: &Listener, words: &[u32], err: u32, sender: Sender) -> TestResult {
    socket.request(words)?;
    let what = format!("answer to {words:?}");
    expect_eq(&what, read(socket)?, vec![(Event::Ack { err }, sender)])
}

/// Sends requests of all kinds on a socket that does not listen, and expects their answers.
#[track_caller]
fn expect_answers(socket: &Listener, sender: Sender) -> TestResult {
    const INVALID: u32 = Errno::EINVAL as u32;
    expect_answer(socket, &[UNKNOWN], INVALID, sender)?;
    expect_answer(socket, &[LISTEN, mask::SID], 0, sender)?;
    expect_answer(socket, &[LISTEN, mask::EXEC], 0, sender)?;
    expect_answer(socket, &[UNKNOWN, 0], INVALID, sender)?;
    expect_answer(socket, &[IGNORE], 0, sender)?;
    expect_answer(socket, &[IGNORE, mask::SID], 0, sender)
}

/// Listens and raises an event.
fn listen_and_mark(socket: &Listener) -> TestResult {
    socket.request(&[LISTEN, mask::COMM])?;
    Ok(mark("from whom?")?)
}

fn events_are_from_root() -> TestResult {
    let socket = socket_with_senders()?;
    listen_and_mark(&socket)?;
    let messages = read(&socket)?;
    let events = messages.iter().filter(|(event, _)| event.bit() != 0);
    let mut senders: Vec<_> = events.map(|(_, sender)| *sender).collect();
    senders.dedup();
    expect_eq("senders of events", senders, vec![ROOT])
}

fn answers_are_from_root() -> TestResult {
    expect_answers(&socket_with_senders()?, ROOT)
}

fn messages_in_a_container_are_from_its_root() -> TestResult {
    let container = Container::idle(ALL)?;
    let handover = Handover::new()?;
    container.run(|| {
        let socket = socket_with_senders()?;
        expect_answers(&socket, ROOT)?;
        listen_and_mark(&socket)?;
        expect_answer_and_event(&socket, ROOT)?;
        socket.ignore()?;
        read(&socket)?;
        listen_and_mark(&socket)?;
        handover.send(&socket)
    })?;
    // Outside, the holder of the socket sees that root under another id.
    expect_answer_and_event(&handover.receive()?, OUTER_ROOT)
}

fn messages_where_0_is_not_mapped_are_from_the_overflow_id() -> TestResult {
    const OWN: u32 = 7;
    let (mapped, handover) = (Gate::new()?, Handover::new()?);
    let process = unmapped(|| {
        mapped.pass()?;
        let (user, group) = (Uid::from_raw(OWN), Gid::from_raw(OWN));
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
        let socket = socket_with_senders()?;
        expect_answers(&socket, UNMAPPED)?;
        listen_and_mark(&socket)?;
        expect_answer_and_event(&socket, UNMAPPED)?;
        socket.ignore()?;
        read(&socket)?;
        listen_and_mark(&socket)?;
        handover.send(&socket)
    })?;
    for kind in ["uid", "gid"] {
        map(process.pid(), kind, &format!("{OWN} {FIRST_ID} 1"))?;
    }
    mapped.open(0)?;
    succeed(process)?;
    // Outside, the sender is the global root, which stands in for the root that is not mapped.
    expect_answer_and_event(&handover.receive()?, ROOT)
}

fn messages_are_from_root_as_soon_as_it_is_mapped() -> TestResult {
    let (asked, mapped) = (Gate::new()?, Gate::new()?);
    let process = unmapped(|| {
        let socket = socket_with_senders()?;
        for (index, sender) in [UNMAPPED, (0, 0, OVERFLOW_ID), ROOT]
            .into_iter()
            .enumerate()
        {
            // The socket listens from the first round on, when no id is mapped to root.
            listen_and_mark(&socket)
                .and_then(|()| expect_answer_and_event(&socket, sender))
                .map_err(|failure| failure.about(format!("with {index} maps")))?;
            expect_answer(&socket, &[UNKNOWN], Errno::EINVAL as u32, sender)?;
            asked.open(0)?;
            mapped.pass()?;
        }
        Ok(())
    })?;
    for kind in ["uid", "gid"] {
        asked.pass()?;
        map(process.pid(), kind, &format!("0 {FIRST_ID} 1"))?;
        mapped.open(0)?;
    }
    asked.pass()?;
    mapped.open(0)?;
    succeed(process)
}

fn an_answer_is_from_the_requesters_root() -> TestResult {
    let container = Container::idle(ALL)?;
    let outer = socket_with_senders()?;
    outer.request(&[LISTEN, mask::SID])?;
    let handover = Handover::new()?;
    container.run(|| {
        let inner = socket_with_senders()?;
        inner.request(&[LISTEN, mask::SID])?;
        handover.send(&inner)
    })?;
    let inner = handover.receive()?;
    for (socket, own, requesters) in [(outer, ROOT, OUTER_ROOT), (inner, OUTER_ROOT, ROOT)] {
        read(&socket)?;
        let request = || Ok(socket.request(&[LISTEN, mask::COMM])?);
        match requesters {
            OUTER_ROOT => container.run(request)?,
            _ => request()?,
        }
        let answer = (Event::Ack { err: 0 }, requesters);
        let messages = read(&socket)?;
        expect(
            messages.contains(&answer),
            format!("{answer:?}, got {messages:?}"),
        )?;
        // The sender of the events that the request asked for is the same as before.
        container.run(|| Ok(mark("from whom?")?))?;
        let mut senders: Vec<_> = read(&socket)?.iter().map(|(_, sender)| *sender).collect();
        senders.dedup();
        expect_eq("senders of events", senders, vec![own])?;
    }
    Ok(())
}

fn messages_in_a_user_namespace_alone_are_from_its_root() -> TestResult {
    require(USER)?;
    succeed(child::fork(|| {
        status(|| {
            become_unprivileged_in(USER)?;
            let socket = socket_with_senders()?;
            expect_answers(&socket, ROOT)?;
            listen_and_mark(&socket)?;
            expect_answer_and_event(&socket, ROOT)
        })
    })?)
}

fn a_refusal_in_a_sandbox_is_from_its_root() -> TestResult {
    require(USER | NET)?;
    succeed(child::fork(|| {
        status(|| {
            become_unprivileged_in(USER | NET)?;
            expect_answer(
                &socket_with_senders()?,
                &[LISTEN],
                Errno::EPERM as u32,
                ROOT,
            )
        })
    })?)
}

fn a_refusal_without_a_module_is_from_the_requesters_root() -> TestResult {
    const ENODEV: u32 = Errno::ENODEV as u32;
    let container = Container::idle(ALL)?;
    let _unloaded = ModuleGuard::unloaded()?;
    expect_answer(&socket_with_senders()?, &[IGNORE], ENODEV, ROOT)?;
    let handover = Handover::new()?;
    container.run(|| {
        let socket = socket_with_senders()?;
        expect_answer(&socket, &[IGNORE], ENODEV, ROOT)?;
        socket.request(&[IGNORE])?;
        handover.send(&socket)
    })?;
    let answer = (Event::Ack { err: ENODEV }, OUTER_ROOT);
    expect_eq("outside", read(&handover.receive()?)?, vec![answer])
}
