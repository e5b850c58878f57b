// SPDX-License-Identifier: GPL-2.0
//! The third form of requests, `struct proc_listen` (C50): known fields and bits take effect, and all
//! other bits and bytes have to be 0.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::getpid;
use zerocopy::IntoBytes;

use crate::child::{self, pidfd};
use crate::debugfs::{self, Listing};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::cgroup::{self, Group, inode_of, known_flags};
use crate::support::process::{status, succeed};
use crate::support::scenario::{ask, expect_count, mark, own_task};
use crate::support::stock::NO_FLAGS;
use crate::test;
use crate::wire::{
    BATCH, CGROUP, IDENTITY, IGNORE, LISTEN, NLMSG_DONE, NLMSG_EVENT, PROCESSES, Received, mask,
    proc_listen, proc_listen_in,
};

pub const TESTS: &[Test] = &Declaration::new().not_on_stock(NO_FLAGS).of([
    test!(the_third_form_listens_as_the_second)
        .stock_fails(NO_FLAGS)
        .covers(&[Line::C50]),
    test!(the_third_form_ignores)
        .stock_fails(NO_FLAGS)
        .covers(&[Line::C50]),
    test!(a_longer_request_is_accepted_if_the_rest_is_0)
        .stock_fails(NO_FLAGS)
        .covers(&[Line::C50]),
    test!(a_request_has_4_or_8_bytes_or_24_or_more).covers(&[Line::C20, Line::C50]),
    test!(all_flags_are_known_together).covers(&[Line::C50, Line::C51, Line::C52, Line::C53]),
    test!(unknown_bits_and_bytes_are_refused).covers(&[Line::C50]),
    test!(a_refused_change_changes_nothing)
        .limit(Duration::from_secs(30))
        .covers(&[Line::C50]),
    test!(a_cgroup_that_is_not_there_is_refused).covers(&[Line::C20, Line::C53]),
    test!(a_cgroup_that_was_removed_is_refused).covers(&[Line::C53]),
    test!(a_cgroup_outside_the_cgroup_namespace_is_refused).covers(&[Line::C53]),
    test!(a_change_to_a_cgroup_that_is_not_there_changes_nothing).covers(&[Line::C50, Line::C53]),
    test!(ignore_looks_for_no_cgroup).covers(&[Line::C50, Line::C53]),
    test!(listening_again_replaces_the_flags).covers(&[Line::C50, Line::C51, Line::C52, Line::C54]),
    test!(listening_again_replaces_the_cgroup).covers(&[Line::C50, Line::C53]),
]);

/// Sends a request that has to be refused.
#[track_caller]
fn expect_refusal(listener: &mut Listener, request: &[u8], refused: Errno) -> TestResult {
    const SHOWN: usize = 64;
    let err = ask(listener, request)?;
    expect_eq("err", err, refused as u32).map_err(|failure| {
        let begin = &request[..request.len().min(SHOWN)];
        failure.about(format!("{} bytes: {begin:?}", request.len()))
    })
}

/// Raises an event, and returns it as the listener got it.
#[track_caller]
fn raise_and_take(listener: &mut Listener) -> Result<Received, Failure> {
    mark("received")?;
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
    expect_eq("err", ask(&mut listener, &request)?, 0)?;
    let event = raise_and_take(&mut listener)?;
    expect_eq("type", event.message.netlink.kind, NLMSG_DONE)?;
    expect_eq("messages", listener.take_queued()?.len(), 0)
}

fn the_third_form_ignores() -> TestResult {
    let mut listener = Listener::listen(mask::COMM)?;
    listener.take_queued()?;
    let request = proc_listen(IGNORE, mask::COMM, BATCH);
    expect_eq("err", ask(&mut listener, &request)?, 0)?;
    mark("not received")?;
    expect_eq("messages", listener.take_queued()?.len(), 0)
}

fn a_longer_request_is_accepted_if_the_rest_is_0() -> TestResult {
    // The last is the largest that the connector takes: 16384 bytes with its own header of 20.
    for length in (24..=64).chain([100, 1000, 4096, 16384 - 20]) {
        let mut listener = Listener::open()?;
        let mut request = proc_listen(LISTEN, mask::COMM, 0).as_bytes().to_vec();
        request.resize(length, 0);
        let what = format!("err of {length} bytes");
        expect_eq(&what, ask(&mut listener, &request[..])?, 0)?;
        raise_and_take(&mut listener)?;
    }
    Ok(())
}

/// The id of the cgroup that this process is in.
fn own_cgroup() -> Result<u64, Failure> {
    cgroup::id_of(&pidfd(getpid())?)
}

/// Skips a test that needs cgroups.
fn require_cgroups() -> TestResult {
    match cgroup::are_there() {
        true => Ok(()),
        false => Err(Failure::skip("the kernel has no CONFIG_CGROUPS")),
    }
}

fn a_request_has_4_or_8_bytes_or_24_or_more() -> TestResult {
    let mut listener = Listener::open()?;
    for op in [LISTEN, IGNORE] {
        for flags in [0, known_flags() & !CGROUP] {
            let request = proc_listen(op, mask::COMM, flags);
            for length in 0..=64 {
                let mut data = request.as_bytes().to_vec();
                data.resize(length, 0);
                let expected = match length {
                    4 | 8 | 24.. => 0,
                    _ => Errno::EINVAL as u32,
                };
                let what = format!("err of {length} bytes of {request:?}");
                expect_eq(&what, ask(&mut listener, &data[..])?, expected)?;
                // Ends the listener, if there is one now, before the next request.
                expect_eq("err", ask(&mut listener, &[IGNORE])?, 0)?;
            }
        }
    }
    Ok(())
}

fn all_flags_are_known_together() -> TestResult {
    let known = known_flags();
    let cgroup_id = match known & CGROUP {
        0 => 0,
        _ => own_cgroup()?,
    };
    let mut listener = Listener::open()?;
    let request = proc_listen_in(LISTEN, mask::COMM, known, cgroup_id);
    expect_eq("err", ask(&mut listener, &request)?, 0)?;
    let line = Listing::of(listener.port_id()?)?;
    let asked = (line.mask, line.flags, line.cgroup);
    expect_eq("asked for", asked, (mask::COMM, known, cgroup_id))?;
    let event = raise_and_take(&mut listener)?;
    expect_eq("type", event.message.netlink.kind, NLMSG_EVENT)?;
    expect(event.identity.is_some(), "an identity")?;
    let request = proc_listen_in(IGNORE, mask::COMM, known, cgroup_id);
    expect_eq("err", ask(&mut listener, &request)?, 0)?;
    expect_count(0)
}

/// Invalid requests. Each has an unknown bit, a byte that is not 0 after the known fields, a wrong
/// length, or a cgroup without the flag.
fn invalid(op: u32) -> Result<Vec<Vec<u8>>, Failure> {
    let known = known_flags();
    let right = proc_listen(op, mask::SID, known & !CGROUP);
    let mut all_right = vec![right];
    if known & CGROUP != 0 {
        all_right.push(proc_listen_in(op, mask::SID, known, own_cgroup()?));
    }
    let mut requests = Vec::new();
    for right in all_right {
        for bit in 0..u32::BITS {
            let mut flags = right;
            flags[2] |= 1 << bit;
            if known & 1 << bit == 0 {
                requests.push(flags.as_bytes().to_vec());
            }
            let mut reserved = right;
            reserved[3] = 1 << bit;
            requests.push(reserved.as_bytes().to_vec());
            let mut events = right;
            events[1] |= 1 << bit;
            if mask::EVERYTHING & 1 << bit == 0 {
                requests.push(events.as_bytes().to_vec());
            }
        }
        for length in (25..=64).chain([4096, 16384 - 20]) {
            for place in [24, length - 1] {
                let mut request = right.as_bytes().to_vec();
                request.resize(length, 0);
                request[place] = 1;
                requests.push(request);
            }
        }
        for length in (0..24).filter(|length| ![4, 8].contains(length)) {
            requests.push(right.as_bytes()[..length].to_vec());
        }
    }
    // A cgroup without the flag, even if the cgroup exists.
    for bit in 0..u64::BITS {
        let request = proc_listen_in(op, mask::SID, known & !CGROUP, 1 << bit);
        requests.push(request.as_bytes().to_vec());
    }
    if known & CGROUP != 0 {
        let request = proc_listen_in(op, mask::SID, 0, own_cgroup()?);
        requests.push(request.as_bytes().to_vec());
    }
    Ok(requests)
}

fn unknown_bits_and_bytes_are_refused() -> TestResult {
    let mut listener = Listener::open()?;
    for op in [LISTEN, IGNORE] {
        for request in invalid(op)? {
            expect_refusal(&mut listener, &request, Errno::EINVAL)?;
        }
    }
    for op in [0, 4, u32::MAX] {
        let request = proc_listen(op, mask::COMM, 0);
        let err = ask(&mut listener, &request)?;
        expect_eq(&format!("err of op {op}"), err, Errno::EINVAL as u32)?;
    }
    expect_silence(&mut listener)
}

/// Expects that there is no listener.
fn expect_silence(listener: &mut Listener) -> TestResult {
    expect_count(0)?;
    mark("not received")?;
    expect_eq("messages", listener.take_queued()?.len(), 0)
}

/// What the listing shows of a listener, and the form of its next event.
#[derive(Debug, PartialEq)]
struct State {
    line: debugfs::ListenerLine,
    kind: u16,
    has_identity: bool,
}

impl State {
    /// Raises an event to find out.
    fn of(listener: &mut Listener) -> Result<Self, Failure> {
        let event = raise_and_take(listener)?;
        let line = Listing::of(listener.port_id()?)?;
        Ok(Self {
            line,
            kind: event.message.netlink.kind,
            has_identity: event.identity.is_some(),
        })
    }

    /// The same, after one more event.
    fn one_later(mut self) -> Self {
        self.line.delivered += 1;
        self
    }
}

/// Sends requests that have to be refused, and expects that they do not change the listener.
fn expect_no_change(listener: &mut Listener, requests: &[Vec<u8>], refused: Errno) -> TestResult {
    let before = State::of(listener)?;
    for request in requests {
        expect_refusal(listener, request, refused)?;
    }
    expect_eq("listener", State::of(listener)?, before.one_later())
}

/// One listener with each form of messages, all for renames.
fn listeners() -> Result<Vec<Listener>, Failure> {
    let mut listeners = Vec::new();
    for flags in [0, BATCH, IDENTITY, PROCESSES | IDENTITY | BATCH] {
        listeners.push(Listener::listen_with(mask::COMM, flags)?);
        if cgroup::are_there() {
            let cgroup_id = own_cgroup()?;
            listeners.push(Listener::listen_in(mask::COMM, flags, cgroup_id)?);
        }
    }
    for listener in &mut listeners {
        listener.take_queued()?;
    }
    Ok(listeners)
}

fn a_refused_change_changes_nothing() -> TestResult {
    let requests = [invalid(LISTEN)?, invalid(IGNORE)?].concat();
    for listener in &mut listeners()? {
        // Discards the events that were raised for other listeners.
        listener.take_queued()?;
        expect_no_change(listener, &requests, Errno::EINVAL)?;
    }
    Ok(())
}

/// Ids that no cgroup has.
fn unused_ids() -> Result<Vec<u64>, Failure> {
    let own = own_cgroup()?;
    let mut ids = vec![0, u64::MAX, u64::MAX >> 1, 1 << 63, u64::from(u32::MAX)];
    // Ids that differ from that of an existing cgroup in one bit.
    ids.extend((0..u64::BITS).map(|bit| own | 1 << bit).filter(|id| {
        // Smaller ids may be those of files, and of cgroups that other processes made.
        *id != own && *id > u64::from(u32::MAX)
    }));
    Ok(ids)
}

/// Requests to listen in these cgroups.
fn listen_in(ids: &[u64]) -> Vec<Vec<u8>> {
    let flags = [
        CGROUP,
        CGROUP | BATCH,
        PROCESSES | IDENTITY | BATCH | CGROUP,
    ];
    let requests = ids.iter().flat_map(|id| {
        flags.map(|flags| {
            proc_listen_in(LISTEN, mask::ALL, flags, *id)
                .as_bytes()
                .to_vec()
        })
    });
    requests.collect()
}

/// Expects these requests to be refused, and the socket not to become a listener.
fn expect_no_listener(requests: &[Vec<u8>]) -> TestResult {
    let mut listener = Listener::open()?;
    for request in requests {
        expect_refusal(&mut listener, request, Errno::ENOENT)?;
    }
    expect_silence(&mut listener)
}

fn a_cgroup_that_is_not_there_is_refused() -> TestResult {
    require_cgroups()?;
    expect_no_listener(&listen_in(&unused_ids()?))?;
    // A file has an id of the same kind, and is no cgroup.
    let group = Group::new()?;
    let file = inode_of(&group.directory().join("cgroup.procs"))?;
    expect_no_listener(&listen_in(&[file]))
}

fn a_cgroup_that_was_removed_is_refused() -> TestResult {
    let group = Group::new()?;
    let id = group.id()?;
    // This listener keeps the cgroup, so that its id is still known.
    let keeps = Listener::listen_in(mask::COMM, 0, id)?;
    drop(group);
    let mut listener = Listener::open()?;
    for request in listen_in(&[id]) {
        expect_refusal(&mut listener, &request, Errno::ENOENT)?;
    }
    let line = Listing::of(keeps.port_id()?)?;
    expect_eq("cgroup of the earlier listener", line.cgroup, id)?;
    drop(keeps);
    expect_no_listener(&listen_in(&[id]))
}

fn a_cgroup_outside_the_cgroup_namespace_is_refused() -> TestResult {
    let group = Group::new()?;
    if !Path::new("/proc/self/ns/cgroup").exists() {
        return Err(Failure::skip("the kernel has no cgroup namespaces"));
    }
    let (id, outside) = (group.id()?, own_cgroup()?);
    expect(id != outside, "another cgroup")?;
    succeed(child::fork(|| {
        status(|| {
            group.enter()?;
            unshare(CloneFlags::CLONE_NEWCGROUP)?;
            expect_no_listener(&listen_in(&[outside]))?;
            let mut listener = Listener::open()?;
            let request = proc_listen_in(LISTEN, mask::COMM, CGROUP, id);
            expect_eq("err", ask(&mut listener, &request)?, 0)?;
            raise_and_take(&mut listener)?;
            expect_no_change(&mut listener, &listen_in(&[outside]), Errno::ENOENT)
        })
    })?)
}

fn a_change_to_a_cgroup_that_is_not_there_changes_nothing() -> TestResult {
    require_cgroups()?;
    let requests = listen_in(&unused_ids()?);
    for listener in &mut listeners()? {
        listener.take_queued()?;
        expect_no_change(listener, &requests, Errno::ENOENT)?;
    }
    Ok(())
}

fn ignore_looks_for_no_cgroup() -> TestResult {
    require_cgroups()?;
    let own = own_cgroup()?;
    for cgroup_id in [unused_ids()?, vec![own]].concat() {
        let mut listener = Listener::listen_in(mask::COMM, 0, own)?;
        listener.take_queued()?;
        let request = proc_listen_in(IGNORE, mask::COMM, CGROUP, cgroup_id);
        let what = format!("err of {cgroup_id:#x}");
        expect_eq(&what, ask(&mut listener, &request)?, 0)?;
        expect_silence(&mut listener)?;
    }
    Ok(())
}

fn listening_again_replaces_the_flags() -> TestResult {
    let mut listener = Listener::open()?;
    let with = |flags| proc_listen(LISTEN, mask::COMM, flags).as_bytes().to_vec();
    let second = [LISTEN, mask::COMM].as_bytes().to_vec();
    let first = LISTEN.as_bytes().to_vec();
    let all = PROCESSES | IDENTITY | BATCH;
    for (request, flags) in [
        (with(BATCH), BATCH),
        (with(0), 0),
        (with(BATCH), BATCH),
        (second.clone(), 0),
        (with(IDENTITY), IDENTITY),
        (with(BATCH), BATCH),
        (with(IDENTITY | BATCH), IDENTITY | BATCH),
        (first.clone(), 0),
        (with(PROCESSES), PROCESSES),
        (with(all), all),
        (second, 0),
        (with(all), all),
        (first, 0),
    ] {
        expect_eq("err", ask(&mut listener, &request[..])?, 0)?;
        let event = raise_and_take(&mut listener)?;
        let expected = if flags & BATCH != 0 {
            NLMSG_EVENT
        } else {
            NLMSG_DONE
        };
        expect_eq("type", event.message.netlink.kind, expected)?;
        let has_identity = event.identity.is_some();
        expect_eq("identity", has_identity, flags & IDENTITY != 0)?;
        let line = Listing::of(listener.port_id()?)?;
        expect_eq("flags", line.flags, flags)?;
    }
    Ok(())
}

fn listening_again_replaces_the_cgroup() -> TestResult {
    let group = Group::new()?;
    let (own, other) = (own_cgroup()?, group.id()?);
    expect(own != other, "another cgroup")?;
    let mut listener = Listener::open()?;
    let inside = |id| {
        let request = proc_listen_in(LISTEN, mask::COMM, CGROUP, id);
        request.as_bytes().to_vec()
    };
    let second = [LISTEN, mask::COMM].as_bytes().to_vec();
    for (request, id, gets_event) in [
        (inside(other), other, false),
        (inside(own), own, true),
        (inside(other), other, false),
        (second, 0, true),
        (inside(other), other, false),
        (LISTEN.as_bytes().to_vec(), 0, true),
    ] {
        expect_eq("err", ask(&mut listener, &request[..])?, 0)?;
        let line = Listing::of(listener.port_id()?)?;
        expect_eq("cgroup", line.cgroup, id)?;
        if gets_event {
            raise_and_take(&mut listener)?;
        } else {
            mark("not received")?;
            expect_eq("messages", listener.take_queued()?.len(), 0)?;
        }
    }
    Ok(())
}
