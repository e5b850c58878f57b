// SPDX-License-Identifier: GPL-2.0
//! Which users may listen, and with how many listeners (C31, C58), by the module's parameter and by
//! the limit of a user. Also the listing (C30).

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::sysinfo::sysinfo;
use nix::unistd::{Gid, Uid, setresgid, setresuid};

use crate::child::{self, Gate, own_pid};
use crate::debugfs::{self, Listing};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{ALL, Container, require};
use crate::support::fault_injection::Setting;
use crate::support::module::ModuleGuard;
use crate::support::process::{status, succeed};
use crate::support::scenario::{
    ask_for_comm, expect_count, expect_own_events, mark, request_from_two_threads, try_to_listen,
};
use crate::test;
use crate::wire::{Event, LISTEN, mask};

pub const TESTS: &[Test] = &Declaration::new().not_on_stock(NO_LIMIT).of([
    test!(every_user_may_listen_by_default)
        .stock_passes()
        .covers(&[Line::C31]),
    test!(unprivileged_zero_refuses_users)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C31]),
    test!(unprivileged_zero_does_not_refuse_root)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C31]),
    test!(a_user_has_no_more_listeners_than_the_limit).covers(&[Line::C31, Line::C58]),
    test!(threads_that_share_a_socket_need_room_for_one_listener).covers(&[Line::C31, Line::C58]),
    test!(each_user_has_a_separate_limit).covers(&[Line::C31, Line::C58]),
    test!(root_has_no_limit).covers(&[Line::C31, Line::C58]),
    test!(a_users_own_namespaces_share_the_limit).covers(&[Line::C31, Line::C58]),
    test!(a_namespace_can_lower_its_limit).covers(&[Line::C31, Line::C58]),
    test!(the_default_limit_is_what_the_document_says).covers(&[Line::C31, Line::C58]),
    test!(the_listing_names_a_listener)
        .not_on_stock(NO_LISTING)
        .covers(&[Line::C30]),
    test!(the_listing_follows_the_mask)
        .not_on_stock(NO_LISTING)
        .covers(&[Line::C30]),
    test!(the_listing_is_for_root_alone)
        .not_on_stock(NO_LISTING)
        .covers(&[Line::C30]),
]);

const NO_MODULE: &str = "cn_proc is built in and has no parameters";
const NO_LIMIT: &str = "nothing limits how many listeners a user has";
const NO_LISTING: &str = "there is no list of listeners";

const USER: u32 = 65534;
const OTHER_USER: u32 = 4242;

/// Runs a function in a child without privileges.
fn as_user(user: u32, function: impl FnOnce() -> TestResult) -> TestResult {
    let process = child::fork(|| {
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        status(|| {
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
            function()
        })
    })?;
    succeed(process)
}

/// The directory with the limits of this user namespace, and the file with that of listeners.
const LIMITS: &str = "/proc/sys/user";
const LIMIT: &str = "max_proc_listeners";

/// Limits how many listeners a user may have, until this is dropped.
fn limit(listeners: u32) -> Result<Setting, Failure> {
    Ok(Setting::change(LIMITS, LIMIT, &listeners.to_string())?)
}

/// Sends LISTEN on one new socket after another, and expects these answers.
fn expect_answers(errs: &[u32]) -> Result<Vec<Listener>, Failure> {
    let mut listeners = Vec::new();
    for (index, expected) in errs.iter().enumerate() {
        let (listener, err) = try_to_listen()?;
        expect_eq(&format!("answer {index}"), err, *expected)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

const EPERM: u32 = Errno::EPERM as u32;
const EUSERS: u32 = Errno::EUSERS as u32;

fn every_user_may_listen_by_default() -> TestResult {
    as_user(USER, || {
        let mut listener = Listener::open_unprivileged()?;
        listener.request(&[LISTEN])?;
        expect_own_events(&mut listener)
    })
}

fn unprivileged_zero_refuses_users() -> TestResult {
    let _changed = ModuleGuard::with(c"unprivileged=0")?;
    as_user(USER, || {
        let (mut refused, err) = try_to_listen()?;
        expect_eq("answer", err, EPERM)?;
        expect_eq("answer to trying again", ask_for_comm(&mut refused)?, EPERM)?;
        mark("not received")?;
        expect_eq("messages", refused.take_queued()?.len(), 0)
    })?;
    expect_count(0)
}

fn unprivileged_zero_does_not_refuse_root() -> TestResult {
    let _changed = ModuleGuard::with(c"unprivileged=0")?;
    let (mut listener, err) = try_to_listen()?;
    expect_eq("answer", err, 0)?;
    expect_own_events(&mut listener)
}

fn a_user_has_no_more_listeners_than_the_limit() -> TestResult {
    let _limit = limit(2)?;
    as_user(USER, || {
        let mut listeners = expect_answers(&[0, 0, EUSERS, EUSERS])?;
        for listener in &mut listeners[..2] {
            // A listener may change its mask.
            expect_eq("answer to listening again", ask_for_comm(listener)?, 0)?;
            expect_own_events(listener)?;
        }
        mark("not received")?;
        expect_eq("messages", listeners[2].take_queued()?.len(), 0)?;
        // Both close(2) and IGNORE make room.
        drop(listeners.remove(0));
        let mut refused = listeners.remove(1);
        expect_eq("answer after a close", ask_for_comm(&mut refused)?, 0)?;
        expect_eq("answer to one too many", try_to_listen()?.1, EUSERS)?;
        refused.ignore()?;
        expect_eq("answer after IGNORE", try_to_listen()?.1, 0)
    })?;
    expect_count(0)
}

/// One of the requests makes the socket a listener, and the other one changes that listener.
fn threads_that_share_a_socket_need_room_for_one_listener() -> TestResult {
    const ROUNDS: usize = 1000;
    let _limit = limit(1)?;
    as_user(USER, || {
        for _ in 0..ROUNDS {
            let mut listener = Listener::open_unprivileged()?;
            request_from_two_threads(&listener, &[LISTEN, mask::COMM])?;
            let answers: Vec<_> = listener
                .take_answers()?
                .iter()
                .map(|answer| answer.event)
                .collect();
            expect_eq("answers", answers, vec![Event::Ack { err: 0 }; 2])?;
        }
        Ok(())
    })
}

fn each_user_has_a_separate_limit() -> TestResult {
    let _limit = limit(1)?;
    let _of_root = expect_answers(&[0, 0])?;
    as_user(USER, || {
        let _own = expect_answers(&[0, EUSERS])?;
        Ok(())
    })?;
    let (listening, done) = (Gate::new()?, Gate::new()?);
    let first = child::fork(|| {
        status(|| {
            as_user(USER, || {
                let _own = expect_answers(&[0])?;
                listening.open(0)?;
                done.pass()?;
                Ok(())
            })
        })
    })?;
    listening.pass()?;
    as_user(OTHER_USER, || {
        let _own = expect_answers(&[0, EUSERS])?;
        Ok(())
    })?;
    // The user's processes share the limit.
    as_user(USER, || expect_answers(&[EUSERS]).map(drop))?;
    done.open(0)?;
    succeed(first)
}

fn root_has_no_limit() -> TestResult {
    let _limit = limit(2)?;
    let _listeners = expect_answers(&[0; 5])?;
    expect_count(5)
}

/// Root has no limit outside, but has one for all listeners in the containers that it makes: root of
/// a container is not the system's administrator.
fn a_users_own_namespaces_share_the_limit() -> TestResult {
    require(ALL)?;
    let _limit = limit(3)?;
    let (first, second) = (Container::idle(ALL)?, Container::idle(ALL)?);
    let (listening, done) = (Gate::new()?, Gate::new()?);
    let holder = first.spawn(|| {
        let _own = expect_answers(&[0, 0])?;
        listening.open(0)?;
        done.pass()?;
        Ok(())
    })?;
    listening.pass()?;
    // One listener is left for all of root's user namespaces.
    second.run(|| {
        let mut listeners = expect_answers(&[0, EUSERS])?;
        // Nothing else changed.
        expect_eq("listening again", ask_for_comm(&mut listeners[0])?, 0)?;
        expect_own_events(&mut listeners[0])?;
        mark("not received")?;
        expect_eq("messages", listeners[1].take_queued()?.len(), 0)
    })?;
    expect_count(2)?;
    done.open(0)?;
    succeed(holder)?;
    second.run(|| expect_answers(&[0, 0, 0, EUSERS]).map(drop))
}

fn a_namespace_can_lower_its_limit() -> TestResult {
    require(ALL)?;
    let container = Container::idle(ALL)?;
    container.run(|| {
        // The file shows the limit of the namespace that it is opened in.
        let _limit = limit(1)?;
        expect_answers(&[0, EUSERS]).map(drop)
    })?;
    // A user outside has another limit.
    as_user(USER, || expect_answers(&[0, 0]).map(drop))
}

/// Listeners may take at most 1% of the memory, at 2 KiB each.
fn the_default_limit_is_what_the_document_says() -> TestResult {
    let limit: u64 = fs::read_to_string(Path::new(LIMITS).join(LIMIT))?
        .trim_end()
        .parse()?;
    let memory = sysinfo()?.ram_total();
    let expected = (memory / 100 / 2048).clamp(256, 65_536);
    let distance = limit.abs_diff(expected);
    expect(
        distance <= expected / 50,
        format!("about {expected} listeners in {memory} bytes, got {limit}"),
    )
}

fn namespace(name: &str) -> Result<u64, Failure> {
    Ok(fs::metadata(format!("/proc/self/ns/{name}"))?.ino())
}

fn the_listing_names_a_listener() -> TestResult {
    // If the kernel has only one namespace of a kind, nothing but the listing shows its id.
    require(ALL)?;
    let listener = Listener::listen(mask::SID | mask::COMM)?;
    mark("delivered")?;
    let expected = debugfs::ListenerLine {
        port_id: listener.port_id()?,
        pid: own_pid(),
        uid: 0,
        pid_ns: namespace("pid")?,
        user_ns: namespace("user")?,
        net_ns: namespace("net")?,
        delivered: 1,
        lost: 0,
        mask: mask::SID | mask::COMM,
        flags: 0,
        cgroup: 0,
    };
    let listing = Listing::read()?;
    expect_eq("lines", listing.lines, vec![expected])?;
    expect_eq("count", listing.count, 1)
}

fn the_listing_follows_the_mask() -> TestResult {
    let listener = Listener::listen(0)?;
    let port_id = listener.port_id()?;
    expect_eq("mask of all", Listing::of(port_id)?.mask, mask::ALL)?;
    listener.request(&[LISTEN, mask::EXIT])?;
    expect_eq("new mask", Listing::of(port_id)?.mask, mask::EXIT)
}

fn the_listing_is_for_root_alone() -> TestResult {
    const FILE: &str = "/sys/kernel/debug/proc_events/listeners";
    let mode = fs::metadata(FILE)?.permissions().mode();
    let others = Permissions::from_mode(mode).mode() & 0o077;
    expect_eq("permissions of group and others", others, 0)?;
    as_user(USER, || {
        let refused = fs::read_to_string(FILE).is_err();
        expect(refused, "reading to fail")
    })
}
