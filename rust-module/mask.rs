// SPDX-License-Identifier: GPL-2.0

//! What a listener asks for.
//!
//! This file knows nothing of the kernel, and is tested on the host.

/// `enum proc_cn_event`: which event a message is, and a bit of a listener's mask.
pub(crate) mod bits {
    pub(crate) const FORK: u32 = 0x0000_0001;
    pub(crate) const EXEC: u32 = 0x0000_0002;
    pub(crate) const UID: u32 = 0x0000_0004;
    pub(crate) const GID: u32 = 0x0000_0040;
    pub(crate) const SID: u32 = 0x0000_0080;
    pub(crate) const PTRACE: u32 = 0x0000_0100;
    pub(crate) const COMM: u32 = 0x0000_0200;
    /// Only for those who ask for it by name: it is not in `PROC_EVENT_ALL`.
    pub(crate) const SESSION_END: u32 = 0x0000_0400;
    /// Not an event, but a filter for [`EXIT`]: only if the status is not 0.
    pub(crate) const NONZERO_EXIT: u32 = 0x2000_0000;
    pub(crate) const COREDUMP: u32 = 0x4000_0000;
    pub(crate) const EXIT: u32 = 0x8000_0000;
}

/// A list of receivers: each event goes to the listeners on one list, an exit to those on two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum List {
    Fork,
    Exec,
    Uid,
    Gid,
    Sid,
    Ptrace,
    Comm,
    Coredump,
    Exit,
    SessionEnd,
    /// Those who want to know of an exit only if the status is not 0.
    NonzeroExit,
}

impl List {
    /// All lists, each at the index that it has as a number.
    pub(crate) const ALL: [List; 11] = [
        List::Fork,
        List::Exec,
        List::Uid,
        List::Gid,
        List::Sid,
        List::Ptrace,
        List::Comm,
        List::Coredump,
        List::Exit,
        List::SessionEnd,
        List::NonzeroExit,
    ];

    const fn bit(self) -> u32 {
        match self {
            List::Fork => bits::FORK,
            List::Exec => bits::EXEC,
            List::Uid => bits::UID,
            List::Gid => bits::GID,
            List::Sid => bits::SID,
            List::Ptrace => bits::PTRACE,
            List::Comm => bits::COMM,
            List::Coredump => bits::COREDUMP,
            List::Exit => bits::EXIT,
            List::SessionEnd => bits::SESSION_END,
            List::NonzeroExit => bits::NONZERO_EXIT,
        }
    }
}

/// The events that a listener wants: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mask(u32);

impl Mask {
    /// All bits that name an event or filter one.
    const KNOWN: u32 = {
        let mut known = 0;
        let mut index = 0;
        while index < List::ALL.len() {
            known |= List::ALL[index].bit();
            index += 1;
        }
        known
    };

    /// `PROC_EVENT_ALL`: what a request gets that names no event.
    pub(crate) const ALL: Mask = Mask(Self::KNOWN & !bits::SESSION_END);

    /// The mask that a request asks for: unknown bits are ignored, and none left means all.
    pub(crate) fn requested(bits: u32) -> Self {
        match bits & Self::KNOWN {
            0 => Self::ALL,
            known => Self(known),
        }
    }

    /// The bits of `enum proc_cn_event`.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// Whether a listener with this mask belongs on a list.
    ///
    /// Who wants all exits is not on the list for some of them, and so gets none twice.
    pub(crate) fn is_on(self, list: List) -> bool {
        let wanted = self.0 & list.bit() != 0;

        match list {
            List::NonzeroExit => wanted && self.0 & bits::EXIT == 0,
            _ => wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(mask: Mask) -> Vec<List> {
        List::ALL
            .into_iter()
            .filter(|list| mask.is_on(*list))
            .collect()
    }

    #[test]
    fn all_is_proc_event_all() {
        assert_eq!(Mask::ALL.0, 0xe000_03c7);
    }

    #[test]
    fn a_list_has_its_index_as_number() {
        for (index, list) in List::ALL.into_iter().enumerate() {
            assert_eq!(list as usize, index);
        }
    }

    #[test]
    fn a_single_bit_is_a_single_list() {
        for list in List::ALL {
            assert_eq!(lists(Mask::requested(list.bit())), [list]);
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
        assert!(!Mask::ALL.is_on(List::SessionEnd));
        assert_eq!(
            lists(Mask::requested(bits::SID | bits::SESSION_END)),
            [List::Sid, List::SessionEnd]
        );
        assert!(Mask::requested(u32::MAX).is_on(List::SessionEnd));
    }

    #[test]
    fn unknown_bits_are_ignored() {
        assert_eq!(lists(Mask::requested(bits::SID | 0x1000_0008)), [List::Sid]);
    }

    #[test]
    fn who_wants_all_exits_is_not_on_the_list_for_some() {
        let both = Mask::requested(bits::EXIT | bits::NONZERO_EXIT);

        assert_eq!(lists(both), [List::Exit]);
        assert!(!Mask::ALL.is_on(List::NonzeroExit));
    }
}
