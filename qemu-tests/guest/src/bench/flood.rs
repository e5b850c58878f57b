// SPDX-License-Identifier: GPL-2.0
//! How long one listener with the default buffer keeps up with all that a CPU can raise.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use protocol::bench::{Flood, Line};

use crate::bench::{LINGER, say};
use crate::child;
use crate::listener::Listener;
use crate::stress::{cpus, pin};
use crate::wire::{LISTEN, mask};

/// How long a flood is if nothing is lost.
const LIMIT: Duration = Duration::from_secs(2);

/// How often it is done.
const ROUNDS: usize = 5;

/// Measures, and writes what came of each round.
pub fn run() -> Result<()> {
    let cpus = cpus()?;
    ensure!(cpus.len() > 1, "a reader needs a CPU of its own");
    pin(cpus[0])?;
    say(&Line::Total(ROUNDS as u32))?;
    for _ in 0..ROUNDS {
        say(&Line::Flood(flood(cpus[1])?))?;
        std::thread::sleep(LINGER);
    }
    Ok(())
}

fn flood(cpu: usize) -> Result<Flood> {
    let mut listener = Listener::open_unprivileged()?;
    listener.request(&[LISTEN, mask::COMM])?;
    let writer = child::fork(|| {
        if pin(cpu).is_ok() {
            while prctl::set_name(c"flood").is_ok() {}
        }
        1
    })?;
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
