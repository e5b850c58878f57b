// SPDX-License-Identifier: GPL-2.0
//! Nothing is queued for a listener after what ended it has returned.

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

/// Events of the other CPU after which none of them can be under way that had begun before.
const LATER: u64 = 3;

/// How long they may take.
const EVENTS_LIMIT: Duration = Duration::from_secs(5);

/// Room for little, so that what nobody reads costs nothing.
const SMALL_BUFFER: u32 = 4096;

/// What was in a listener's queue: how many events, and how often some were lost for want of room.
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

    /// Waits until all events are queued that had begun.
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
    // Another listener stays that gets the same events, so that the hook stays on.
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

/// A listener that delays each event, and then keeps so many bytes of it. Events go to the newest listener
/// first, and have found the next one by then: they are on the way to that one for a while.
fn slow(bytes: u32) -> Result<Listener, Failure> {
    let slow = Listener::open()?;
    keep_bytes_slowly(&slow, bytes)?;
    slow.request(&[LISTEN, mask::COMM])?;
    Ok(slow)
}

/// A listener with these flags ends again and again. It reads nothing more than what was in its queue
/// then.
fn nothing_is_queued_after(flags: u32, end: End) -> TestResult {
    beside_events(|other| {
        let (mut heard, mut later) = (0, Queued::default());
        for _ in 0..ENDS {
            let mut listener = Listener::listen_with(mask::COMM | mask::SID, flags)?;
            let _slow = slow(0)?;
            other.settle()?;
            heard += usize::from(drain(&mut listener)?.events > 0);
            end(&mut listener)?;
            drain(&mut listener)?;
            other.settle()?;
            let Queued { events, losses } = drain(&mut listener)?;
            later.events += events;
            later.losses += losses;
        }
        println!("{ENDS} listeners ended, {heard} of which had heard something");
        expect_eq("what was queued after the end", later, Queued::default())?;
        expect_eq("listeners that had heard something before", heard, ENDS)
    })
}

/// Takes all events that have arrived; the time stamps.
fn take_times(listener: &mut Listener) -> Result<Vec<u64>, Failure> {
    let messages = listener.take_queued()?;
    let events = messages
        .iter()
        .filter(|received| received.event.bit() == mask::COMM);
    Ok(events.map(|received| received.timestamp_ns()).collect())
}

/// A listener ends again and again while events wait in its queue. None joins them. Each event is
/// queued for another listener first, so that what that one has not got when the end has returned comes
/// after it.
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

/// What was on the way to a listener does not reach the next one that the socket is.
fn renew(listener: &mut Listener) -> Result<(), ListenerError> {
    ignore(listener)?;
    listener.request(&proc_listen(LISTEN, mask::SID, BATCH))
}
