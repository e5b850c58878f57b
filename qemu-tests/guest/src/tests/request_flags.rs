// SPDX-License-Identifier: GPL-2.0
//! The third form of requests, `struct proc_listen` (C50): what is known of it is done, and what is
//! not has to be 0.

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::counting::expect_count;
use super::scenario::{mark, own_task};
use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::listing::Listing;
use crate::test;
use crate::wire::{
    BATCH, Event, IGNORE, LISTEN, NLMSG_DONE, NLMSG_EVENT, Received, mask, proc_listen,
};

pub const TESTS: &[Test] = &[
    test!(the_third_form_listens_as_the_second)
        .stock_fails(UNKNOWN_TO_STOCK)
        .covers(&[Line::C50]),
    test!(the_third_form_ignores)
        .stock_fails(UNKNOWN_TO_STOCK)
        .covers(&[Line::C50]),
    test!(a_longer_request_is_taken_if_the_rest_is_0)
        .stock_fails(UNKNOWN_TO_STOCK)
        .covers(&[Line::C50]),
    test!(what_is_not_0_and_not_known_is_refused)
        .not_on_stock(UNKNOWN_TO_STOCK)
        .covers(&[Line::C50]),
    test!(a_refused_change_changes_nothing)
        .not_on_stock(UNKNOWN_TO_STOCK)
        .covers(&[Line::C50]),
    test!(listening_again_replaces_the_flags)
        .not_on_stock(UNKNOWN_TO_STOCK)
        .covers(&[Line::C50, Line::C54]),
];

const UNKNOWN_TO_STOCK: &str = "requests have 4 or 8 bytes, and others are not answered";

const SEQ: u32 = 42;

/// Sends a request, and takes its answer from among the messages that are there.
#[track_caller]
fn ask(listener: &mut Listener, data: &[u8]) -> Result<u32, Failure> {
    listener.send(data, SEQ, 0)?;
    let messages = listener.take_queued()?;
    let mut answers = messages.iter().filter_map(|received| match received.event {
        Event::Ack { err } => Some(err),
        _ => None,
    });
    match (answers.next(), answers.next()) {
        (Some(err), None) => Ok(err),
        _ => Err(Failure::new(format!("one answer, got {messages:?}"))),
    }
}

/// Raises an event, and takes it.
#[track_caller]
fn hear(listener: &mut Listener) -> Result<Received, Failure> {
    mark("heard")?;
    let mut messages = listener.take_queued()?;
    messages.retain(|received| received.event.subject() == own_task());
    match messages.as_slice() {
        [event] => Ok(*event),
        _ => Err(Failure::new(format!("one event, got {messages:?}"))),
    }
}

fn the_third_form_listens_as_the_second() -> TestResult {
    let mut listener = Listener::open()?;
    let request = proc_listen(LISTEN, mask::COMM, 0);
    expect_eq("err", ask(&mut listener, request.as_bytes())?, 0)?;
    let event = hear(&mut listener)?;
    expect_eq("type", event.message.netlink.kind, NLMSG_DONE)?;
    expect_eq("messages", listener.take_queued()?.len(), 0)
}

fn the_third_form_ignores() -> TestResult {
    let mut listener = Listener::listen(mask::COMM)?;
    listener.take_queued()?;
    let request = proc_listen(IGNORE, mask::COMM, BATCH);
    expect_eq("err", ask(&mut listener, request.as_bytes())?, 0)?;
    mark("not heard")?;
    expect_eq("messages", listener.take_queued()?.len(), 0)
}

fn a_longer_request_is_taken_if_the_rest_is_0() -> TestResult {
    // The last is the largest that the connector takes: 16384 bytes with its own header of 20.
    for length in (24..=64).chain([100, 1000, 4096, 16384 - 20]) {
        let mut listener = Listener::open()?;
        let mut request = proc_listen(LISTEN, mask::COMM, 0).as_bytes().to_vec();
        request.resize(length, 0);
        let what = format!("err of {length} bytes");
        expect_eq(&what, ask(&mut listener, &request)?, 0)?;
        hear(&mut listener)?;
    }
    Ok(())
}

/// Requests that mean nothing: each with a bit too many, or a byte behind what is known.
fn senseless(op: u32) -> Vec<Vec<u8>> {
    let right = proc_listen(op, mask::SID, BATCH);
    let mut requests = Vec::new();
    for bit in 0..u32::BITS {
        let mut flags = right;
        flags[2] ^= 1 << bit;
        if 1 << bit != BATCH {
            requests.push(flags.as_bytes().to_vec());
        }
        // `reserved`, and both halves of `cgroup_id`.
        for field in 3..6 {
            let mut words = right;
            words[field] = 1 << bit;
            requests.push(words.as_bytes().to_vec());
        }
    }
    for length in [25, 26, 27, 28, 32, 63, 64, 4096, 16384 - 20] {
        for place in [24, length - 1] {
            let mut request = right.as_bytes().to_vec();
            request.resize(length, 0);
            request[place] = 1;
            requests.push(request);
        }
    }
    for length in (9..24).chain([5, 6, 7]) {
        requests.push(right.as_bytes()[..length].to_vec());
    }
    requests
}

fn what_is_not_0_and_not_known_is_refused() -> TestResult {
    let mut listener = Listener::open()?;
    for op in [LISTEN, IGNORE] {
        for request in senseless(op) {
            let err = ask(&mut listener, &request)?;
            expect_eq(&format!("err of {request:?}"), err, Errno::EINVAL as u32)?;
        }
    }
    for op in [0, 3, u32::MAX] {
        let request = proc_listen(op, mask::COMM, 0);
        let err = ask(&mut listener, request.as_bytes())?;
        expect_eq(&format!("err of op {op}"), err, Errno::EINVAL as u32)?;
    }
    expect_count(0)?;
    mark("not heard")?;
    expect_eq("messages", listener.take_queued()?.len(), 0)
}

fn a_refused_change_changes_nothing() -> TestResult {
    for flags in [0, BATCH] {
        let mut listener = Listener::listen_with(mask::COMM, flags)?;
        listener.take_queued()?;
        for op in [LISTEN, IGNORE] {
            for request in senseless(op) {
                let err = ask(&mut listener, &request)?;
                expect_eq(&format!("err of {request:?}"), err, Errno::EINVAL as u32)?;
            }
        }
        let line = Listing::of(listener.port_id()?)?;
        expect_eq(
            "mask and flags",
            (line.mask, line.flags),
            (mask::COMM, flags),
        )?;
        hear(&mut listener)?;
    }
    Ok(())
}

fn listening_again_replaces_the_flags() -> TestResult {
    let mut listener = Listener::open()?;
    let with = proc_listen(LISTEN, mask::COMM, BATCH);
    let without = proc_listen(LISTEN, mask::COMM, 0);
    let second = [LISTEN, mask::COMM];
    let first = [LISTEN];
    for (request, flags) in [
        (with.as_bytes(), BATCH),
        (without.as_bytes(), 0),
        (with.as_bytes(), BATCH),
        (second.as_bytes(), 0),
        (with.as_bytes(), BATCH),
        (first.as_bytes(), 0),
    ] {
        expect_eq("err", ask(&mut listener, request)?, 0)?;
        let kind = hear(&mut listener)?.message.netlink.kind;
        let expected = if flags == BATCH {
            NLMSG_EVENT
        } else {
            NLMSG_DONE
        };
        expect_eq("type", kind, expected)?;
        let line = Listing::of(listener.port_id()?)?;
        expect_eq("flags", line.flags, flags)?;
    }
    Ok(())
}
