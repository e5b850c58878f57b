// SPDX-License-Identifier: GPL-2.0
//! How many events of a burst the default buffer keeps for a listener that does not read meanwhile.

use anyhow::{Result, ensure};
use nix::errno::Errno;
use protocol::bench::{Burst, Line, Situation};

use crate::bench::batches::request;
use crate::bench::operations::rename;
use crate::bench::reader::{Reader, Tally};
use crate::bench::{TOO_MANY, say};
use crate::listener::Listener;
use crate::wire::mask;

/// Raises them, and then reads what is there. After the first loss nothing is queued until all has
/// been read, so that nothing of it came later.
pub fn run(situation: Situation) -> Result<()> {
    let listener = Listener::open_unprivileged()?;
    listener.request(&request(situation, mask::COMM))?;
    let mut reader = Reader::default();
    // The answer takes room, too.
    reader.read_all(&listener, 0)?;
    for _ in 0..TOO_MANY {
        rename()?;
    }
    let (mut tally, mut lost) = (Tally::default(), false);
    loop {
        match reader.receive(&listener) {
            Ok(datagram) => tally.add(datagram, mask::COMM)?,
            Err(Errno::EAGAIN) => break,
            Err(Errno::ENOBUFS) => lost = true,
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(lost, "the default buffer keeps all of {TOO_MANY} events");
    listener.ignore()?;
    let kept = tally.events;
    say(&Line::Burst(Burst { situation, kept }))
}
