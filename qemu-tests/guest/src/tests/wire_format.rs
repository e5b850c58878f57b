// SPDX-License-Identifier: GPL-2.0
//! The wire format (C1 to C4), of one event of every kind.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::{every_kind, in_child, in_self, mark, own_task};
use crate::test;
use crate::wire::{CN_PROC, MESSAGE_SIZE, NLMSG_DONE, Received, mask};

pub const TESTS: &[Test] = &[
    test!(headers_are_those_of_the_connector).covers(&[Line::C1, Line::C4]),
    test!(sender_is_the_kernel_in_the_group_of_process_events).covers(&[Line::C2]),
    test!(sequence_numbers_of_both_headers_are_equal).covers(&[Line::C1]),
    test!(cpu_is_the_one_that_the_task_runs_on).covers(&[Line::C3]),
    test!(timestamp_is_of_the_monotonic_clock).covers(&[Line::C3]),
    test!(undefined_bytes_are_zero).covers(&[Line::C3]),
    test!(undefined_bytes_of_a_short_name_are_zero).covers(&[Line::C3]),
];

/// The messages about a child that raises one event of every kind.
fn messages_of_every_kind() -> Result<Vec<Received>, Failure> {
    let mut listener = Listener::listen_all()?;
    let (pid, messages) = every_kind(&mut listener)?;
    let messages: Vec<_> = messages
        .into_iter()
        .filter(|received| received.event.subject().tgid == pid)
        .collect();
    let kinds = messages
        .iter()
        .fold(0, |kinds, received| kinds | received.event.bit());
    expect_eq("kinds of events", kinds, mask::ALL & !mask::NONZERO_EXIT)?;
    Ok(messages)
}

fn headers_are_those_of_the_connector() -> TestResult {
    for received in messages_of_every_kind()? {
        let (netlink, connector) = (received.message.netlink, received.message.connector);
        let kind = received.event.kind();
        expect_eq(
            &format!("nlmsghdr of {kind}: length, type, flags, pid"),
            (netlink.length, netlink.kind, netlink.flags, netlink.pid),
            (MESSAGE_SIZE as u32, NLMSG_DONE, 0, 0),
        )?;
        expect_eq(
            &format!("cn_msg of {kind}: idx, val, ack, length, flags"),
            (
                connector.idx,
                connector.val,
                connector.ack,
                connector.length,
                connector.flags,
            ),
            (CN_PROC, CN_PROC, 0, 40, 0),
        )?;
    }
    Ok(())
}

fn sender_is_the_kernel_in_the_group_of_process_events() -> TestResult {
    for received in messages_of_every_kind()? {
        let what = format!(
            "port id and groups of the sender of {}",
            received.event.kind()
        );
        expect_eq(&what, received.sender, (0, CN_PROC))?;
    }
    Ok(())
}

fn sequence_numbers_of_both_headers_are_equal() -> TestResult {
    for received in messages_of_every_kind()? {
        let (netlink, connector) = (received.message.netlink, received.message.connector);
        expect_eq(
            &format!("seq of {}", received.event.kind()),
            netlink.seq,
            connector.seq,
        )?;
    }
    Ok(())
}

fn cpu_is_the_one_that_the_task_runs_on() -> TestResult {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .collect();
    if cpus.len() == 1 {
        return Err(Failure::skip("the guest has one CPU"));
    }
    let mut listener = Listener::listen_all()?;
    for cpu in cpus {
        let scene = in_child(&mut listener, || {
            let mut only = CpuSet::new();
            only.set(cpu)?;
            sched_setaffinity(this, &only)?;
            mark("pinned")?;
            Ok(0)
        })?;
        let pinned = scene.messages.iter().find(|received| {
            received.event.bit() == mask::COMM && received.event.subject() == scene.child
        });
        let got = pinned.map(|received| received.message.body.cpu);
        expect_eq("cpu of the event", got, Some(cpu as u32))?;
    }
    Ok(())
}

fn timestamp_is_of_the_monotonic_clock() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let now = || -> Result<u64, Failure> {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
    };
    let before = now()?;
    let messages = in_self(&mut listener, || Ok(mark("now")?))?;
    let after = now()?;
    let mut own = messages
        .iter()
        .filter(|received| received.event.subject() == own_task());
    let timestamp = own.next().map(Received::timestamp_ns).unwrap_or(0);
    expect(
        (before..=after).contains(&timestamp),
        format!("a timestamp between {before} and {after}, got {timestamp}"),
    )
}

fn undefined_bytes_are_zero() -> TestResult {
    for received in messages_of_every_kind()? {
        let undefined = &received.message.body.data[received.defined..];
        let what = format!("bytes after the fields of {}", received.event.kind());
        expect_eq(&what, undefined, vec![0; undefined.len()].as_slice())?;
    }
    Ok(())
}

fn undefined_bytes_of_a_short_name_are_zero() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let messages = in_self(&mut listener, || {
        mark("a longer name")?;
        Ok(mark("b")?)
    })?;
    let own: Vec<_> = messages
        .iter()
        .filter(|received| received.event.subject() == own_task())
        .map(|received| received.message.body.data)
        .collect();
    let mut name = [0; 16];
    name[0] = b'b';
    expect_eq(
        "bytes of the name",
        own.get(1).map(|data| &data[8..]),
        Some(name.as_slice()),
    )
}
