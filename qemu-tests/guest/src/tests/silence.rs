// SPDX-License-Identifier: GPL-2.0
//! Nothing is queued for a listener after what ended it has returned.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use super::scenario::mark;
use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::patience;
use crate::stress::{cpus, pin};
use crate::test;
use crate::wire::{CN_PROC, IGNORE, LISTEN, mask};

pub const TESTS: &[Test] = &[
    test!(nothing_is_queued_after_ignore)
        .not_on_stock(NO_END)
        .covers(&[Line::C27])
        .limit(LIMIT),
    test!(nothing_is_queued_after_leaving_the_group)
        .not_on_stock(NO_END)
        .covers(&[Line::C27])
        .limit(LIMIT),
    test!(nothing_is_queued_after_binding)
        .not_on_stock(NO_END)
        .covers(&[Line::C27])
        .limit(LIMIT),
];

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

/// The bytes that a socket's receive queue takes, without a look at the queue.
fn queued(listener: &Listener) -> nix::Result<u32> {
    // The first of the words is `SK_MEMINFO_RMEM_ALLOC`.
    let mut words = [0u32; 16];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: The call writes at most as many bytes as it is told, and how many it wrote.
    Errno::result(unsafe {
        libc::getsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    Ok(words[0])
}

/// Empties a listener's queue; how often events were lost for want of room.
fn drain(listener: &mut Listener) -> Result<u64, Failure> {
    let mut lost = 0;
    loop {
        match listener.receive(Instant::now()) {
            Ok(None) => return Ok(lost),
            Ok(Some(_)) => {}
            Err(error) if error.is_overrun() => lost += 1,
            Err(error) => return Err(error.into()),
        }
    }
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
        let deadline = patience::deadline(EVENTS_LIMIT);
        let wanted = self.raised.load(Ordering::Acquire) + LATER;
        while self.raised.load(Ordering::Acquire) < wanted {
            expect(Instant::now() < deadline, "events on the other CPU")?;
            thread::yield_now();
        }
        Ok(())
    }
}

/// Ends a listener again and again while another CPU raises events. Expects that its queue does not
/// grow after that.
fn expect_silence(end: impl Fn(&mut Listener) -> Result<(), ListenerError>) -> TestResult {
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
        let silent = end_repeatedly(&other, end);
        other.stop.store(true, Ordering::Relaxed);
        let raised = raising.join().expect("raising events does not panic");
        silent.and(raised.map_err(Failure::from))
    })
}

fn end_repeatedly(
    other: &Other,
    end: impl Fn(&mut Listener) -> Result<(), ListenerError>,
) -> TestResult {
    let (mut ends, mut grown, mut heard) = (0, 0, 0);
    while ends < ENDS {
        let mut listener = Listener::open()?;
        listener.request(&[LISTEN, mask::COMM | mask::SID])?;
        other.settle()?;
        let before = queued(&listener)?;
        end(&mut listener)?;
        let at_return = queued(&listener)?;
        other.settle()?;
        let later = queued(&listener)?;
        if drain(&mut listener)? == 0 {
            ends += 1;
            grown += usize::from(later != at_return);
            heard += usize::from(before > 0);
        }
    }
    println!("{ends} listeners ended, {grown} got more afterwards");
    expect_eq("listeners that had heard something before", heard, ends)?;
    expect_eq("queues that grew after the end", grown, 0)
}

fn nothing_is_queued_after_ignore() -> TestResult {
    expect_silence(|listener| listener.request(&[IGNORE]))
}

fn nothing_is_queued_after_leaving_the_group() -> TestResult {
    expect_silence(|listener| {
        let left = listener.socket().drop_membership(CN_PROC);
        left.map_err(|error| ListenerError::System("setsockopt", error))
    })
}

fn nothing_is_queued_after_binding() -> TestResult {
    expect_silence(|listener| {
        let address = netlink_sys::SocketAddr::new(listener.port_id()?, 0);
        let bound = listener.socket().bind(&address);
        bound.map_err(|error| ListenerError::System("bind", error))
    })
}
