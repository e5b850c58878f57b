// SPDX-License-Identifier: GPL-2.0
//! How long a process with many listeners takes to listen and to end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::pause;
use protocol::bench::{MANY, Many};

use super::listener_set::ListenerSet;
use crate::child::{self, Gate, allow_descriptors};
use crate::timeouts;
use crate::wire::{LISTEN, mask};

/// How long it may take until all of them listen.
const LIMIT: Duration = Duration::from_secs(120);

/// Makes a process with many listeners, and kills it.
pub fn run() -> Result<Many> {
    let ready = Gate::new()?;
    let process = child::fork(|| {
        let Ok(milliseconds) = listen() else { return 1 };
        if ready.open(milliseconds).is_ok() {
            pause();
        }
        1
    })?;
    let milliseconds = ready
        .pass_within(timeouts::scaled(LIMIT))
        .context("the process with many listeners")?;
    let started = Instant::now();
    kill(process.pid(), Signal::SIGKILL)?;
    process.wait()?;
    Ok(Many {
        listen: f64::from(milliseconds) / 1000.0,
        exit: started.elapsed().as_secs_f64(),
    })
}

/// Milliseconds until all have sent LISTEN.
fn listen() -> Result<i32> {
    allow_descriptors(MANY as usize)?;
    let set = ListenerSet::silent(MANY)?;
    let started = Instant::now();
    for listener in set.listeners() {
        listener.request(&[LISTEN, mask::SID])?;
    }
    // The listeners stay open until the process ends.
    std::mem::forget(set);
    Ok(i32::try_from(started.elapsed().as_millis())?)
}
