// SPDX-License-Identifier: GPL-2.0

//! What user space asks of us.
//!
//! This file knows nothing of the kernel, and is tested on the host.

use crate::mask::Mask;
use zerocopy::FromBytes;

/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// `PROC_CN_MCAST_IGNORE`.
const IGNORE: u32 = 2;

/// What a LISTEN asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Which events.
    pub(crate) mask: Mask,
    /// In which form.
    pub(crate) flags: Flags,
}

/// `PROC_CN_LISTEN_*`: in which form a listener wants its events. All of them are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

impl Flags {
    /// `PROC_CN_LISTEN_BATCH`: several events in one datagram.
    pub(crate) const BATCH: Flags = Flags(0x4);

    /// The flags with these bits, unless one of them is unknown.
    fn requested(bits: u32) -> Option<Self> {
        (bits & !Self::BATCH.0 == 0).then_some(Self(bits))
    }

    /// The bits of `PROC_CN_LISTEN_*`.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `flags` are set.
    #[inline]
    pub(crate) fn contain(self, flags: Flags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// A request that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start to listen, or change what is listened for.
    Listen(Listen),
    /// Stop listening.
    Ignore,
}

/// The request is not one: unknown, or of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A `struct proc_listen`, by words: the last two are `cgroup_id`.
type ProcListen = [u32; 6];

impl Command {
    /// Parses the data of a request: an `enum proc_cn_mcast_op`, or a `struct proc_input`, which
    /// has a mask behind it, or a `struct proc_listen`, which has flags behind that and may become
    /// longer: what we don't know of it must be 0, as with clone3(2).
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the length is none of these, the op or a flag is unknown, or a field is set
    /// that nothing is known of.
    pub(crate) fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let (op, bits, flags) = if let Ok(op) = u32::read_from_bytes(data) {
            (op, 0, 0)
        } else if let Ok([op, bits]) = <[u32; 2]>::read_from_bytes(data) {
            (op, bits, 0)
        } else if let Ok(([op, bits, flags, unknown @ ..], rest)) =
            ProcListen::read_from_prefix(data)
        {
            if unknown != [0; 3] || rest.iter().any(|byte| *byte != 0) {
                return Err(Malformed);
            }
            (op, bits, flags)
        } else {
            return Err(Malformed);
        };
        let flags = Flags::requested(flags).ok_or(Malformed)?;

        match op {
            LISTEN => Ok(Self::Listen(Listen {
                mask: Mask::requested(bits),
                flags,
            })),
            IGNORE => Ok(Self::Ignore),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::bits;

    const BATCH: u32 = Flags::BATCH.0;

    fn request(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn check_listen(words: &[u32], mask: Mask, flags: Flags) {
        assert_eq!(
            Command::parse(&request(words)),
            Ok(Command::Listen(Listen { mask, flags })),
            "{words:?}"
        );
    }

    fn check_malformed(words: &[u32]) {
        assert_eq!(Command::parse(&request(words)), Err(Malformed), "{words:?}");
    }

    #[test]
    fn the_shortest_form_listens_for_all() {
        check_listen(&[1], Mask::ALL, Flags::default());
        assert_eq!(Command::parse(&request(&[2])), Ok(Command::Ignore));
    }

    #[test]
    fn the_second_form_has_a_mask() {
        check_listen(
            &[1, bits::SID],
            Mask::requested(bits::SID),
            Flags::default(),
        );
        check_listen(&[1, 0], Mask::ALL, Flags::default());
        assert_eq!(
            Command::parse(&request(&[2, bits::SID])),
            Ok(Command::Ignore)
        );
    }

    #[test]
    fn the_third_form_has_flags() {
        let sid = Mask::requested(bits::SID);

        check_listen(&[1, bits::SID, 0, 0, 0, 0], sid, Flags::default());
        check_listen(&[1, bits::SID, BATCH, 0, 0, 0], sid, Flags::BATCH);
        check_listen(&[1, 0, BATCH, 0, 0, 0], Mask::ALL, Flags::BATCH);
        assert_eq!(
            Command::parse(&request(&[2, 0, BATCH, 0, 0, 0])),
            Ok(Command::Ignore)
        );
    }

    #[test]
    fn a_longer_form_is_taken_if_the_rest_is_0() {
        let mut data = request(&[1, bits::SID, BATCH, 0, 0, 0]);

        for _ in 0..100 {
            data.push(0);
            assert!(Command::parse(&data).is_ok(), "{} bytes", data.len());
            *data.last_mut().unwrap() = 1;
            assert_eq!(Command::parse(&data), Err(Malformed));
            *data.last_mut().unwrap() = 0;
        }
    }

    #[test]
    fn unknown_flags_are_malformed() {
        for bit in (0..u32::BITS)
            .map(|bit| 1 << bit)
            .filter(|bit| *bit != BATCH)
        {
            for op in [1, 2] {
                check_malformed(&[op, bits::SID, bit, 0, 0, 0]);
                check_malformed(&[op, bits::SID, bit | BATCH, 0, 0, 0]);
            }
        }
    }

    #[test]
    fn fields_that_mean_nothing_must_be_0() {
        for field in 3..6 {
            let mut words = [1, bits::SID, 0, 0, 0, 0];
            words[field] = 1;
            check_malformed(&words);
        }
    }

    #[test]
    fn other_ops_are_malformed() {
        for op in [0, 3, 0x100, 0x0100_0000, u32::MAX] {
            check_malformed(&[op]);
            check_malformed(&[op, bits::SID]);
            check_malformed(&[op, bits::SID, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn other_lengths_are_malformed() {
        let long = request(&[1, bits::SID, 0, 0, 0, 0]);

        for len in (0..long.len()).filter(|len| ![4, 8].contains(len)) {
            assert_eq!(Command::parse(&long[..len]), Err(Malformed), "{len} bytes");
        }
    }
}
