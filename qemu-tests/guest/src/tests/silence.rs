// SPDX-License-Identifier: GPL-2.0
//! Nothing is queued for a listener after what ended it has returned.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::cpus::{cpus, pin};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
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

/// A listener with these flags ends again and again while another CPU raises events. It reads
/// nothing more than what was in its queue then.
fn nothing_is_queued_after(flags: u32, end: End) -> TestResult {
    let [own, others, ..] = cpus()?[..] else {
        return Err(Failure::skip("there is one CPU"));
    };
    pin(own)?;
    // Somebody is left who gets the same events, so that the hook stays on.
    let mut stays = Listener::open()?;
    stays.socket().set_rx_buf_sz(SMALL_BUFFER)?;
    stays.request(&[LISTEN, mask::COMM])?;
    let other = Other {
        raised: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let raising = scope.spawn(|| other.raise(others));
        let silent = end_repeatedly(&other, flags, end);
        other.stop.store(true, Ordering::Relaxed);
        let raised = raising.join().expect("raising events does not panic");
        silent.and(raised.map_err(Failure::from))
    })
}

fn end_repeatedly(other: &Other, flags: u32, end: End) -> TestResult {
    let (mut heard, mut later) = (0, Queued::default());
    for _ in 0..ENDS {
        let mut listener = Listener::listen_with(mask::COMM | mask::SID, flags)?;
        // Events go to who came last first, and have found the next one by then: they are on the
        // way to the listener for a while.
        let slow = Listener::open()?;
        keep_bytes_slowly(&slow, 0)?;
        slow.request(&[LISTEN, mask::COMM])?;
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
}

/// What was on the way to a listener does not reach the next one that the socket is.
fn renew(listener: &mut Listener) -> Result<(), ListenerError> {
    ignore(listener)?;
    listener.request(&proc_listen(LISTEN, mask::SID, BATCH))
}
