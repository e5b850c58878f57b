// SPDX-License-Identifier: GPL-2.0
//! How long one listener with the default buffer keeps up with all that a CPU can raise.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use protocol::bench::Flood;

use crate::child::{self, Gate};
use crate::listener::Listener;
use crate::stress::pin;
use crate::wire::{LISTEN, mask};

/// How long a flood is if nothing is lost.
const LIMIT: Duration = Duration::from_secs(2);

/// Lets a child raise events on that CPU; the caller reads on another one.
pub fn run(cpu: usize) -> Result<Flood> {
    let mut listener = Listener::open_unprivileged()?;
    listener.request(&[LISTEN, mask::COMM])?;
    let gate = Gate::new()?;
    let writer = child::fork(|| {
        let ready = || -> Result<()> {
            pin(cpu)?;
            gate.pass()?;
            prctl::set_name(c"ready")?;
            Ok(gate.pass().map(drop)?)
        };
        if ready().is_ok() {
            while prctl::set_name(c"flood").is_ok() {}
        }
        1
    })?;
    // A first event, so that the reader has all its pages again after the fork: a buffer is full
    // within a millisecond.
    gate.open(0)?;
    listener.wait_for("a rename", |received| received.event.bit() != 0)?;
    gate.open(0)?;
    let (mut events, mut lost) = (0, false);
    let mut started = Instant::now();
    while !lost && started.elapsed() < LIMIT {
        match listener.receive(started + LIMIT) {
            Ok(Some(received)) if received.event.bit() != 0 => {
                if events == 0 {
                    started = Instant::now();
                }
                events += 1;
            }
            Ok(_) => {}
            Err(error) if error.is_overrun() => lost = true,
            Err(error) => return Err(error.into()),
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    kill(writer.pid(), Signal::SIGKILL)?;
    writer.wait()?;
    listener.ignore()?;
    Ok(Flood {
        events,
        seconds,
        lost,
    })
}
