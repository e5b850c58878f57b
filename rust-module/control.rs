// SPDX-License-Identifier: GPL-2.0

//! The requests of user space.
//!
//! This file uses no code of the kernel, and is tested on the host.

use crate::mask::Mask;
use zerocopy::FromBytes;

/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// `PROC_CN_MCAST_IGNORE`.
const IGNORE: u32 = 2;
/// `PROC_CN_MCAST_STATE`.
const STATE: u32 = 3;

/// The parameters of a LISTEN request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    /// The events that the listener wants.
    pub(crate) mask: Mask,
    /// The form of the events, and which of them are left out.
    pub(crate) flags: Flags,
    /// The id of the cgroup whose events the listener wants, with [`Flags::CGROUP`]; otherwise 0.
    pub(crate) cgroup_id: u64,
}

/// `PROC_CN_LISTEN_*`: the form in which a listener wants its events, and whose events it wants.
/// Only known flags are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

impl Flags {
    /// `PROC_CN_LISTEN_PROCESSES`: forks and exits of processes only, not of threads.
    pub(crate) const PROCESSES: Flags = Flags(0x1);
    /// `PROC_CN_LISTEN_IDENTITY`: a `struct proc_event_identity` follows each event.
    pub(crate) const IDENTITY: Flags = Flags(0x2);
    /// `PROC_CN_LISTEN_BATCH`: several events may share a datagram.
    pub(crate) const BATCH: Flags = Flags(0x4);
    /// `PROC_CN_LISTEN_CGROUP`: only events of one cgroup and its descendants.
    pub(crate) const CGROUP: Flags = Flags(0x8);

    /// Returns all known flags. [`Flags::CGROUP`] is known only if the kernel has cgroups.
    pub(crate) const fn known(has_cgroups: bool) -> Self {
        let cgroup = if has_cgroups { Self::CGROUP.0 } else { 0 };

        Self(Self::PROCESSES.0 | Self::IDENTITY.0 | Self::BATCH.0 | cgroup)
    }

    /// Returns the flags with these bits; [`None`] if a bit is not in `known`.
    fn requested(bits: u32, known: Self) -> Option<Self> {
        (bits & !known.0 == 0).then_some(Self(bits))
    }

    /// Returns the bits of `PROC_CN_LISTEN_*`.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// Returns whether all of `flags` are set.
    #[inline]
    pub(crate) fn contain(self, flags: Flags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// The highest number of a form.
    pub(crate) const FORM_MAX: usize = 3;

    /// Returns a number for the form of a message to the listener, which two flags determine.
    pub(crate) fn form(self) -> usize {
        const { assert!((Self::IDENTITY.0 | Self::BATCH.0) >> 1 == 3) };

        (self.0 >> 1) as usize & Self::FORM_MAX
    }
}

/// A valid request: `enum proc_cn_mcast_op` and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Make the socket a listener, or change what the listener asks for.
    Listen(Listen),
    /// End the listener.
    Ignore,
    /// Report the existing processes.
    State,
}

/// The error for an invalid request: see [`Command::parse`]. The answer to it has `EINVAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The words of a `struct proc_listen` before `cgroup_id`. The last one is reserved.
type ProcListen = [u32; 4];

impl Command {
    /// Parses the data of a request. `known` are the known flags. The data has one of three forms:
    ///
    /// 1. an `enum proc_cn_mcast_op`
    /// 2. a `struct proc_input`, which adds a mask
    /// 3. a `struct proc_listen`, which adds flags and the id of a cgroup. Later versions of the
    ///    struct may be longer. The bytes after the fields that are known here must be 0, as with
    ///    clone3(2). So must be the bits of the mask that are unknown here. In the second form,
    ///    which older kernels have as well, they are ignored.
    ///
    /// STATE was added with the third form, and does not use a mask, so that it has no second form.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the length is that of no form, the op or a flag is unknown, or something
    /// is not 0 that has to be: the reserved field, the id of the cgroup without
    /// [`Flags::CGROUP`], and what is unknown of the third form.
    pub(crate) fn parse(data: &[u8], known: Flags) -> Result<Self, Malformed> {
        let (op, bits, flags, cgroup_id) = if let Ok(op) = u32::read_from_bytes(data) {
            (op, 0, 0, 0)
        } else if let Ok([op, bits]) = <[u32; 2]>::read_from_bytes(data) {
            (op, bits, 0, 0)
        } else {
            let ([op, bits, flags, reserved], rest) =
                ProcListen::read_from_prefix(data).map_err(|_| Malformed)?;
            let (cgroup_id, rest) = u64::read_from_prefix(rest).map_err(|_| Malformed)?;

            if reserved != 0 || !Mask::knows(bits) || rest.iter().any(|byte| *byte != 0) {
                return Err(Malformed);
            }
            (op, bits, flags, cgroup_id)
        };
        let flags = Flags::requested(flags, known).ok_or(Malformed)?;

        if cgroup_id != 0 && !flags.contain(Flags::CGROUP) {
            return Err(Malformed);
        }

        match op {
            LISTEN => Ok(Self::Listen(Listen {
                mask: Mask::requested(bits),
                flags,
                cgroup_id,
            })),
            IGNORE => Ok(Self::Ignore),
            STATE if data.len() != size_of::<[u32; 2]>() => Ok(Self::State),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::bits;

    const ALL: Flags = Flags::known(true);
    const BATCH: u32 = Flags::BATCH.0;
    const CGROUP: u32 = Flags::CGROUP.0;

    fn request(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Returns the bytes of a `struct proc_listen`.
    fn proc_listen(op: u32, mask: u32, flags: u32, cgroup_id: u64) -> Vec<u8> {
        let mut data = request(&[op, mask, flags, 0]);

        data.extend(cgroup_id.to_ne_bytes());
        data
    }

    fn check_listen(data: &[u8], mask: Mask, flags: Flags, cgroup_id: u64) {
        assert_eq!(
            Command::parse(data, ALL),
            Ok(Command::Listen(Listen {
                mask,
                flags,
                cgroup_id
            })),
            "{data:?}"
        );
    }

    fn check_ignore(data: &[u8]) {
        assert_eq!(Command::parse(data, ALL), Ok(Command::Ignore), "{data:?}");
    }

    fn check_malformed(data: &[u8]) {
        assert_eq!(Command::parse(data, ALL), Err(Malformed), "{data:?}");
    }

    #[test]
    fn the_shortest_form_listens_for_all() {
        check_listen(&request(&[1]), Mask::ALL, Flags::default(), 0);
        check_ignore(&request(&[2]));
    }

    #[test]
    fn the_second_form_has_a_mask() {
        let sid = Mask::requested(bits::SID);

        check_listen(&request(&[1, bits::SID]), sid, Flags::default(), 0);
        check_listen(&request(&[1, 0]), Mask::ALL, Flags::default(), 0);
        check_ignore(&request(&[2, bits::SID]));
    }

    #[test]
    fn the_third_form_has_flags_and_a_cgroup() {
        let sid = Mask::requested(bits::SID);

        for flags in (0..16).filter(|flags| flags & CGROUP == 0) {
            check_listen(&proc_listen(1, bits::SID, flags, 0), sid, Flags(flags), 0);
            check_ignore(&proc_listen(2, bits::SID, flags, 0));
        }
        for cgroup_id in [0, 1, 1 << 32, u64::MAX] {
            check_listen(
                &proc_listen(1, 0, CGROUP, cgroup_id),
                Mask::ALL,
                Flags::CGROUP,
                cgroup_id,
            );
            check_ignore(&proc_listen(2, 0, CGROUP, cgroup_id));
        }
    }

    #[test]
    fn a_longer_form_is_taken_if_the_rest_is_0() {
        let mut data = proc_listen(1, bits::SID, BATCH, 0);

        for _ in 0..100 {
            data.push(0);
            assert!(Command::parse(&data, ALL).is_ok(), "{} bytes", data.len());
            *data.last_mut().unwrap() = 1;
            check_malformed(&data);
            *data.last_mut().unwrap() = 0;
        }
    }

    #[test]
    fn unknown_flags_are_malformed() {
        for bit in (0..u32::BITS)
            .map(|bit| 1 << bit)
            .filter(|bit| bit & ALL.0 == 0)
        {
            for op in [1, 2] {
                check_malformed(&proc_listen(op, bits::SID, bit, 0));
                check_malformed(&proc_listen(op, bits::SID, bit | BATCH, 0));
            }
        }
    }

    #[test]
    fn unknown_events_are_malformed_in_the_third_form_only() {
        for mask in [bits::PROCESS, bits::SID | 0x1000_0000, u32::MAX] {
            for op in [LISTEN, IGNORE, STATE] {
                check_malformed(&proc_listen(op, mask, 0, 0));
            }
            check_listen(
                &request(&[LISTEN, mask]),
                Mask::requested(mask),
                Flags::default(),
                0,
            );
        }
    }

    #[test]
    fn without_cgroups_there_is_no_flag_for_them() {
        let known = Flags::known(false);

        for cgroup_id in [0, 1] {
            let data = proc_listen(1, bits::SID, CGROUP, cgroup_id);
            assert_eq!(Command::parse(&data, known), Err(Malformed));
        }
        let all_others = proc_listen(1, bits::SID, ALL.0 & !CGROUP, 0);
        assert!(Command::parse(&all_others, known).is_ok());
    }

    #[test]
    fn fields_that_mean_nothing_must_be_0() {
        for op in [1, 2] {
            check_malformed(&request(&[op, bits::SID, CGROUP, 1, 1, 0]));
            for cgroup_id in [1, 1 << 32] {
                check_malformed(&proc_listen(op, bits::SID, ALL.0 & !CGROUP, cgroup_id));
            }
        }
    }

    #[test]
    fn other_ops_are_malformed() {
        for op in [0, 4, 0x100, 0x0100_0000, u32::MAX] {
            check_malformed(&request(&[op]));
            check_malformed(&request(&[op, bits::SID]));
            check_malformed(&proc_listen(op, bits::SID, 0, 0));
        }
    }

    #[test]
    fn state_has_the_first_form_or_the_third() {
        let check_state = |data: &[u8]| {
            assert_eq!(Command::parse(data, ALL), Ok(Command::State), "{data:?}");
        };
        check_state(&request(&[3]));
        check_state(&proc_listen(3, 0, 0, 0));
        check_state(&proc_listen(3, bits::SID, ALL.0, 1));
        check_malformed(&request(&[3, 0]));
        check_malformed(&proc_listen(3, 0, 0, 1));
    }

    #[test]
    fn other_lengths_are_malformed() {
        let long = proc_listen(1, bits::SID, 0, 0);

        for len in (0..long.len()).filter(|len| ![4, 8].contains(len)) {
            check_malformed(&long[..len]);
        }
    }
}
