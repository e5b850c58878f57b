// SPDX-License-Identifier: GPL-2.0
//! A set of listeners, which are read between the measurements and must not lose anything.

use anyhow::{Result, ensure};
use protocol::bench::Situation;

use super::reader::{ReadCount, Reader};
use crate::listener::Listener;
use crate::wire::{BATCH, IDENTITY, LISTEN, PROCESSES, proc_listen};

/// Listeners that are all alike.
pub struct ListenerSet(Vec<Listener>);

impl ListenerSet {
    /// Sockets that have not asked for anything.
    pub fn silent(count: u32) -> Result<Self> {
        let sockets = (0..count).map(|_| Listener::open());
        Ok(Self(sockets.collect::<Result<_, _>>()?))
    }

    /// Listeners with large buffers.
    pub fn listening(count: u32, mask: u32) -> Result<Self> {
        let set = Self::silent(count)?;
        set.change(mask)?;
        Ok(set)
    }

    /// A set of one existing listener.
    pub fn of(listener: Listener) -> Self {
        Self(vec![listener])
    }

    /// The listeners.
    pub fn listeners(&self) -> &[Listener] {
        &self.0
    }

    /// Makes them listen for other events, and discards the messages until then.
    pub fn change(&self, mask: u32) -> Result<()> {
        self.change_form(Situation::Everything, mask)
    }

    /// The same, with events in the form of the situation.
    pub fn change_form(&self, situation: Situation, mask: u32) -> Result<()> {
        self.ask(&request(situation, mask))
    }

    /// Makes them send this request, and discards the messages until then.
    pub fn ask(&self, request: &[u32]) -> Result<()> {
        for listener in &self.0 {
            listener.request(request)?;
        }
        self.discard()
    }

    /// Reads all messages. Expects at least this many events of this kind for each, and no loss.
    pub fn drain(&mut self, kind: u32, at_least: u64) -> Result<()> {
        let mut reader = Reader::default();
        for listener in &self.0 {
            let ReadCount { events, .. } = reader.read_all(listener, kind)?;
            ensure!(
                events >= at_least,
                "a listener got {events} of {at_least} events of kind {kind:#x}"
            );
        }
        Ok(())
    }

    /// Makes sure that they got nothing.
    pub fn expect_nothing(&mut self) -> Result<()> {
        let mut reader = Reader::default();
        for listener in &self.0 {
            let ReadCount { datagrams, .. } = reader.read_all(listener, 0)?;
            ensure!(
                datagrams == 0,
                "a listener got {datagrams} datagrams that it did not ask for"
            );
        }
        Ok(())
    }

    /// Makes them stop listening, and discards the messages until then.
    pub fn ignore(&self) -> Result<()> {
        for listener in &self.0 {
            listener.ignore()?;
        }
        self.discard()
    }

    fn discard(&self) -> Result<()> {
        let mut reader = Reader::default();
        for listener in &self.0 {
            reader.read_all(listener, 0)?;
        }
        Ok(())
    }
}

/// The request for the events of a mask, in the form of the situation.
pub fn request(situation: Situation, mask: u32) -> Vec<u32> {
    let flags = match situation {
        Situation::Batch => BATCH,
        Situation::Identity | Situation::IdentityState => IDENTITY,
        Situation::IdentityBatch => IDENTITY | BATCH,
        Situation::Processes => PROCESSES,
        _ => return vec![LISTEN, mask],
    };
    proc_listen(LISTEN, mask, flags).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::mask;

    #[test]
    fn only_flags_are_asked_for_in_the_third_form() {
        assert_eq!(request(Situation::Everything, mask::SID), [1, 0x80]);
        for (situation, flags) in [
            (Situation::Batch, 0x4),
            (Situation::Identity, 0x2),
            (Situation::IdentityBatch, 0x6),
            (Situation::Processes, 0x1),
        ] {
            assert_eq!(request(situation, mask::SID), [1, 0x80, flags, 0, 0, 0]);
        }
    }
}
