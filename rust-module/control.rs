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

/// A request that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start to listen, or change what is listened for.
    Listen(Mask),
    /// Stop listening.
    Ignore,
}

/// The request is not one: unknown, or of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Command {
    /// Parses the data of a request: an `enum proc_cn_mcast_op`, or a `struct proc_input`, which
    /// has a mask behind it.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the length is neither's, or the op is unknown.
    pub(crate) fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let (op, mask) = if let Ok(op) = u32::read_from_bytes(data) {
            (op, Mask::ALL)
        } else if let Ok([op, bits]) = <[u32; 2]>::read_from_bytes(data) {
            (op, Mask::requested(bits))
        } else {
            return Err(Malformed);
        };

        match op {
            LISTEN => Ok(Self::Listen(mask)),
            IGNORE => Ok(Self::Ignore),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::bits;

    fn request(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn the_short_form_listens_for_all() {
        assert_eq!(
            Command::parse(&request(&[1])),
            Ok(Command::Listen(Mask::ALL))
        );
        assert_eq!(Command::parse(&request(&[2])), Ok(Command::Ignore));
    }

    #[test]
    fn the_long_form_has_a_mask() {
        let sid = Mask::requested(bits::SID);

        assert_eq!(
            Command::parse(&request(&[1, bits::SID])),
            Ok(Command::Listen(sid))
        );
        assert_eq!(
            Command::parse(&request(&[1, 0])),
            Ok(Command::Listen(Mask::ALL))
        );
        assert_eq!(
            Command::parse(&request(&[2, bits::SID])),
            Ok(Command::Ignore)
        );
    }

    #[test]
    fn other_ops_are_malformed() {
        for op in [0, 3, 0x100, 0x0100_0000, u32::MAX] {
            assert_eq!(Command::parse(&request(&[op])), Err(Malformed));
            assert_eq!(Command::parse(&request(&[op, bits::SID])), Err(Malformed));
        }
    }

    #[test]
    fn other_lengths_are_malformed() {
        let long = request(&[1, bits::SID, 0, 0]);

        for len in (0..=long.len()).filter(|len| ![4, 8].contains(len)) {
            assert_eq!(Command::parse(&long[..len]), Err(Malformed), "{len} bytes");
        }
    }
}
