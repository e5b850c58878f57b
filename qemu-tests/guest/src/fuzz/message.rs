// SPDX-License-Identifier: GPL-2.0
//! Messages to the connector, any part of which may be malformed, and how the kernel has to react to
//! them.

use std::mem::offset_of;

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::cgroups::Cgroups;
use crate::wire::{
    BATCH, CGROUP, CN_PROC, ConnectorHeader, Event, IDENTITY, IGNORE, LISTEN, NLMSG_DONE,
    NLMSG_EVENT, NetlinkHeader, PROCESSES, Received, RequestHeader, STATE, Task, mask,
    proc_listen_in,
};

const NETLINK_HEADER: usize = size_of::<NetlinkHeader>();
const HEADERS: usize = size_of::<RequestHeader>();

/// `CONNECTOR_MAX_MSG_SIZE`: the bytes that may follow netlink's header.
const LARGEST: usize = 16384;

/// How many of these bytes may follow the connector's header.
const LARGEST_DATA: usize = LARGEST + NETLINK_HEADER - HEADERS;

/// The bits of a mask that have a meaning.
const KNOWN: u32 = mask::EVERYTHING;

/// All known flags, in the lowest bits. Only a kernel with cgroups knows [`CGROUP`].
const FLAGS: u32 = PROCESSES | IDENTITY | BATCH | CGROUP;

/// The id of the root of all cgroups.
pub const ROOT: u64 = 1;

/// A `struct proc_listen`, which may be followed by others.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProcListen {
    op: u32,
    mask: u32,
    flags: u32,
    reserved: u32,
    cgroup_id: u64,
}

/// Its size in bytes.
const PROC_LISTEN: usize = size_of::<ProcListen>();

/// Bytes before the first field that has to be 0. All that follows has to be 0, too, except for
/// `cgroup_id` with [`CGROUP`].
const MEANT: usize = offset_of!(ProcListen, reserved);

/// Lengths at which a check may be off by one, or by a sign.
const EDGES: [u32; 12] = [
    0,
    1,
    15,
    16,
    17,
    35,
    36,
    37,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0010,
    u32::MAX,
];

/// One message, and what follows it in its datagram.
#[derive(Clone, Debug)]
pub struct Message {
    netlink: NetlinkHeader,
    connector: ConnectorHeader,
    data: Data,
    end: End,
}

/// What follows the headers.
#[derive(Clone, Debug)]
struct Data {
    bytes: Vec<u8>,
    /// Whether the cgroup that was made for the run is named. Its id differs between runs. So it is
    /// combined with the bytes of that field, by exclusive or, when the message is sent.
    names_made: bool,
}

#[derive(Clone, Debug)]
enum End {
    Whole,
    /// This many bytes, fewer than the message should have.
    Cut(usize),
    FollowedBy(Box<Message>),
    FollowedByBytes(Vec<u8>),
}

impl<'a> Arbitrary<'a> for Message {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let data = data(u)?;
        let length = HEADERS + data.bytes.len();
        let netlink = NetlinkHeader {
            length: near(u, length)?,
            kind: mostly(u, NLMSG_DONE)?,
            flags: u.arbitrary()?,
            seq: u.arbitrary()?,
            pid: u.arbitrary()?,
        };
        let connector = ConnectorHeader {
            idx: mostly(u, CN_PROC)?,
            val: mostly(u, CN_PROC)?,
            seq: number(u)?,
            ack: number(u)?,
            length: near(u, data.bytes.len())? as u16,
            flags: u.arbitrary()?,
        };
        let end = match u.int_in_range(0..=15)? {
            0 => End::Cut(u.int_in_range(0..=length - 1)?),
            1 => End::FollowedBy(u.arbitrary()?),
            2 => End::FollowedByBytes(u.bytes(64.min(u.len()))?.to_vec()),
            _ => End::Whole,
        };
        Ok(Self {
            netlink,
            connector,
            data,
            end,
        })
    }
}

/// Usually the right value, sometimes any value.
fn mostly<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>, right: T) -> Result<T> {
    if u.ratio(1, 24)? {
        u.arbitrary()
    } else {
        Ok(right)
    }
}

/// Usually the right length, sometimes a little less or more, or one of the [`EDGES`], or any
/// length.
fn near(u: &mut Unstructured<'_>, right: usize) -> Result<u32> {
    Ok(match u.int_in_range(0..=31)? {
        0 => (right as u32).wrapping_add_signed(u.int_in_range(-20..=20)?),
        1 => *u.choose(&EDGES)?,
        2 => u.arbitrary()?,
        _ => right as u32,
    })
}

/// A number that the kernel returns, as it is or incremented.
fn number(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.int_in_range(0..=7)? {
        0 => u32::MAX,
        1 => 0,
        _ => u.arbitrary()?,
    })
}

impl From<&[u8]> for Data {
    fn from(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            names_made: false,
        }
    }
}

impl Data {
    /// The bytes to send in a run for which the cgroup with this id was made.
    fn sent(&self, made: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if self.names_made {
            let field = bytes.iter_mut().skip(offset_of!(ProcListen, cgroup_id));
            let pairs = field.zip(made.to_ne_bytes());
            pairs.for_each(|(byte, id)| *byte ^= id);
        }
        bytes
    }
}

/// Usually an operation in one of its three forms; otherwise one of a wrong length, or any bytes.
fn data(u: &mut Unstructured<'_>) -> Result<Data> {
    let (op, mask) = (operation(u)?, events(u)?);
    let request = [op, mask];
    let request = request.as_bytes();
    Ok(match u.int_in_range(0..=15)? {
        0..=3 => request.into(),
        4..=8 => {
            let more = match u.int_in_range(0..=2)? {
                0 => u.int_in_range(1..=64)?,
                _ => 0,
            };
            with_flags(u, op, mask, PROC_LISTEN + more)?
        }
        9..=10 => request[..4].into(),
        11 => {
            let length = u.int_in_range(0..=40)?;
            with_flags(u, op, mask, length)?
        }
        12 => {
            let bytes = [request, u.bytes(32.min(u.len()))?].concat();
            bytes[..u.int_in_range(0..=40)?].into()
        }
        13..=14 => {
            let length = u.int_in_range(0..=64)?;
            u.bytes(length.min(u.len()))?.into()
        }
        _ => {
            let length = match u.int_in_range(0..=3)? {
                0 => u.int_in_range(0..=LARGEST + 4096)?,
                _ => LARGEST_DATA + u.int_in_range(0..=4)? - 2,
            };
            match u.arbitrary()? {
                true => with_flags(u, op, mask, length)?,
                false => request.repeat(length.div_ceil(request.len()))[..length].into(),
            }
        }
    })
}

/// A `struct proc_listen`, cut off or padded with zeros to this length. Sometimes a bit after the
/// flags is flipped, where most bits have to be 0: anywhere, or in the last byte.
fn with_flags(u: &mut Unstructured<'_>, op: u32, mask: u32, length: usize) -> Result<Data> {
    let flags = flags(u)?;
    let (id, names_made) = match flags & CGROUP {
        0 => (0, false),
        _ => cgroup(u)?,
    };
    let mut bytes = proc_listen_in(op, mask, flags, id).as_bytes().to_vec();
    bytes.resize(length, 0);
    if length > MEANT && u.ratio(1, 4)? {
        let last = length - 1;
        let at = match u.arbitrary()? {
            true => last,
            false => u.int_in_range(MEANT..=last)?,
        };
        bytes[at] ^= 1_u8 << u.int_in_range(0..=7_u8)?;
    }
    Ok(Data { bytes, names_made })
}

/// Usually known flags, sometimes with any other flag, or any bits.
fn flags(u: &mut Unstructured<'_>) -> Result<u32> {
    let known = u.int_in_range(0..=FLAGS)?;
    Ok(match u.int_in_range(0..=7)? {
        0 => known | 1_u32 << u.int_in_range(0..=31_u8)?,
        1 => u.arbitrary()?,
        _ => known,
    })
}

/// Usually the root of all cgroups, or the cgroup that was made for the run, whose id is added when the
/// message is sent. Sometimes an id that is nearly one of theirs, or any id.
fn cgroup(u: &mut Unstructured<'_>) -> Result<(u64, bool)> {
    Ok(match u.int_in_range(0..=15)? {
        0..=4 => (ROOT, false),
        5..=11 => (0, true),
        12 => (*u.choose(&[0, ROOT << 32, u64::MAX])?, false),
        13 => (u.arbitrary()?, false),
        14 => (ROOT ^ 1 << u.int_in_range(0..=63)?, false),
        _ => (1 << u.int_in_range(0..=63)?, true),
    })
}

/// Rarely an operation that adds or removes a listener, since that waits for a grace period.
fn operation(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.int_in_range(0..=31)? {
        0 => LISTEN,
        1..=6 => IGNORE,
        7..=8 => STATE,
        9..=20 => *u.choose(&[0, STATE, 0x100, 0x101, 0x0100_0000, 0x8000_0001, u32::MAX])?,
        _ => u.arbitrary()?,
    })
}

fn events(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.choose(&mask::NAMES)?.1,
        1 => u.choose(&mask::NAMES)?.1 | u.choose(&mask::NAMES)?.1,
        2 => *u.choose(&[0, mask::ALL, u32::MAX, !KNOWN])?,
        _ => u.arbitrary::<u32>()? & KNOWN,
    })
}

impl Message {
    /// A valid request for the state, in one of its forms.
    pub fn state(u: &mut Unstructured<'_>) -> Result<Self> {
        let words = proc_listen_in(
            STATE,
            events(u)? & KNOWN,
            u.int_in_range(0..=FLAGS & !CGROUP)?,
            0,
        );
        let words = match u.arbitrary()? {
            true => &words[..],
            false => &words[..1],
        };
        Ok(Self::request(words, number(u)?, number(u)?))
    }

    /// A request whose headers are right.
    pub fn request(words: &[u32], seq: u32, ack: u32) -> Self {
        let data = Data::from(words.as_bytes());
        Self {
            netlink: NetlinkHeader {
                length: (HEADERS + data.bytes.len()) as u32,
                kind: NLMSG_DONE,
                flags: 0,
                seq,
                pid: 0,
            },
            connector: ConnectorHeader {
                idx: CN_PROC,
                val: CN_PROC,
                seq,
                ack,
                length: data.bytes.len() as u16,
                flags: 0,
            },
            data,
            end: End::Whole,
        }
    }

    /// The same message with another number, which identifies its answer.
    pub fn numbered(mut self, seq: u32) -> Self {
        self.connector.seq = seq;
        self
    }

    /// The datagram to send in a run for which the cgroup with this id was made.
    pub fn bytes(&self, made: u64) -> Vec<u8> {
        let mut bytes = [
            self.netlink.as_bytes(),
            self.connector.as_bytes(),
            &self.data.sent(made),
        ]
        .concat();
        match &self.end {
            End::Whole => {}
            End::Cut(length) => bytes.truncate(*length),
            End::FollowedBy(message) => bytes.extend(message.bytes(made)),
            End::FollowedByBytes(more) => bytes.extend(more),
        }
        bytes
    }
}

/// How the kernel has to react to a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reaction {
    /// The kernel refuses it.
    Refused(Errno),
    /// It is no message for process events, and gets no answer.
    Unanswered,
    /// It is answered once.
    Answered(Request),
}

/// A message that is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// Its number.
    pub seq: u32,
    /// Its acknowledgement number.
    pub ack: u32,
    /// What it asks for, or the error if that is invalid or does not exist.
    pub command: std::result::Result<Command, Errno>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// Some events.
    Listen(Listen),
    /// No events.
    Ignore,
    /// The processes that exist.
    State,
}

/// What a listener asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listen {
    /// These events, at least one.
    pub mask: u32,
    /// In this form, `PROC_CN_LISTEN_*`.
    pub flags: u32,
    /// From this cgroup and those below it, with [`CGROUP`]. Otherwise 0.
    pub cgroup_id: u64,
}

impl Listen {
    /// The cgroup that it asks for, unless it asks for all.
    pub fn cgroup(&self) -> Option<u64> {
        (self.flags & CGROUP != 0).then_some(self.cgroup_id)
    }

    /// Whether it asks for an event, in any cgroup, and for the form of the event's message.
    pub fn wants(&self, received: &Received) -> bool {
        let failed = matches!(received.event, Event::Exit { code, .. } if code != 0);
        let bits = received.event.bit() | if failed { mask::NONZERO_EXIT } else { 0 };
        let kind = match self.flags & BATCH {
            0 => NLMSG_DONE,
            _ => NLMSG_EVENT,
        };
        let Task { pid, tgid } = received.event.subject();
        let is_left_out = self.flags & PROCESSES != 0
            && matches!(received.event.bit(), mask::FORK | mask::EXIT)
            && pid != tgid;
        self.mask & bits != 0
            && !is_left_out
            && received.message.netlink.kind == kind
            && received.identity.is_some() == (self.flags & IDENTITY != 0)
    }
}

impl Request {
    /// `err` in its answer.
    pub fn error(&self) -> u32 {
        self.command.err().map_or(0, |errno| errno as u32)
    }
}

impl Reaction {
    /// How the kernel has to react to these bytes by its headers and the contract, if these cgroups
    /// exist.
    pub fn of(datagram: &[u8], cgroups: &Cgroups) -> Self {
        if datagram.is_empty() {
            return Self::Refused(Errno::ENODATA);
        }
        Self::request(datagram, cgroups).map_or(Self::Unanswered, Self::Answered)
    }

    fn request(datagram: &[u8], cgroups: &Cgroups) -> Option<Request> {
        let (netlink, rest) = NetlinkHeader::read_from_prefix(datagram).ok()?;
        let (connector, data) = ConnectorHeader::read_from_prefix(rest).ok()?;
        let length = netlink.length as usize;
        let fits = length <= datagram.len()
            && (HEADERS..=NETLINK_HEADER + LARGEST).contains(&length)
            && HEADERS + usize::from(connector.length) <= length;
        let is_ours = (connector.idx, connector.val) == (CN_PROC, CN_PROC);
        let data = data.get(..usize::from(connector.length))?;
        (fits && is_ours).then(|| Request {
            seq: connector.seq,
            ack: connector.ack,
            command: Command::of(data, cgroups),
        })
    }
}

impl Command {
    fn of(data: &[u8], cgroups: &Cgroups) -> std::result::Result<Self, Errno> {
        // A field that a form does not have is 0.
        let mut fields = data.to_vec();
        match data.len() {
            4 | 8 => fields.resize(PROC_LISTEN, 0),
            PROC_LISTEN.. => {}
            _ => return Err(Errno::EINVAL),
        }
        let parts = ProcListen::read_from_prefix(&fields);
        let (fields, others) = parts.map_err(|_| Errno::EINVAL)?;
        let mask = match fields.mask & KNOWN {
            0 => mask::ALL,
            known => known,
        };
        let listen = Listen {
            mask,
            flags: fields.flags,
            cgroup_id: fields.cgroup_id,
        };
        let is_right = listen.flags & !cgroups.flags() == 0
            && (listen.cgroup_id == 0 || listen.cgroup().is_some())
            && fields.reserved == 0
            && (data.len() < PROC_LISTEN || fields.mask & !KNOWN == 0)
            && others.iter().all(|byte| *byte == 0);
        match fields.op {
            LISTEN | IGNORE | STATE if !is_right => Err(Errno::EINVAL),
            LISTEN if listen.cgroup().is_some_and(|id| !cgroups.has(id)) => Err(Errno::ENOENT),
            LISTEN => Ok(Self::Listen(listen)),
            IGNORE => Ok(Self::Ignore),
            // STATE was added with the third form, and needs no mask.
            STATE if data.len() != 8 => Ok(Self::State),
            _ => Err(Errno::EINVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::imagined;
    use super::*;
    use crate::wire::{IDENTITY_MESSAGE_SIZE, MESSAGE_SIZE, proc_listen};

    const SEQ: u32 = 7;
    const ACK: u32 = 9;

    /// The id of a cgroup.
    const MADE: u64 = 1234;

    /// The cgroups that exist.
    fn cgroups() -> Cgroups {
        imagined(&[("/", ROOT), ("/made", MADE)])
    }

    fn reaction(words: &[u32], change: impl FnOnce(&mut Message)) -> Reaction {
        let mut message = Message::request(words, SEQ, ACK);
        change(&mut message);
        Reaction::of(&message.bytes(MADE), &cgroups())
    }

    fn answered(command: std::result::Result<Command, Errno>) -> Reaction {
        Reaction::Answered(Request {
            seq: SEQ,
            ack: ACK,
            command,
        })
    }

    fn fails(errno: Errno) -> Reaction {
        answered(Err(errno))
    }

    const IGNORES: std::result::Result<Command, Errno> = Ok(Command::Ignore);
    const STATES: std::result::Result<Command, Errno> = Ok(Command::State);

    fn listens(mask: u32, flags: u32) -> Reaction {
        listens_in(mask, flags, 0)
    }

    fn listens_in(mask: u32, flags: u32, cgroup_id: u64) -> Reaction {
        answered(Ok(Command::Listen(Listen {
            mask,
            flags,
            cgroup_id,
        })))
    }

    #[test]
    fn what_is_right_is_answered() {
        let all = listens(mask::ALL, 0);
        assert_eq!(reaction(&[LISTEN], |_| {}), all);
        assert_eq!(reaction(&[LISTEN, !KNOWN], |_| {}), all);
        let sid = listens(mask::SID, 0);
        assert_eq!(reaction(&[LISTEN, mask::SID | 8], |_| {}), sid);
        assert_eq!(reaction(&[IGNORE, mask::SID], |_| {}), answered(IGNORES));
        assert_eq!(reaction(&[STATE], |_| {}), answered(STATES));
        assert_eq!(reaction(&[STATE, 0], |_| {}), fails(Errno::EINVAL));
        assert_eq!(reaction(&[4], |_| {}), fails(Errno::EINVAL));
        assert_eq!(reaction(&[], |_| {}), fails(Errno::EINVAL));
    }

    #[test]
    fn the_third_form_has_flags() {
        let third = |op, mask, flags| reaction(&proc_listen(op, mask, flags), |_| {});
        assert_eq!(third(LISTEN, mask::SID, 0), listens(mask::SID, 0));
        assert_eq!(third(LISTEN, mask::SID, BATCH), listens(mask::SID, BATCH));
        for unknown in [!KNOWN, mask::SID | 8, u32::MAX] {
            for op in [LISTEN, IGNORE, STATE] {
                assert_eq!(third(op, unknown, BATCH), fails(Errno::EINVAL));
            }
        }
        assert_eq!(third(IGNORE, 0, BATCH), answered(IGNORES));
        assert_eq!(third(STATE, mask::SID, BATCH), answered(STATES));
        assert_eq!(third(4, 0, 0), fails(Errno::EINVAL));
        for flag in (0..32).map(|bit| 1 << bit) {
            for flags in [flag, flag | BATCH] {
                let (listen, others) = match flag {
                    // There is no cgroup with the id 0.
                    CGROUP => (fails(Errno::ENOENT), [answered(IGNORES), answered(STATES)]),
                    _ if flag & FLAGS != 0 => {
                        let others = [answered(IGNORES), answered(STATES)];
                        (listens(mask::SID, flags), others)
                    }
                    _ => (
                        fails(Errno::EINVAL),
                        [IGNORE, STATE].map(|_| fails(Errno::EINVAL)),
                    ),
                };
                assert_eq!(third(LISTEN, mask::SID, flags), listen);
                let asked = [IGNORE, STATE].map(|op| third(op, mask::SID, flags));
                assert_eq!(asked, others);
            }
        }
    }

    #[test]
    fn a_cgroup_has_to_exist_for_a_listener() {
        let asked = |op, flags, id| reaction(&proc_listen_in(op, mask::SID, flags, id), |_| {});
        for flags in [CGROUP, FLAGS] {
            for id in [ROOT, MADE] {
                let listens = listens_in(mask::SID, flags, id);
                assert_eq!(asked(LISTEN, flags, id), listens);
            }
            for id in [0, 2, ROOT << 32, MADE | 1 << 32, u64::MAX] {
                assert_eq!(asked(LISTEN, flags, id), fails(Errno::ENOENT), "{id}");
                assert_eq!(asked(IGNORE, flags, id), answered(IGNORES), "{id}");
                assert_eq!(asked(STATE, flags, id), answered(STATES), "{id}");
                assert_eq!(asked(4, flags, id), fails(Errno::EINVAL), "{id}");
            }
        }
        for op in [LISTEN, IGNORE, STATE] {
            assert_eq!(asked(op, FLAGS & !CGROUP, ROOT), fails(Errno::EINVAL));
            for id in [0, ROOT] {
                let request = proc_listen_in(op, mask::SID, CGROUP, id);
                let without = Command::of(request.as_bytes(), &imagined(&[]));
                assert_eq!(without, Err(Errno::EINVAL));
            }
        }
    }

    #[test]
    fn the_cgroup_that_was_made_is_named_when_the_message_is_sent() {
        for (bits, id) in [(0, MADE), (1 << 7, MADE ^ 1 << 7)] {
            let words = proc_listen_in(IGNORE, 0, CGROUP, bits);
            let mut message = Message::request(&words, SEQ, ACK);
            message.data.names_made = true;
            let right = proc_listen_in(IGNORE, 0, CGROUP, id);
            assert_eq!(message.bytes(MADE)[HEADERS..], *right.as_bytes());
            // However much of the id is left.
            for length in (0..right.as_bytes().len()).rev() {
                message.data.bytes.truncate(length);
                let bytes = message.bytes(MADE);
                assert_eq!(bytes[HEADERS..], right.as_bytes()[..length]);
            }
        }
    }

    #[test]
    fn what_has_no_meaning_has_to_be_0() {
        for words in 6..10 {
            let mut request = proc_listen(LISTEN, mask::SID, BATCH).to_vec();
            request.resize(words, 0);
            assert_eq!(reaction(&request, |_| {}), listens(mask::SID, BATCH));
            for at in 3..words {
                let mut wrong = request.clone();
                wrong[at] = 1 << 31;
                assert_eq!(reaction(&wrong, |_| {}), fails(Errno::EINVAL), "word {at}");
            }
        }
    }

    #[test]
    fn a_request_has_a_length_of_one_form() {
        let request = proc_listen(LISTEN, mask::SID, 0);
        for length in 0..=40 {
            let mut data = request.as_bytes().to_vec();
            data.resize(length, 0);
            let mask = match length {
                4 => Some(mask::ALL),
                8 | 24.. => Some(mask::SID),
                _ => None,
            };
            let listens = |mask| {
                Command::Listen(Listen {
                    mask,
                    flags: 0,
                    cgroup_id: 0,
                })
            };
            let command = mask.map(listens).ok_or(Errno::EINVAL);
            assert_eq!(Command::of(&data, &cgroups()), command, "{length} bytes");
        }
    }

    #[test]
    fn the_state_has_no_second_form() {
        let request = proc_listen(STATE, mask::SID, FLAGS);
        for length in 0..=40 {
            let mut data = request.as_bytes().to_vec();
            data.resize(length, 0);
            let command = match length {
                4 | 24.. => STATES,
                _ => Err(Errno::EINVAL),
            };
            assert_eq!(Command::of(&data, &cgroups()), command, "{length} bytes");
        }
    }

    #[test]
    fn a_right_request_for_the_state_is_right() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut forms = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64).collect();
            let message = Message::state(&mut Unstructured::new(&bytes)).unwrap();
            let Reaction::Answered(request) = Reaction::of(&message.bytes(MADE), &cgroups()) else {
                panic!("{message:?} is not answered");
            };
            assert_eq!(request.command, STATES, "{message:?}");
            forms.insert(message.data.bytes.len());
        }
        assert_eq!(Vec::from_iter(forms), [4, 24]);
    }

    #[test]
    fn the_longest_request_fills_the_largest_message() {
        let mut request = proc_listen(LISTEN, mask::SID, BATCH).to_vec();
        request.resize(LARGEST_DATA / 4, 0);
        assert_eq!(reaction(&request, |_| {}), listens(mask::SID, BATCH));
        request.push(0);
        assert_eq!(reaction(&request, |_| {}), Reaction::Unanswered);
    }

    #[test]
    fn what_does_not_fit_is_not_answered() {
        let wrong: [fn(&mut Message); 8] = [
            |message| message.netlink.length += 1,
            |message| message.netlink.length -= 1,
            |message| message.netlink.length = u32::MAX,
            |message| message.connector.length += 1,
            |message| message.connector.idx = 2,
            |message| message.connector.val = 0,
            |message| message.end = End::Cut(HEADERS),
            |message| message.end = End::Cut(3),
        ];
        for (index, change) in wrong.into_iter().enumerate() {
            assert_eq!(
                reaction(&[LISTEN], change),
                Reaction::Unanswered,
                "case {index}"
            );
        }
        let nothing = reaction(&[LISTEN], |message| message.end = End::Cut(0));
        assert_eq!(nothing, Reaction::Refused(Errno::ENODATA));
    }

    #[test]
    fn only_the_first_message_counts() {
        let second = Message::request(&[IGNORE], 1, 1);
        let first = reaction(&[LISTEN], |message| {
            message.end = End::FollowedBy(second.into());
        });
        assert_eq!(first, listens(mask::ALL, 0));
    }

    fn any_messages(count: usize) -> impl Iterator<Item = Message> {
        let mut random = fastrand::Rng::with_seed(1);
        std::iter::repeat_with(move || {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(512).collect();
            Unstructured::new(&bytes).arbitrary().unwrap()
        })
        .take(count)
    }

    #[test]
    fn many_are_answered_and_many_are_not() {
        let mut counts = [0; 3];
        for message in any_messages(10_000) {
            counts[match Reaction::of(&message.bytes(MADE), &cgroups()) {
                Reaction::Refused(_) => 0,
                Reaction::Unanswered => 1,
                Reaction::Answered(_) => 2,
            }] += 1;
        }
        assert!(counts[0] > 5, "{counts:?}");
        assert!(counts[1] > 1_000 && counts[2] > 5_000, "{counts:?}");
    }

    #[test]
    fn the_third_form_is_often_right_and_often_wrong() {
        let (mut listens, mut ignores, mut states) = (0, 0, 0);
        let (mut wrong, mut missing, mut large) = (0, 0, 0);
        let (mut batches, mut identities, mut processes) = (0, 0, 0);
        let (mut roots, mut made) = (0, 0);
        for message in any_messages(20_000) {
            large += usize::from(message.data.bytes.len() > 1_000);
            let Reaction::Answered(request) = Reaction::of(&message.bytes(MADE), &cgroups()) else {
                continue;
            };
            let is_third = message.data.bytes.len() >= PROC_LISTEN;
            let mut ops = [LISTEN, IGNORE, STATE].iter();
            let has_op = ops.any(|op| message.data.bytes.starts_with(op.as_bytes()));
            match request.command {
                Ok(Command::Listen(listen)) => {
                    listens += 1;
                    batches += usize::from(listen.flags & BATCH != 0);
                    identities += usize::from(listen.flags & IDENTITY != 0);
                    processes += usize::from(listen.flags & PROCESSES != 0);
                    roots += usize::from(listen.cgroup() == Some(ROOT));
                    made += usize::from(listen.cgroup() == Some(MADE));
                }
                Ok(Command::Ignore) => ignores += usize::from(is_third),
                Ok(Command::State) => states += 1,
                Err(Errno::ENOENT) => missing += 1,
                Err(_) => wrong += usize::from(is_third && has_op),
            }
        }
        let flags = [batches, identities, processes, roots, made];
        let counts = [listens, ignores, states, wrong, missing, large];
        assert!(flags.iter().all(|count| *count > 10), "{flags:?}");
        assert!(missing > 5, "{counts:?}");
        assert!(ignores > 200 && wrong > 200 && states > 400, "{counts:?}");
        // These are expensive.
        assert!(listens < 400 && large < 1_500, "{counts:?}");
    }

    /// A message of this type about the end of a thread of process 1, with an identity or without.
    fn exit(pid: i32, code: u32, kind: u16, has_identity: bool) -> Received {
        let size = match has_identity {
            true => IDENTITY_MESSAGE_SIZE,
            false => MESSAGE_SIZE,
        };
        let words = [mask::EXIT, 0, 0, 0, pid as u32, 1, code];
        let mut message = vec![0; size];
        message[..4].copy_from_slice(&(size as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[32..34].copy_from_slice(&((size - HEADERS) as u16).to_ne_bytes());
        message[HEADERS..HEADERS + 28].copy_from_slice(words.as_bytes());
        Received::decode(&message, (0, 1)).unwrap()
    }

    fn wants(mask: u32, flags: u32, received: &Received) -> bool {
        let cgroup_id = 0;
        Listen {
            mask,
            flags,
            cgroup_id,
        }
        .wants(received)
    }

    #[test]
    fn an_event_is_wanted_in_the_form_that_was_asked_for() {
        for (flags, right, wrong) in [
            (0, NLMSG_DONE, NLMSG_EVENT),
            (BATCH, NLMSG_EVENT, NLMSG_DONE),
        ] {
            let wants = |mask, code, kind| wants(mask, flags, &exit(1, code, kind, false));
            assert!(wants(mask::EXIT, 0, right) && !wants(mask::EXIT, 0, wrong));
            assert!(!wants(mask::FORK, 0, right));
            assert!(wants(mask::NONZERO_EXIT, 1, right) && !wants(mask::NONZERO_EXIT, 0, right));
        }
        for has_identity in [false, true] {
            let event = exit(1, 0, NLMSG_DONE, has_identity);
            assert_eq!(wants(mask::EXIT, IDENTITY, &event), has_identity);
            assert_eq!(wants(mask::EXIT, 0, &event), !has_identity);
        }
    }

    #[test]
    fn the_end_of_a_thread_is_not_wanted_of_processes() {
        for (pid, flags, expected) in [
            (1, PROCESSES, true),
            (2, PROCESSES, false),
            (1, 0, true),
            (2, 0, true),
        ] {
            let event = exit(pid, 1, NLMSG_DONE, false);
            assert_eq!(wants(mask::EXIT, flags, &event), expected);
            assert_eq!(wants(mask::NONZERO_EXIT, flags, &event), expected);
        }
    }
}
