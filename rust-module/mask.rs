// SPDX-License-Identifier: GPL-2.0

//! The events that a listener asks for.
//!
//! This file uses no code of the kernel, and is tested on the host.

/// `enum proc_cn_event`: the type of an event in a message, and the bits of a listener's mask.
pub(crate) mod bits {
    pub(crate) const FORK: u32 = 0x0000_0001;
    pub(crate) const EXEC: u32 = 0x0000_0002;
    pub(crate) const UID: u32 = 0x0000_0004;
    pub(crate) const GID: u32 = 0x0000_0040;
    pub(crate) const SID: u32 = 0x0000_0080;
    pub(crate) const PTRACE: u32 = 0x0000_0100;
    pub(crate) const COMM: u32 = 0x0000_0200;
    /// Only listeners that name this event get it: it is not in `PROC_EVENT_ALL`.
    pub(crate) const SESSION_END: u32 = 0x0000_0400;
    /// This is not an event, and in no mask: the message is about an existing process.
    pub(crate) const PROCESS: u32 = 0x0000_0800;
    /// This is not an event, but a filter for [`EXIT`]: only exits whose status is not 0.
    pub(crate) const NONZERO_EXIT: u32 = 0x2000_0000;
    pub(crate) const COREDUMP: u32 = 0x4000_0000;
    pub(crate) const EXIT: u32 = 0x8000_0000;
}

/// The events that a listener wants, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mask(u32);

impl Mask {
    /// All bits that name an event or a filter.
    const KNOWN: u32 = bits::FORK
        | bits::EXEC
        | bits::UID
        | bits::GID
        | bits::SID
        | bits::PTRACE
        | bits::COMM
        | bits::COREDUMP
        | bits::EXIT
        | bits::SESSION_END
        | bits::NONZERO_EXIT;

    /// `PROC_EVENT_ALL`: the mask for a request that names no event.
    pub(crate) const ALL: Mask = Mask(Self::KNOWN & !bits::SESSION_END);

    /// Returns the mask that a request asks for. Unknown bits are ignored. If no known bit is left,
    /// the result is [`Mask::ALL`].
    pub(crate) fn requested(bits: u32) -> Self {
        match bits & Self::KNOWN {
            0 => Self::ALL,
            known => Self(known),
        }
    }

    /// Returns whether `bits` has only bits that name an event or a filter.
    pub(crate) fn knows(bits: u32) -> bool {
        bits & !Self::KNOWN == 0
    }

    /// Returns the bits of `enum proc_cn_event`.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// Returns whether an event has to find a listener with this mask. `event` is the bit that
    /// names the event. For [`bits::EXIT`], [`bits::NONZERO_EXIT`] suffices, and [`Mask::has_exit`]
    /// decides later.
    pub(crate) fn has(self, event: u32) -> bool {
        match event {
            bits::EXIT => self.0 & (bits::EXIT | bits::NONZERO_EXIT) != 0,
            event => self.0 & event != 0,
        }
    }

    /// Returns whether a listener with this mask wants an exit with this code, if it wants exits at
    /// all. The code has the format of wait(2).
    #[inline]
    pub(crate) fn has_exit(self, code: i32) -> bool {
        code != 0 || self.0 & bits::EXIT != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [u32; 10] = [
        bits::FORK,
        bits::EXEC,
        bits::UID,
        bits::GID,
        bits::SID,
        bits::PTRACE,
        bits::COMM,
        bits::COREDUMP,
        bits::EXIT,
        bits::SESSION_END,
    ];

    fn events(mask: Mask) -> Vec<u32> {
        EVENTS
            .into_iter()
            .filter(|event| mask.has(*event))
            .collect()
    }

    #[test]
    fn all_is_proc_event_all() {
        assert_eq!(Mask::ALL.0, 0xe000_03c7);
    }

    #[test]
    fn a_single_bit_is_a_single_event() {
        for event in EVENTS {
            assert_eq!(events(Mask::requested(event)), [event]);
        }
    }

    #[test]
    fn nothing_known_means_all() {
        for bits in [0, 0x0000_0800, 0x1fff_f838] {
            assert_eq!(Mask::requested(bits), Mask::ALL);
        }
    }

    #[test]
    fn the_end_of_a_session_has_to_be_asked_for() {
        assert!(!events(Mask::ALL).contains(&bits::SESSION_END));
        assert_eq!(
            events(Mask::requested(bits::SID | bits::SESSION_END)),
            [bits::SID, bits::SESSION_END]
        );
        assert!(events(Mask::requested(u32::MAX)).contains(&bits::SESSION_END));
    }

    #[test]
    fn unknown_bits_are_ignored() {
        assert_eq!(
            events(Mask::requested(bits::SID | 0x1000_0008)),
            [bits::SID]
        );
    }

    #[test]
    fn a_request_can_be_checked_for_unknown_bits() {
        for known in EVENTS.into_iter().chain([0, bits::NONZERO_EXIT]) {
            assert!(Mask::knows(known));
        }
        for unknown in [bits::PROCESS, 0x1000_0000, bits::SID | 0x8, u32::MAX] {
            assert!(!Mask::knows(unknown));
        }
    }

    #[test]
    fn exits_that_are_not_zero_are_exits() {
        let failures = Mask::requested(bits::NONZERO_EXIT);
        let both = Mask::requested(bits::EXIT | bits::NONZERO_EXIT);

        assert_eq!(events(failures), [bits::EXIT]);
        assert_eq!(events(both), [bits::EXIT]);
        assert!(failures.has_exit(1) && !failures.has_exit(0));
        for mask in [both, Mask::requested(bits::EXIT), Mask::ALL] {
            assert!(mask.has_exit(1) && mask.has_exit(0));
        }
    }
}
