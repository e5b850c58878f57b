// SPDX-License-Identifier: GPL-2.0
//! No event is queued for a listener after the call that ended it has returned.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::cpus::{cpus, pin};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::support::ends::{End, bind, ignore, leave};
use crate::support::polling::poll_until_done;
use crate::support::scenario::mark;
use crate::support::socket_filter::keep_bytes_slowly;
use crate::test;
use crate::wire::{BATCH, LISTEN, Received, mask, proc_listen};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_END)
    .limit(LIMIT)
    .covers(&[Line::C27])
    .of([
        test!(nothing_is_queued_after[ignore](0, ignore)),
        test!(nothing_is_queued_after[leave](0, leave)),
        test!(nothing_is_queued_after[bind](0, bind)),
        test!(nothing_is_queued_after[ignore_in_batches](BATCH, ignore))
            .not_on_stock(NO_BATCHES)
            .covers(&[Line::C54]),
        test!(nothing_is_queued_after[leave_in_batches](BATCH, leave))
            .not_on_stock(NO_BATCHES)
            .covers(&[Line::C54]),
        test!(nothing_joins_a_batch_after[leave](leave))
            .not_on_stock(NO_BATCHES)
            .covers(&[Line::C54]),
        test!(nothing_joins_a_batch_after[bind](bind))
            .not_on_stock(NO_BATCHES)
            .covers(&[Line::C54]),
        test!(nothing_is_queued_after[listen_in_batches](BATCH, renew))
            .not_on_stock(NO_BATCHES)
            .covers(&[Line::C18]),
    ]);

const NO_BATCHES: &str = "each event has a datagram of its own";

const NO_END: &str = "a listener gets events as long as anyone listens";

const LIMIT: Duration = Duration::from_secs(60);

/// How often a listener ends.
const ENDS: usize = 50;

/// After this many more events on the other CPU, none that had begun before is still under way.
const LATER: u64 = 3;

/// How long these events may take.
const EVENTS_LIMIT: Duration = Duration::from_secs(5);

/// A small buffer, so that unread events cost nothing.
const SMALL_BUFFER: u32 = 4096;

/// What was in a listener's queue: how many events, and how often some were lost for lack of room.
#[derive(Debug, Default, PartialEq, Eq)]
struct Queued {
    events: usize,
    losses: usize,
}

/// Empties a listener's queue.
fn drain(listener: &mut Listener) -> Result<Queued, Failure> {
    let drained = listener.drain()?;
    let is_event = |received: &&Received| received.event.bit() == mask::COMM;
    Ok(Queued {
        events: drained.messages.iter().filter(is_event).count(),
        losses: drained.enobufs,
    })
}

/// Another CPU, on which a thread raises events as fast as it can.
struct Other {
    raised: AtomicU64,
    stop: AtomicBool,
}

impl Other {
    fn raise(&self, cpu: usize) -> nix::Result<()> {
        pin(cpu)?;
        while !self.stop.load(Ordering::Relaxed) {
            mark("event")?;
            self.raised.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Waits until all events that have begun are queued.
    fn settle(&self) -> TestResult {
        let wanted = self.raised.load(Ordering::Acquire) + LATER;
        poll_until_done(EVENTS_LIMIT, || {
            let is_missing = self.raised.load(Ordering::Acquire) < wanted;
            Ok(is_missing.then(|| "events on the other CPU".to_owned()))
        })
    }
}

/// Calls a function while another CPU raises events. This thread runs on a CPU of its own.
fn beside_events(function: impl FnOnce(&Other) -> TestResult) -> TestResult {
    let [own, others, ..] = cpus()?[..] else {
        return Err(Failure::skip("there is one CPU"));
    };
    pin(own)?;
    // Another listener for the same events stays, so that the hook stays enabled.
    let mut stays = Listener::open()?;
    stays.socket().set_rx_buf_sz(SMALL_BUFFER)?;
    stays.request(&[LISTEN, mask::COMM])?;
    let other = Other {
        raised: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let raising = scope.spawn(|| other.raise(others));
        let result = function(&other);
        other.stop.store(true, Ordering::Relaxed);
        let raised = raising.join().expect("raising events does not panic");
        result.and(raised.map_err(Failure::from))
    })
}

/// A listener that delays each event, and then keeps this many bytes of it. Events go to the newest
/// listener first. They have found the next one by then, so they are on the way to it for a while.
fn slow(bytes: u32) -> Result<Listener, Failure> {
    let slow = Listener::open()?;
    keep_bytes_slowly(&slow, bytes)?;
    slow.request(&[LISTEN, mask::COMM])?;
    Ok(slow)
}

/// A listener with these flags ends again and again. Afterwards, it reads only what was in its queue
/// when it ended.
fn nothing_is_queued_after(flags: u32, end: End) -> TestResult {
    beside_events(|other| {
        let (mut received, mut later) = (0, Queued::default());
        for _ in 0..ENDS {
            let mut listener = Listener::listen_with(mask::COMM | mask::SID, flags)?;
            let _slow = slow(0)?;
            other.settle()?;
            received += usize::from(drain(&mut listener)?.events > 0);
            end(&mut listener)?;
            drain(&mut listener)?;
            other.settle()?;
            let Queued { events, losses } = drain(&mut listener)?;
            later.events += events;
            later.losses += losses;
        }
        println!("{ENDS} listeners ended, {received} of which had received events");
        expect_eq("events and losses after the end", later, Queued::default())?;
        expect_eq("listeners that had received events before", received, ENDS)
    })
}

/// Takes all events that have arrived. Returns their timestamps.
fn take_times(listener: &mut Listener) -> Result<Vec<u64>, Failure> {
    let messages = listener.take_queued()?;
    let events = messages
        .iter()
        .filter(|received| received.event.bit() == mask::COMM);
    Ok(events.map(|received| received.timestamp_ns()).collect())
}

/// A listener ends again and again while events wait in its queue. No event joins them afterwards. Each
/// event is queued for another listener first. So an event that the other listener does not have when
/// the end has returned comes after the end.
fn nothing_joins_a_batch_after(end: End) -> TestResult {
    beside_events(|other| {
        let mut late = 0;
        for _ in 0..ENDS {
            let mut listener = Listener::listen_with(mask::COMM, BATCH)?;
            let mut first = slow(u32::MAX)?;
            other.settle()?;
            end(&mut listener)?;
            let last = take_times(&mut first)?.pop();
            expect(last.is_some(), "events before the end")?;
            other.settle()?;
            let times = take_times(&mut listener)?;
            expect(!times.is_empty(), "events that wait")?;
            late += times.iter().filter(|time| Some(**time) > last).count();
        }
        expect_eq("events that came after the end", late, 0)
    })
}

/// Ends a listener, and begins a new one on the same socket. Events on the way to the first do not
/// reach the new one.
fn renew(listener: &mut Listener) -> Result<(), ListenerError> {
    ignore(listener)?;
    listener.request(&proc_listen(LISTEN, mask::SID, BATCH))
}
