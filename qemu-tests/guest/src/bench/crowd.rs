// SPDX-License-Identifier: GPL-2.0
//! Many listeners, which are read between the measurements and must not lose anything.

use std::os::fd::AsRawFd;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsFd;

use crate::listener::Listener;
use crate::wire::{LISTEN, MESSAGE_SIZE};

/// Where in a message the kind of the event is.
const KIND_OFFSET: usize = 36;

/// Listeners that are all alike.
pub struct Crowd(Vec<Listener>);

impl Crowd {
    /// Sockets that have not asked for anything.
    pub fn silent(count: u32) -> Result<Self> {
        let sockets = (0..count).map(|_| Listener::open());
        Ok(Self(sockets.collect::<Result<_, _>>()?))
    }

    /// Listeners with much room.
    pub fn listening(count: u32, mask: u32) -> Result<Self> {
        let crowd = Self::silent(count)?;
        crowd.change(mask)?;
        Ok(crowd)
    }

    /// One that is there already.
    pub fn of(listener: Listener) -> Self {
        Self(vec![listener])
    }

    /// The listeners.
    pub fn listeners(&self) -> &[Listener] {
        &self.0
    }

    /// Lets them listen for something else, and forgets what came until then.
    pub fn change(&self, mask: u32) -> Result<()> {
        for listener in &self.0 {
            listener.request(&[LISTEN, mask])?;
        }
        self.forget()
    }

    /// Reads all they were sent: at least so many events of this kind each, and nothing was lost.
    pub fn drain(&mut self, kind: u32, at_least: u64) -> Result<()> {
        for listener in &self.0 {
            let (events, _) = drain(listener, kind)?;
            ensure!(
                events >= at_least,
                "a listener got {events} of {at_least} events of kind {kind:#x}"
            );
        }
        Ok(())
    }

    /// Makes sure that nothing reached them.
    pub fn expect_nothing(&mut self) -> Result<()> {
        for listener in &self.0 {
            let (_, all) = drain(listener, 0)?;
            ensure!(
                all == 0,
                "a listener got {all} messages that it did not ask for"
            );
        }
        Ok(())
    }

    /// Lets them listen no longer, and forgets what came until then.
    pub fn ignore(&self) -> Result<()> {
        for listener in &self.0 {
            listener.ignore()?;
        }
        self.forget()
    }

    fn forget(&self) -> Result<()> {
        for listener in &self.0 {
            drain(listener, 0)?;
        }
        Ok(())
    }
}

/// Reads all that is there: how many events of this kind, and how many messages.
fn drain(listener: &Listener, kind: u32) -> Result<(u64, u64)> {
    let socket = listener.as_fd().as_raw_fd();
    let (mut events, mut all) = (0, 0);
    let mut message = [0; MESSAGE_SIZE];
    loop {
        match recv(socket, &mut message, MsgFlags::MSG_DONTWAIT) {
            Ok(MESSAGE_SIZE) => {
                let what = &message[KIND_OFFSET..KIND_OFFSET + 4];
                events += u64::from(what == kind.to_ne_bytes());
                all += 1;
            }
            Ok(length) => bail!("a message has {length} bytes"),
            Err(Errno::EAGAIN) => return Ok((events, all)),
            Err(Errno::ENOBUFS) => bail!("a listener's queue overran: the figure would be of that"),
            Err(error) => return Err(error.into()),
        }
    }
}
