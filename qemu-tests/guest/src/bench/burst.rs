// SPDX-License-Identifier: GPL-2.0
//! How many events of a burst the default buffer keeps for a listener that does not read meanwhile.

use anyhow::{Result, ensure};
use nix::errno::Errno;
use protocol::bench::{BenchRecord, Burst, Situation};

use super::listener_set::request;
use super::operations::rename;
use super::reader::{ReadCount, Reader};
use super::report::report_line;
use crate::listener::Listener;
use crate::wire::mask;

/// More events than any default buffer holds.
pub const TOO_MANY: u64 = 4096;

/// Raises the events, and then reads the queue. After the first loss nothing is queued until all has
/// been read, so the queue has no later events.
pub fn run(situation: Situation) -> Result<()> {
    let listener = Listener::open_unprivileged()?;
    listener.request(&request(situation, mask::COMM))?;
    let mut reader = Reader::default();
    // The answer takes room, too.
    reader.read_all(&listener, 0)?;
    for _ in 0..TOO_MANY {
        rename()?;
    }
    let (mut count, mut lost) = (ReadCount::default(), false);
    loop {
        match reader.receive(&listener) {
            Ok(datagram) => count.add(datagram, mask::COMM)?,
            Err(Errno::EAGAIN) => break,
            Err(Errno::ENOBUFS) => lost = true,
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(lost, "the default buffer keeps all of {TOO_MANY} events");
    listener.ignore()?;
    let kept = count.events;
    report_line(&BenchRecord::Burst(Burst { situation, kept }))
}
