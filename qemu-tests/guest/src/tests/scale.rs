// SPDX-License-Identifier: GPL-2.0
//! Thousands of listeners (C56-C58): the cost of a request and of an end does not depend on other
//! listeners, no process waits for another's, and the memory of a listener is charged and freed.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{pause, pipe};

use crate::child::{self, Gate, allow_descriptors};
use crate::debugfs::{self, Listing};
use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::results;
use crate::support::cgroup::Group;
use crate::support::descriptors::{send_descriptors, unix_pair};
use crate::support::fault_injection::has_checkers;
use crate::support::memory;
use crate::support::polling::poll_until_done;
use crate::support::scenario::{expect_count, in_self, mark};
use crate::test;
use crate::timeouts;
use crate::wire::{IGNORE, LISTEN, mask};

pub const TESTS: &[Test] = &[
    test!(a_process_with_many_listeners_ends_at_once)
        .covers(&[Line::C57])
        .limit(LONG),
    test!(a_mask_changes_at_once).covers(&[Line::C57]),
    test!(unreachable_listeners_delay_no_other)
        .covers(&[Line::C57])
        .limit(LONG),
    test!(an_end_beside_many_costs_as_much_as_one_beside_none)
        .covers(&[Line::C56])
        .stock_fails("netlink walks over all members of the group")
        .limit(LONG),
    test!(listening_and_closing_in_a_loop_takes_no_memory)
        .covers(&[Line::C57])
        .limit(LONG),
    test!(a_loop_takes_no_memory[listen_and_ignore](
        200,
        &[&RARE, &[IGNORE]]
    ))
    .covers(&[Line::C57])
    .limit(LONG),
    test!(a_loop_takes_no_memory[change_the_mask](128, &[&RARE]))
        .covers(&[Line::C57])
        .limit(LONG),
    test!(a_listener_is_charged_to_its_cgroup)
        .not_on_stock("a listener is a socket, and nothing else")
        .covers(&[Line::C58])
        .limit(LONG),
    test!(the_listing_is_complete_with_thousands)
        .not_on_stock("there is no list of listeners")
        .covers(&[Line::C30, Line::C56])
        .limit(LONG),
];

const LONG: Duration = Duration::from_secs(120);

/// How long the kernel may take to close sockets by garbage collection.
const GARBAGE_LIMIT: Duration = Duration::from_secs(30);

/// How many listeners a process has or leaves behind: no more than one message can pass.
const MANY: usize = 200;

/// How much longer each end may take than that of a socket that does not listen. It is far less than
/// an RCU grace period, which takes several clock ticks.
const EACH: Duration = Duration::from_millis(1);

/// This count, or a tenth of it on a kernel with checkers, where each takes ten times as long.
fn at_most(count: usize) -> usize {
    if has_checkers() { count / 10 } else { count }
}

fn sockets(count: usize, words: Option<&[u32]>) -> Result<Vec<Listener>, Failure> {
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Listener::open()?;
        if let Some(words) = words {
            socket.request(words)?;
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

/// How long a kernel worker may take to close unreachable listeners.
const CLOSED_LIMIT: Duration = Duration::from_secs(10);

/// LISTEN for a kind of event that these tests do not raise.
const RARE: [u32; 2] = [LISTEN, mask::PTRACE];

/// How long a killed process with many sockets takes to end.
fn time_of_end(words: Option<&[u32]>) -> Result<Duration, Failure> {
    let ready = Gate::new()?;
    let process = child::fork(|| {
        let sockets = allow_descriptors(MANY)
            .map_err(Failure::from)
            .and_then(|()| sockets(MANY, words));
        if sockets.is_ok() && ready.open(0).is_ok() {
            pause();
        }
        1
    })?;
    ready.pass()?;
    let started = Instant::now();
    kill(process.pid(), Signal::SIGKILL)?;
    process.wait()?;
    Ok(started.elapsed())
}

/// Expects that many listeners wait for nothing: they may take little longer than as many sockets that
/// do not listen, if those take time, too.
fn expect_no_waiting(what: &str, silent: Option<Duration>, listening: Duration) -> TestResult {
    if let Some(silent) = silent {
        results::figure("seconds with sockets", silent.as_secs_f64());
    }
    results::figure("seconds with listeners", listening.as_secs_f64());
    let at_most = silent.unwrap_or_default() + timeouts::scaled(EACH * MANY as u32);
    expect(
        listening <= at_most,
        format!("{what} to take {at_most:?} at most, got {listening:?}"),
    )
}

fn a_process_with_many_listeners_ends_at_once() -> TestResult {
    let silent = time_of_end(None)?;
    let listening = time_of_end(Some(&RARE))?;
    expect_no_waiting("the end of a process", Some(silent), listening)
}

fn a_mask_changes_at_once() -> TestResult {
    let listener = Listener::open()?;
    listener.request(&RARE)?;
    let started = Instant::now();
    for number in 0..MANY {
        // Wider, and narrower again.
        let mask = mask::PTRACE | if number % 2 == 0 { mask::COREDUMP } else { 0 };
        listener.request(&[LISTEN, mask])?;
    }
    expect_no_waiting("changing a mask", None, started.elapsed())
}

/// A socket in its own queue, behind other descriptors: when both ends are closed, no process can
/// reach it, and a kernel worker closes all of them.
struct Garbage {
    _ours: OwnedFd,
    _theirs: OwnedFd,
}

impl Garbage {
    fn with(passed: &[RawFd]) -> Result<Self, Failure> {
        let (ours, theirs) = unix_pair()?;
        send_descriptors(&ours, passed)?;
        send_descriptors(&ours, &[theirs.as_raw_fd()])?;
        Ok(Self {
            _ours: ours,
            _theirs: theirs,
        })
    }
}

/// How long the kernel takes to close other garbage behind many sockets.
fn time_behind_garbage(words: Option<&[u32]>) -> Result<Duration, Failure> {
    let listeners = sockets(MANY, words)?;
    let descriptors: Vec<_> = listeners
        .iter()
        .map(|one| one.as_fd().as_raw_fd())
        .collect();
    let first = Garbage::with(&descriptors)?;
    let (reader, writer) = pipe()?;
    let second = Garbage::with(&[writer.as_raw_fd()])?;
    drop((listeners, writer));
    let started = Instant::now();
    drop(first);
    drop(second);
    // The pipe hangs up when the other end is closed. The garbage collection that began with the first
    // one may have missed the second, and the next begins only when a socket is closed.
    poll_until_done(GARBAGE_LIMIT, || {
        drop(unix_pair()?);
        let mut end = [PollFd::new(reader.as_fd(), PollFlags::empty())];
        let is_open = poll(&mut end, PollTimeout::ZERO)? == 0;
        Ok(is_open.then(|| "a pipe without a writer".to_owned()))
    })?;
    let elapsed = started.elapsed();
    expect_none_in_time()?;
    Ok(elapsed)
}

/// Expects that no listener is left. A worker closes them, in any order, and does not report when it
/// has finished.
fn expect_none_in_time() -> TestResult {
    if !debugfs::is_there() {
        return Ok(());
    }
    poll_until_done(CLOSED_LIMIT, || {
        let left = Listing::read()?.count;
        Ok((left > 0).then(|| format!("no listener, got {left}")))
    })
}

fn unreachable_listeners_delay_no_other() -> TestResult {
    allow_descriptors(2 * MANY)?;
    let silent = time_behind_garbage(None)?;
    let listening = time_behind_garbage(Some(&RARE))?;
    expect_no_waiting("closing unreachable sockets", Some(silent), listening)
}

/// The shortest of several times that it takes to close a listener.
fn time_to_close() -> Result<Duration, Failure> {
    let mut shortest = Duration::MAX;
    for _ in 0..MANY {
        let listener = Listener::open()?;
        listener.request(&RARE)?;
        let started = Instant::now();
        drop(listener);
        shortest = shortest.min(started.elapsed());
    }
    Ok(shortest)
}

/// The test measures time, and so allows for much variation. `make bench` counts instructions.
fn an_end_beside_many_costs_as_much_as_one_beside_none() -> TestResult {
    const TIMES: u32 = 2;
    // FLAVOR=mainline: cn_proc stays, but the series lets netlink end its walk early.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    if !debugfs::is_there() && release.trim_end().ends_with("-proc-events") {
        return Err(Failure::skip(
            "netlink of the series does not walk over all members",
        ));
    }
    let count = at_most(2000);
    allow_descriptors(count)?;
    let alone = time_to_close()?;
    let others = sockets(count, Some(&RARE))?;
    let beside = time_to_close()?;
    results::figure("seconds to close a listener", alone.as_secs_f64());
    let beside_others = format!("seconds beside {count} others");
    results::figure(&beside_others, beside.as_secs_f64());
    expect(
        beside <= alone * TIMES,
        format!("{:?} at most, got {beside:?}", alone * TIMES),
    )?;
    drop(others);
    Ok(())
}

/// The most memory that a loop takes at any time, in bytes.
fn memory_of_a_loop(
    rounds: usize,
    mut turn: impl FnMut() -> Result<(), Failure>,
) -> Result<u64, Failure> {
    const LOOK: usize = 200;
    let before = memory::free()?;
    let mut least = before;
    for round in 0..rounds {
        turn()?;
        if round % LOOK == 0 {
            least = least.min(memory::free()?);
        }
    }
    Ok(before.saturating_sub(least))
}

/// Expects that a loop takes at most `more` bytes, in addition to those of a loop without listeners, if
/// there is one.
fn expect_memory(silent: Option<u64>, listening: u64, more: u64) -> TestResult {
    if let Some(silent) = silent {
        results::figure("KiB taken by sockets at most", (silent >> 10) as f64);
    }
    let of_listeners = listening >> 10;
    results::figure("KiB taken by listeners at most", of_listeners as f64);
    let at_most = silent.unwrap_or_default() + more;
    expect(
        listening <= at_most,
        format!("{} KiB at most, got {of_listeners}", at_most >> 10),
    )
}

/// Skips a test that gives no result on a kernel with checkers.
fn expect_no_checkers() -> TestResult {
    if has_checkers() {
        return Err(Failure::skip(
            "a kernel that checks itself keeps what was freed",
        ));
    }
    Ok(())
}

fn listening_and_closing_in_a_loop_takes_no_memory() -> TestResult {
    const ROUNDS: usize = 20_000;
    /// Half of what the loop would leave if nothing were freed.
    const MORE: u64 = 32 << 20;
    expect_no_checkers()?;
    let silent = memory_of_a_loop(ROUNDS, || sockets(1, None).map(drop))?;
    let listening = memory_of_a_loop(ROUNDS, || sockets(1, Some(&RARE)).map(drop))?;
    expect_memory(Some(silent), listening, MORE)
}

/// A socket sends these requests over and over. `bytes` is half of what each turn would leave if nothing
/// were freed.
fn a_loop_takes_no_memory(bytes: u64, requests: &[&[u32]]) -> TestResult {
    const TURNS: usize = 50_000;
    expect_no_checkers()?;
    let mut socket = Listener::open()?;
    let listening = memory_of_a_loop(TURNS, || {
        for words in requests {
            socket.request(words)?;
        }
        Ok(socket.take_queued().map(drop)?)
    })?;
    expect_memory(None, listening, bytes * TURNS as u64)
}

fn a_listener_is_charged_to_its_cgroup() -> TestResult {
    /// The least that a listener takes: the object, its node in the list, and the entry that events find.
    const EACH: u64 = 400;
    let count = 1000;
    let group = Group::with_memory()?;
    let charged = |words: Option<&[u32]>| -> Result<u64, Failure> {
        let (ready, done) = (Gate::new()?, Gate::new()?);
        let process = child::fork(|| {
            let made = allow_descriptors(count)
                .map_err(Failure::from)
                .and_then(|()| group.enter().map_err(Failure::from))
                .and_then(|()| sockets(count, words));
            i32::from(made.is_err() || ready.open(0).is_err() || done.pass().is_err())
        })?;
        ready.pass_within(timeouts::scaled(LONG / 4))?;
        let charged = group.memory()?;
        done.open(0)?;
        process.wait()?;
        Ok(charged)
    };
    let silent = charged(None)?;
    let listening = charged(Some(&RARE))?;
    let each = listening.saturating_sub(silent) / count as u64;
    results::figure(
        "bytes charged for a listener besides its socket",
        each as f64,
    );
    expect(each >= EACH, format!("{EACH} bytes at least, got {each}"))?;
    expect_count(0)
}

fn the_listing_is_complete_with_thousands() -> TestResult {
    let count = at_most(3000);
    allow_descriptors(count)?;
    let mut listeners = sockets(count, Some(&[LISTEN, mask::COMM]))?;
    let expected: BTreeSet<u32> = listeners
        .iter()
        .map(Listener::port_id)
        .collect::<Result<_, _>>()?;
    let listing = Listing::read()?;
    expect_eq("count", listing.count, count)?;
    expect_eq("lines", listing.lines.len(), count)?;
    let listed: BTreeSet<u32> = listing.lines.iter().map(|line| line.port_id).collect();
    expect(listed == expected, "each listener to be listed")?;
    for index in [0, count / 2, count - 1] {
        in_self(&mut listeners[index], || Ok(mark("received")?))?;
    }
    drop(listeners);
    expect_count(0)
}
