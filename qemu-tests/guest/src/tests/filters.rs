// SPDX-License-Identifier: GPL-2.0
//! Event masks, both forms of a request, changes of a subscription, and programs that a socket's owner
//! attaches to it (C16, C18, C64).

use nix::libc;
use nix::unistd::setsid;

use crate::child;
use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::support::process::succeed;
use crate::support::scenario::{
    events, events_about, every_kind, in_child, in_self, is_exit, mark, own_task, take_through_exit,
};
use crate::support::socket_filter::keep_kind;
use crate::test;
use crate::wire::{Event, IGNORE, LISTEN, Received, mask};

pub const TESTS: &[Test] = &[
    test!(each_bit_alone_gets_that_kind_and_no_other).covers(&[Line::C18]),
    test!(several_bits_get_exactly_their_kinds).covers(&[Line::C18]),
    test!(nonzero_exit_alone_gets_only_failures).covers(&[Line::C16]),
    test!(exit_and_nonzero_exit_together_get_each_exit_once).covers(&[Line::C16]),
    test!(everything_comes[mask_zero](|| Listener::listen(0))).covers(&[Line::C18]),
    test!(everything_comes[four_bytes](Listener::listen_all)).covers(&[Line::C18]),
    test!(unknown_bits_are_left_out_of_the_mask).covers(&[Line::C18]),
    test!(listening_again_changes_the_mask).covers(&[Line::C18]),
    test!(listening_again_loses_nothing_that_both_masks_want).covers(&[Line::C18]),
    test!(nothing_comes_after[ignore](&[IGNORE])).covers(&[Line::C18]),
    test!(nothing_comes_after[ignore_with_a_mask](&[
        IGNORE,
        mask::COMM
    ]))
    .covers(&[Line::C18]),
    test!(listening_after_ignore_starts_again).covers(&[Line::C18]),
    test!(a_socket_gets_nothing[never_listened](never_listened))
        .stock_fails("a bound socket gets every event as soon as there is a listener")
        .covers(&[Line::C24]),
    test!(a_socket_gets_nothing[stopped_listening](stopped_listening)).covers(&[Line::C24]),
    test!(a_socket_gets_nothing[was_refused](was_refused))
        .stock_fails("a bound socket gets every event as soon as there is a listener")
        .covers(&[Line::C24]),
    test!(a_socket_gets_nothing[unbound](unbound)).covers(&[Line::C24]),
    test!(a_program_of_the_socket_selects_a_kind[of_the_message](0)).covers(&[Line::C64]),
    test!(a_program_of_the_socket_selects_a_kind[from_the_network_header](libc::SKF_NET_OFF))
        .covers(&[Line::C64]),
    test!(a_program_of_the_socket_selects_a_kind[from_the_link_layer](
        libc::SKF_LL_OFF
    ))
    .covers(&[Line::C64]),
];

/// Everything that has arrived, without acknowledgements.
fn queued(listener: &mut Listener) -> Result<Vec<Received>, Failure> {
    let mut messages = listener.take_queued()?;
    messages.retain(|received| received.event.bit() != 0);
    Ok(messages)
}

/// Starts a listener with each mask, and expects it to get exactly those of all events that its
/// mask selects.
fn expect_parts(masks: &[u32]) -> TestResult {
    let mut listeners = Vec::new();
    for mask in masks {
        listeners.push((*mask, Listener::listen(*mask)?));
    }
    let mut everything = Listener::listen_all()?;
    let (pid, messages) = every_kind(&mut everything)?;
    for (mask, mut listener) in listeners {
        let expected: Vec<_> = events_about(&messages, pid)
            .into_iter()
            .filter(|event| event.bit() & mask != 0)
            .collect();
        expect(
            !expected.is_empty(),
            format!("an event of mask 0x{mask:08x} to be raised"),
        )?;
        // EXIT may reach one listener later than another. All other events are there already.
        let mut got = if mask & mask::EXIT == 0 {
            queued(&mut listener)?
        } else {
            take_through_exit(&mut listener, pid)?
        };
        got.retain(|received| received.event.bit() != 0);
        let foreign = got.iter().find(|received| received.event.bit() & mask == 0);
        let foreign = foreign.map(|received| received.event);
        expect_eq(&format!("other kinds for mask 0x{mask:08x}"), foreign, None)?;
        expect_eq(
            &format!("events for mask 0x{mask:08x}"),
            events_about(&got, pid),
            expected,
        )?;
    }
    Ok(())
}

fn each_bit_alone_gets_that_kind_and_no_other() -> TestResult {
    expect_parts(&[
        mask::FORK,
        mask::EXEC,
        mask::UID,
        mask::GID,
        mask::SID,
        mask::PTRACE,
        mask::COMM,
        mask::COREDUMP,
        mask::EXIT,
    ])
}

fn several_bits_get_exactly_their_kinds() -> TestResult {
    expect_parts(&[
        mask::FORK | mask::EXIT,
        mask::SID | mask::UID | mask::GID,
        mask::ALL & !mask::NONZERO_EXIT & !mask::COMM,
    ])
}

fn nonzero_exit_alone_gets_only_failures() -> TestResult {
    let mut failures = Listener::listen(mask::NONZERO_EXIT)?;
    let mut everything = Listener::listen_all()?;
    let succeeding = child::fork(|| 0)?;
    take_through_exit(&mut everything, succeeding.pid().as_raw())?;
    let failing = child::fork(|| 3)?;
    let pid = failing.pid().as_raw();
    let mut messages = take_through_exit(&mut failures, pid)?;
    messages.retain(|received| received.event.bit() != 0);
    let all_failed = messages
        .iter()
        .all(|received| matches!(received.event, Event::Exit { code, .. } if code != 0));
    expect(all_failed, "only exits with a status other than 0")?;
    let of_success = messages
        .iter()
        .any(|received| is_exit(received, succeeding.pid().as_raw()));
    expect(!of_success, "no event about the child that succeeded")?;
    succeeding.wait()?;
    failing.wait()?;
    Ok(())
}

fn exit_and_nonzero_exit_together_get_each_exit_once() -> TestResult {
    let mut listener = Listener::listen(mask::EXIT | mask::NONZERO_EXIT)?;
    let (mut messages, mut expected) = (Vec::new(), Vec::new());
    for status in [3, 0, 5, 0] {
        let child = child::fork(|| status)?;
        let pid = child.pid().as_raw();
        messages.extend(take_through_exit(&mut listener, pid)?);
        child.wait()?;
        expected.push((pid, (status as u32) << 8));
    }
    // Each child began after the end of the previous one, so a second EXIT would come in between.
    let of_children = |event| match event {
        Event::Exit { task, code, .. } if expected.iter().any(|(pid, _)| *pid == task.pid) => {
            Some((task.pid, code))
        }
        _ => None,
    };
    let got: Vec<_> = messages
        .iter()
        .filter_map(|message| of_children(message.event))
        .collect();
    expect_eq("exits (pid, code)", got, expected)
}

/// A listener gets every kind of event.
fn everything_comes(listen: fn() -> Result<Listener, ListenerError>) -> TestResult {
    let mut listener = listen()?;
    let (pid, messages) = every_kind(&mut listener)?;
    let events = events_about(&messages, pid);
    let kinds = events.iter().fold(0, |kinds, event| kinds | event.bit());
    expect_eq("kinds of events", kinds, mask::ALL & !mask::NONZERO_EXIT)
}

fn unknown_bits_are_left_out_of_the_mask() -> TestResult {
    const UNKNOWN: u32 = 0x0001_0000;
    let mut listener = Listener::listen(mask::SID | UNKNOWN)?;
    let mut everything = Listener::listen_all()?;
    let scene = in_child(&mut everything, || Ok(setsid()?.as_raw()))?;
    let got = events_about(&queued(&mut listener)?, scene.child.pid);
    expect_eq("events", got.iter().map(Event::kind).collect(), vec!["sid"])
}

fn listening_again_changes_the_mask() -> TestResult {
    let mut listener = Listener::listen(mask::COMM)?;
    listener.request(&[LISTEN, mask::SID])?;
    let mut everything = Listener::listen_all()?;
    let scene = in_child(&mut everything, || {
        mark("not wanted")?;
        Ok(setsid()?.as_raw())
    })?;
    let got = events_about(&queued(&mut listener)?, scene.child.pid);
    expect_eq("events", got.iter().map(Event::kind).collect(), vec!["sid"])
}

fn listening_again_loses_nothing_that_both_masks_want() -> TestResult {
    const CHANGES: usize = 50;
    let mut listener = Listener::listen(mask::COMM)?;
    for change in 0..CHANGES {
        mark("before")?;
        let mask = if change % 2 == 0 {
            mask::COMM | mask::SID
        } else {
            mask::COMM
        };
        listener.request(&[LISTEN, mask])?;
        mark("after")?;
    }
    let got = events_about(&queued(&mut listener)?, own_task().pid);
    expect_eq("number of own events", got.len(), 2 * CHANGES)
}

fn nothing_comes_after(request: &[u32]) -> TestResult {
    let mut listener = Listener::listen_all()?;
    let mut everything = Listener::listen_all()?;
    mark("before")?;
    listener.request(request)?;
    let before = events_about(&queued(&mut listener)?, own_task().pid);
    expect(!before.is_empty(), "the event before the request")?;
    in_self(&mut everything, || Ok(mark("after")?))?;
    let after: Vec<_> = queued(&mut listener)?
        .iter()
        .map(|received| received.event)
        .collect();
    expect_eq("events after the request", after, vec![])
}

fn listening_after_ignore_starts_again() -> TestResult {
    let mut listener = Listener::listen_all()?;
    listener.ignore()?;
    listener.request(&[LISTEN, mask::COMM])?;
    mark("received")?;
    let got = events_about(&queued(&mut listener)?, own_task().pid);
    expect_eq("number of own events", got.len(), 1)
}

/// A socket gets none of the events that a listener gets.
fn a_socket_gets_nothing(open: fn() -> Result<Listener, Failure>) -> TestResult {
    let mut silent = open()?;
    silent.take_queued()?;
    let mut everything = Listener::listen_all()?;
    in_self(&mut everything, || Ok(mark("for listeners")?))?;
    expect_eq("messages", silent.take_queued()?.len(), 0)
}

fn never_listened() -> Result<Listener, Failure> {
    Ok(Listener::open()?)
}

fn stopped_listening() -> Result<Listener, Failure> {
    let socket = Listener::listen_all()?;
    socket.ignore()?;
    Ok(socket)
}

fn was_refused() -> Result<Listener, Failure> {
    let socket = Listener::open()?;
    socket.request(&[99])?;
    socket.request(&[LISTEN, mask::COMM, 0])?;
    Ok(socket)
}

fn unbound() -> Result<Listener, Failure> {
    let mut socket = Listener::open_unbound()?;
    socket.socket().bind_auto()?;
    Ok(socket)
}

fn a_program_of_the_socket_selects_a_kind(base: i32) -> TestResult {
    let mut listener = Listener::listen_all()?;
    keep_kind(&listener, base, mask::COMM)?;
    listener.take_queued()?;
    succeed(child::fork(|| i32::from(mark("in the child").is_err()))?)?;
    mark("after it")?;
    let mut kinds: Vec<_> = events(&mut listener)?.iter().map(Event::kind).collect();
    kinds.dedup();
    expect_eq("kinds", kinds, vec!["comm"])
}
