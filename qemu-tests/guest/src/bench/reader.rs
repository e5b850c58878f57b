// SPDX-License-Identifier: GPL-2.0
//! Reads events as a fast program does: into one buffer, and only the fields of each event that it
//! needs.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::listener::Listener;
use crate::wire::{BATCH_SIZE, MESSAGE_SIZE};

/// The offset of the event's kind in a message.
const KIND_OFFSET: usize = 36;

/// `NLMSG_ALIGNTO`: where the next message may begin.
const ALIGNMENT: usize = 4;

/// A buffer with room for any datagram of events.
pub struct Reader(Box<[u8; BATCH_SIZE]>);

impl Default for Reader {
    fn default() -> Self {
        Self(Box::new([0; BATCH_SIZE]))
    }
}

impl Reader {
    /// The next datagram, if there is one. `EAGAIN` means that there is none, and `ENOBUFS` that
    /// events were lost.
    pub fn receive(&mut self, listener: &Listener) -> nix::Result<&[u8]> {
        let socket = listener.as_fd().as_raw_fd();
        let length = recv(socket, self.0.as_mut_slice(), MsgFlags::MSG_DONTWAIT)?;
        Ok(&self.0[..length])
    }

    /// Reads all datagrams in the queue, and fails if events were lost.
    pub fn read_all(&mut self, listener: &Listener, kind: u32) -> Result<ReadCount> {
        let mut count = ReadCount::default();
        loop {
            match self.receive(listener) {
                Ok(datagram) => count.add(datagram, kind)?,
                Err(Errno::EAGAIN) => return Ok(count),
                Err(Errno::ENOBUFS) => {
                    bail!("a listener's queue overran: the figure would measure that")
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReadCount {
    /// The number of events of a kind.
    pub events: u64,
    /// The number of datagrams.
    pub datagrams: u64,
}

impl ReadCount {
    /// Counts a datagram, and its events of this kind. Finds one message after the other by their
    /// lengths, as `NLMSG_NEXT` does.
    #[inline]
    pub fn add(&mut self, datagram: &[u8], kind: u32) -> Result<()> {
        let mut events = 0;
        let mut rest = datagram;
        while let Some(message) = rest.first_chunk::<MESSAGE_SIZE>() {
            let length = word(message, 0) as usize;
            if length < MESSAGE_SIZE || length > rest.len() {
                break;
            }
            events += u64::from(word(message, KIND_OFFSET) == kind);
            let aligned = (length + ALIGNMENT - 1) & !(ALIGNMENT - 1);
            // The last message need not be padded.
            let Some(next) = rest.get(aligned..) else {
                rest = &[];
                break;
            };
            rest = next;
        }
        ensure!(
            rest.is_empty() && !datagram.is_empty(),
            "no message is in the last {} of a datagram's {} bytes",
            rest.len(),
            datagram.len()
        );
        self.events += events;
        self.datagrams += 1;
        Ok(())
    }
}

fn word(message: &[u8; MESSAGE_SIZE], offset: usize) -> u32 {
    let [a, b, c, d] = [0, 1, 2, 3].map(|index| message[offset + index]);
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::mask;

    fn message(length: u32, kind: u32) -> [u8; MESSAGE_SIZE] {
        let mut message = [0xaa; MESSAGE_SIZE];
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[KIND_OFFSET..KIND_OFFSET + 4].copy_from_slice(&kind.to_ne_bytes());
        message
    }

    fn count(datagram: &[u8]) -> Result<ReadCount> {
        let mut count = ReadCount::default();
        count.add(datagram, mask::COMM)?;
        Ok(count)
    }

    #[test]
    fn each_message_of_a_datagram_is_found() {
        let length = MESSAGE_SIZE as u32;
        let one = message(length, mask::COMM);
        let other = message(length, mask::EXIT);
        for (messages, events) in [
            (vec![one], 1),
            (vec![other], 0),
            (vec![one, other, one], 2),
            (vec![one; BATCH_SIZE / MESSAGE_SIZE], 53),
        ] {
            let expected = ReadCount {
                events,
                datagrams: 1,
            };
            assert_eq!(count(&messages.concat()).unwrap(), expected);
        }
    }

    #[test]
    fn messages_may_be_longer() {
        let mut datagram = message(MESSAGE_SIZE as u32 + 2, mask::COMM).to_vec();
        datagram.extend([0; 4]);
        datagram.extend(message(MESSAGE_SIZE as u32, mask::COMM));
        assert_eq!(count(&datagram).unwrap().events, 2);
        datagram.truncate(MESSAGE_SIZE + 2);
        assert_eq!(count(&datagram).unwrap().events, 1);
    }

    #[test]
    fn malformed_datagrams_are_an_error() {
        let length = MESSAGE_SIZE as u32;
        let one = message(length, mask::COMM);
        let longer = [&one[..], &one[..40]].concat();
        for datagram in [&[][..], &one[..40], &longer] {
            assert!(count(datagram).is_err(), "{} bytes", datagram.len());
        }
        for wrong in [0, length - 1, length + 1, u32::MAX] {
            assert!(count(&message(wrong, mask::COMM)).is_err(), "{wrong}");
        }
    }
}
