// SPDX-License-Identifier: GPL-2.0
//! Ways to read a datagram, or to peek at it, into a buffer of any size, which may be too small.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recvmsg};

use crate::harness::{Failure, TestResult, expect_eq};
use crate::wire::{BATCH_SIZE, IDENTITY_MESSAGE_SIZE, MESSAGE_SIZE};

/// A way to read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Bytes of the buffer.
    pub room: usize,
    /// Whether the call is to return the length of the whole datagram (`MSG_TRUNC`).
    pub returns_length: bool,
}

/// What recvmsg(2) returned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Read {
    /// The length that it returned.
    pub length: usize,
    /// Whether the datagram did not fit.
    pub is_cut: bool,
    /// The sender's port id and multicast groups.
    pub sender: (u32, u32),
    /// What is in the buffer.
    pub bytes: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Reading {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        // Some messages, and a byte more or less.
        let some = |u: &mut Unstructured<'a>, size: usize| -> Result<usize> {
            Ok(size * u.int_in_range(1..=8)? + u.int_in_range(0..=2)? - 1)
        };
        let room = match u.int_in_range(0..=3)? {
            0 => some(u, IDENTITY_MESSAGE_SIZE)?,
            1 => some(u, MESSAGE_SIZE)?,
            2 => u.int_in_range(0..=MESSAGE_SIZE)?,
            _ => u.int_in_range(0..=BATCH_SIZE)?,
        };
        Ok(Self {
            room,
            returns_length: u.arbitrary()?,
        })
    }
}

impl Reading {
    /// With room for a whole datagram and one byte more, which shows a datagram that is too long.
    pub const WHOLE: Self = Self {
        room: BATCH_SIZE + 1,
        returns_length: false,
    };

    /// Reads the next datagram, if there is one. With `MSG_PEEK`, the datagram stays.
    pub fn read(
        self,
        socket: &impl AsFd,
        mut flags: MsgFlags,
    ) -> std::result::Result<Option<Read>, Failure> {
        flags |= MsgFlags::MSG_DONTWAIT;
        flags.set(MsgFlags::MSG_TRUNC, self.returns_length);
        let mut bytes = vec![0; self.room];
        let mut data = [IoSliceMut::new(&mut bytes)];
        let socket = socket.as_fd().as_raw_fd();
        let message = match recvmsg::<NetlinkAddr>(socket, &mut data, None, flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            message => message?,
        };
        let sender = message.address;
        let sender = sender.ok_or_else(|| Failure::new("a datagram came without its sender"))?;
        let (length, is_cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
        bytes.truncate(length);
        Ok(Some(Read {
            length,
            is_cut,
            sender: (sender.pid(), sender.groups()),
            bytes,
        }))
    }

    /// Expects that this way to read returned the right part of a datagram.
    pub fn check(self, part: Option<Read>, whole: Read) -> TestResult {
        let is_cut = whole.length > self.room;
        let mut expected = Read { is_cut, ..whole };
        expected.bytes.truncate(self.room);
        if !self.returns_length {
            expected.length = expected.bytes.len();
        }
        let what = format!("what {self:?} returns of {} bytes", whole.length);
        expect_eq(&what, part, Some(expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(length: usize, is_cut: bool, bytes: &[u8]) -> Read {
        Read {
            length,
            is_cut,
            sender: (0, 1),
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn a_part_has_what_fits() {
        for (room, returns_length, part) in [
            (0, false, read(0, true, &[])),
            (0, true, read(3, true, &[])),
            (2, false, read(2, true, &[7, 8])),
            (2, true, read(3, true, &[7, 8])),
            (3, false, read(3, false, &[7, 8, 9])),
            (4, true, read(3, false, &[7, 8, 9])),
        ] {
            let reading = Reading {
                room,
                returns_length,
            };
            let is_right = |part| reading.check(part, read(3, false, &[7, 8, 9])).is_ok();
            let Read { length, is_cut, .. } = part;
            assert!(!is_right(Some(read(length + 1, is_cut, &part.bytes))));
            assert!(!is_right(Some(read(length, !is_cut, &part.bytes))));
            assert!(!is_right(Some(read(length, is_cut, &[7, 7]))));
            assert!(!is_right(None));
            assert!(is_right(Some(part)), "{reading:?}");
        }
    }

    #[test]
    fn most_buffers_are_smaller_than_a_batch() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut none, mut small) = (0, 0);
        for _ in 0..1000 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64).collect();
            let reading: Reading = Unstructured::new(&bytes).arbitrary().unwrap();
            assert!(reading.room <= BATCH_SIZE);
            none += usize::from(reading.room < MESSAGE_SIZE);
            small += usize::from(reading.room < 8 * IDENTITY_MESSAGE_SIZE);
        }
        assert!(none > 200 && small > 700, "{none} {small}");
    }
}
