// SPDX-License-Identifier: GPL-2.0
//! How long one listener with the default buffer keeps up with all events that a CPU can raise.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use protocol::bench::{Flood, Situation};

use super::listener_set::request;
use super::reader::{ReadCount, Reader};
use crate::child::{self, Gate};
use crate::cpus::pin;
use crate::listener::Listener;
use crate::wire::mask;

/// How long a flood is if nothing is lost.
const LIMIT: Duration = Duration::from_secs(2);

/// Lets a child raise events on this CPU. The caller reads them on another one, in the form of the
/// situation.
pub fn run(cpu: usize, situation: Situation) -> Result<Flood> {
    let mut listener = Listener::open_unprivileged()?;
    listener.request(&request(situation, mask::COMM))?;
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
    // The first event makes the reader fault in its pages again after the fork, because a buffer is
    // full within a millisecond.
    gate.open(0)?;
    listener.wait_for("a rename", |received| received.event.bit() != 0)?;
    let mut reader = Reader::default();
    gate.open(0)?;
    let (mut count, mut lost) = (ReadCount::default(), false);
    let mut started = Instant::now();
    while !lost && started.elapsed() < LIMIT {
        match reader.receive(&listener) {
            Ok(datagram) => {
                if count.events == 0 {
                    started = Instant::now();
                }
                count.add(datagram, mask::COMM)?;
            }
            Err(Errno::EAGAIN) => wait(&listener)?,
            Err(Errno::ENOBUFS) => lost = true,
            Err(error) => return Err(error.into()),
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    kill(writer.pid(), Signal::SIGKILL)?;
    writer.wait()?;
    listener.ignore()?;
    Ok(Flood {
        situation,
        events: count.events,
        seconds,
        lost,
    })
}

/// Waits until there is something to read.
fn wait(listener: &Listener) -> Result<()> {
    let readable = PollFd::new(listener.as_fd(), PollFlags::POLLIN);
    poll(&mut [readable], PollTimeout::try_from(LIMIT)?)?;
    Ok(())
}
