// SPDX-License-Identifier: GPL-2.0
//! The time from an event until a listener that waits on another CPU has read the message.

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::time::{ClockId, clock_gettime};
use protocol::bench::Latency;

use crate::child::{self, Gate};
use crate::cpus::pin;
use crate::listener::Listener;
use crate::wire::{LISTEN, mask};

/// The number of events, of which the median counts.
const EVENTS: usize = 1000;

/// Lets a child raise events on this CPU, each after the last one has been read.
pub fn run(cpu: usize) -> Result<Latency> {
    let mut listener = Listener::open_unprivileged()?;
    listener.request(&[LISTEN, mask::COMM])?;
    let gate = Gate::new()?;
    let writer = child::fork(|| {
        if pin(cpu).is_err() {
            return 1;
        }
        for _ in 0..EVENTS {
            if gate.pass().is_err() || prctl::set_name(c"latency").is_err() {
                return 1;
            }
        }
        0
    })?;
    let mut delays = Vec::with_capacity(EVENTS);
    for _ in 0..EVENTS {
        gate.open(0)?;
        let received = listener.wait_for("a rename", |received| received.event.bit() != 0)?;
        let now = u64::try_from(
            std::time::Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos(),
        )?;
        delays.push(
            now.checked_sub(received.timestamp_ns())
                .context("an event was read before it happened")?,
        );
    }
    writer.wait()?;
    listener.ignore()?;
    delays.sort_unstable();
    Ok(Latency {
        nanoseconds: delays[EVENTS / 2] as f64,
    })
}
