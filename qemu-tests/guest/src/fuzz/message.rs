// SPDX-License-Identifier: GPL-2.0
//! Messages to the connector, well-formed or not in any of their parts, and what the kernel has to
//! make of them.

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{
    BATCH, CN_PROC, ConnectorHeader, Event, IGNORE, LISTEN, NLMSG_DONE, NLMSG_EVENT, NetlinkHeader,
    Received, RequestHeader, mask, proc_listen,
};

const NETLINK_HEADER: usize = size_of::<NetlinkHeader>();
const HEADERS: usize = size_of::<RequestHeader>();

/// `CONNECTOR_MAX_MSG_SIZE`: the bytes that may follow netlink's header.
const LARGEST: usize = 16384;

/// The bytes of them that may follow the connector's header.
const LARGEST_DATA: usize = LARGEST + NETLINK_HEADER - HEADERS;

/// The bits of a mask that are looked at.
const KNOWN: u32 = mask::ALL | mask::SESSION_END;

/// The flags that there are.
const FLAGS: u32 = BATCH;

/// Bytes of a `struct proc_listen`, which may be followed by others.
const PROC_LISTEN: usize = 24;

/// Bytes of its fields that mean something: `op`, `mask` and `flags`. The others have to be 0.
const MEANT: usize = 12;

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

/// One message, and what is behind it in its datagram.
#[derive(Clone, Debug)]
pub struct Message {
    netlink: NetlinkHeader,
    connector: ConnectorHeader,
    data: Vec<u8>,
    end: End,
}

#[derive(Clone, Debug)]
enum End {
    Whole,
    /// Of so many bytes, fewer than it should have.
    Cut(usize),
    FollowedBy(Box<Message>),
    FollowedByBytes(Vec<u8>),
}

impl<'a> Arbitrary<'a> for Message {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let data = data(u)?;
        let length = HEADERS + data.len();
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
            length: near(u, data.len())? as u16,
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

/// Usually what is right, sometimes anything.
fn mostly<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>, right: T) -> Result<T> {
    if u.ratio(1, 24)? {
        u.arbitrary()
    } else {
        Ok(right)
    }
}

/// Usually the right length, sometimes a little less or more, or one of the [`EDGES`], or any.
fn near(u: &mut Unstructured<'_>, right: usize) -> Result<u32> {
    Ok(match u.int_in_range(0..=31)? {
        0 => (right as u32).wrapping_add_signed(u.int_in_range(-20..=20)?),
        1 => *u.choose(&EDGES)?,
        2 => u.arbitrary()?,
        _ => right as u32,
    })
}

/// A number that the kernel hands back, one more or not.
fn number(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.int_in_range(0..=7)? {
        0 => u32::MAX,
        1 => 0,
        _ => u.arbitrary()?,
    })
}

/// Usually an operation in one of its three forms; otherwise one of a wrong length, or any bytes.
fn data(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (op, mask) = (operation(u)?, events(u)?);
    let request = [op, mask];
    let request = request.as_bytes();
    Ok(match u.int_in_range(0..=15)? {
        0..=3 => request.to_vec(),
        4..=8 => {
            let more = match u.int_in_range(0..=2)? {
                0 => u.int_in_range(1..=64)?,
                _ => 0,
            };
            with_flags(u, op, mask, PROC_LISTEN + more)?
        }
        9..=10 => request[..4].to_vec(),
        11 => {
            let length = u.int_in_range(0..=40)?;
            with_flags(u, op, mask, length)?
        }
        12 => [request, u.bytes(32.min(u.len()))?].concat()[..u.int_in_range(0..=40)?].to_vec(),
        13..=14 => {
            let length = u.int_in_range(0..=64)?;
            u.bytes(length.min(u.len()))?.to_vec()
        }
        _ => {
            let length = match u.int_in_range(0..=3)? {
                0 => u.int_in_range(0..=LARGEST + 4096)?,
                _ => LARGEST_DATA + u.int_in_range(0..=4)? - 2,
            };
            match u.arbitrary()? {
                true => with_flags(u, op, mask, length)?,
                false => request.iter().copied().cycle().take(length).collect(),
            }
        }
    })
}

/// A `struct proc_listen`, cut or followed by zeros so that it has this length. Sometimes a bit is
/// set behind the flags, where all has to be 0: anywhere, or in the last byte.
fn with_flags(u: &mut Unstructured<'_>, op: u32, mask: u32, length: usize) -> Result<Vec<u8>> {
    let mut data = proc_listen(op, mask, flags(u)?).as_bytes().to_vec();
    data.resize(length, 0);
    if length > MEANT && u.ratio(1, 4)? {
        let last = length - 1;
        let at = match u.arbitrary()? {
            true => last,
            false => u.int_in_range(MEANT..=last)?,
        };
        data[at] |= 1_u8 << u.int_in_range(0..=7_u8)?;
    }
    Ok(data)
}

/// Usually flags that there are; sometimes with any other one, or any bits.
fn flags(u: &mut Unstructured<'_>) -> Result<u32> {
    let known = *u.choose(&[0, BATCH, BATCH, BATCH])?;
    Ok(match u.int_in_range(0..=7)? {
        0 => known | 1_u32 << u.int_in_range(0..=31_u8)?,
        1 => u.arbitrary()?,
        _ => known,
    })
}

/// Rarely one that changes who listens: that waits for a grace period.
fn operation(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.int_in_range(0..=31)? {
        0 => LISTEN,
        1..=8 => IGNORE,
        9..=20 => *u.choose(&[0, 3, 0x100, 0x101, 0x0100_0000, 0x8000_0001, u32::MAX])?,
        _ => u.arbitrary()?,
    })
}

fn events(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.choose(&mask::NAMES)?.1,
        1 => u.choose(&mask::NAMES)?.1 | u.choose(&mask::NAMES)?.1,
        2 => *u.choose(&[0, mask::ALL, u32::MAX, !KNOWN])?,
        _ => u.arbitrary()?,
    })
}

impl Message {
    /// A request as it should be.
    pub fn request(words: &[u32], seq: u32, ack: u32) -> Self {
        let data = words.as_bytes().to_vec();
        Self {
            netlink: NetlinkHeader {
                length: (HEADERS + data.len()) as u32,
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
                length: data.len() as u16,
                flags: 0,
            },
            data,
            end: End::Whole,
        }
    }

    /// The same message, its answer to be known by another number.
    pub fn numbered(mut self, seq: u32) -> Self {
        self.connector.seq = seq;
        self
    }

    /// The datagram to send.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [
            self.netlink.as_bytes(),
            self.connector.as_bytes(),
            &self.data,
        ]
        .concat();
        match &self.end {
            End::Whole => {}
            End::Cut(length) => bytes.truncate(*length),
            End::FollowedBy(message) => bytes.extend(message.bytes()),
            End::FollowedByBytes(more) => bytes.extend(more),
        }
        bytes
    }
}

/// What has to become of a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// The kernel does not take it.
    Refused(Errno),
    /// It is no message for process events, and nobody answers.
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
    /// What it asks for, if it makes sense.
    pub command: Option<Command>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// Some events.
    Listen(Listen),
    /// No events.
    Ignore,
}

/// What a listener asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listen {
    /// These events, at least one.
    pub mask: u32,
    /// In this form, `PROC_CN_LISTEN_*`.
    pub flags: u32,
}

impl Listen {
    /// Whether it asks for an event, and for the type of message that tells it.
    pub fn wants(&self, received: &Received) -> bool {
        let failed = matches!(received.event, Event::Exit { code, .. } if code != 0);
        let bits = received.event.bit() | if failed { mask::NONZERO_EXIT } else { 0 };
        let kind = match self.flags & BATCH {
            0 => NLMSG_DONE,
            _ => NLMSG_EVENT,
        };
        self.mask & bits != 0 && received.message.netlink.kind == kind
    }
}

impl Request {
    /// `err` in its answer.
    pub fn error(&self) -> u32 {
        match self.command {
            Some(_) => 0,
            None => Errno::EINVAL as u32,
        }
    }
}

impl Fate {
    /// What has to become of these bytes, as the kernel's headers and the contract say.
    pub fn of(datagram: &[u8]) -> Self {
        if datagram.is_empty() {
            return Self::Refused(Errno::ENODATA);
        }
        Self::request(datagram).map_or(Self::Unanswered, Self::Answered)
    }

    fn request(datagram: &[u8]) -> Option<Request> {
        let (netlink, rest) = NetlinkHeader::read_from_prefix(datagram).ok()?;
        let (connector, data) = ConnectorHeader::read_from_prefix(rest).ok()?;
        let told = netlink.length as usize;
        let fits = told <= datagram.len()
            && (HEADERS..=NETLINK_HEADER + LARGEST).contains(&told)
            && HEADERS + usize::from(connector.length) <= told;
        let is_ours = (connector.idx, connector.val) == (CN_PROC, CN_PROC);
        let data = data.get(..usize::from(connector.length))?;
        (fits && is_ours).then(|| Request {
            seq: connector.seq,
            ack: connector.ack,
            command: Command::of(data),
        })
    }
}

impl Command {
    fn of(data: &[u8]) -> Option<Self> {
        // What a form has no field for is 0.
        let mut fields = data.to_vec();
        match data.len() {
            4 | 8 => fields.resize(PROC_LISTEN, 0),
            PROC_LISTEN.. => {}
            _ => return None,
        }
        let ([op, mask, flags], others) = <[u32; 3]>::read_from_prefix(&fields).ok()?;
        if flags & !FLAGS != 0 || others.iter().any(|byte| *byte != 0) {
            return None;
        }
        let mask = match mask & KNOWN {
            0 => mask::ALL,
            known => known,
        };
        match op {
            LISTEN => Some(Self::Listen(Listen { mask, flags })),
            IGNORE => Some(Self::Ignore),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MESSAGE_SIZE, Task};

    const SEQ: u32 = 7;
    const ACK: u32 = 9;

    fn fate(words: &[u32], change: impl FnOnce(&mut Message)) -> Fate {
        let mut message = Message::request(words, SEQ, ACK);
        change(&mut message);
        Fate::of(&message.bytes())
    }

    fn answered(command: Option<Command>) -> Fate {
        Fate::Answered(Request {
            seq: SEQ,
            ack: ACK,
            command,
        })
    }

    fn listens(mask: u32, flags: u32) -> Fate {
        answered(Some(Command::Listen(Listen { mask, flags })))
    }

    #[test]
    fn what_is_right_is_answered() {
        let all = listens(mask::ALL, 0);
        assert_eq!(fate(&[LISTEN], |_| {}), all);
        assert_eq!(fate(&[LISTEN, !KNOWN], |_| {}), all);
        let sid = listens(mask::SID, 0);
        assert_eq!(fate(&[LISTEN, mask::SID | 8], |_| {}), sid);
        assert_eq!(
            fate(&[IGNORE, mask::SID], |_| {}),
            answered(Some(Command::Ignore))
        );
        assert_eq!(fate(&[3], |_| {}), answered(None));
        assert_eq!(fate(&[], |_| {}), answered(None));
    }

    #[test]
    fn the_third_form_has_flags() {
        let third = |op, mask, flags| fate(&proc_listen(op, mask, flags), |_| {});
        assert_eq!(third(LISTEN, mask::SID, 0), listens(mask::SID, 0));
        assert_eq!(third(LISTEN, mask::SID, BATCH), listens(mask::SID, BATCH));
        assert_eq!(third(LISTEN, !KNOWN, BATCH), listens(mask::ALL, BATCH));
        assert_eq!(third(IGNORE, 0, BATCH), answered(Some(Command::Ignore)));
        assert_eq!(third(3, 0, 0), answered(None));
        for flag in (0..32).map(|bit| 1 << bit).filter(|flag| *flag != BATCH) {
            for op in [LISTEN, IGNORE] {
                assert_eq!(third(op, mask::SID, flag), answered(None));
                assert_eq!(third(op, mask::SID, flag | BATCH), answered(None));
            }
        }
    }

    #[test]
    fn what_has_no_meaning_has_to_be_0() {
        for words in 6..10 {
            let mut request = proc_listen(LISTEN, mask::SID, BATCH).to_vec();
            request.resize(words, 0);
            assert_eq!(fate(&request, |_| {}), listens(mask::SID, BATCH));
            for at in 3..words {
                let mut wrong = request.clone();
                wrong[at] = 1 << 31;
                assert_eq!(fate(&wrong, |_| {}), answered(None), "word {at}");
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
            let command = mask.map(|mask| Command::Listen(Listen { mask, flags: 0 }));
            assert_eq!(Command::of(&data), command, "{length} bytes");
        }
    }

    #[test]
    fn the_longest_request_fills_the_largest_message() {
        let mut request = proc_listen(LISTEN, mask::SID, BATCH).to_vec();
        request.resize(LARGEST_DATA / 4, 0);
        assert_eq!(fate(&request, |_| {}), listens(mask::SID, BATCH));
        request.push(0);
        assert_eq!(fate(&request, |_| {}), Fate::Unanswered);
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
            assert_eq!(fate(&[LISTEN], change), Fate::Unanswered, "case {index}");
        }
        let nothing = fate(&[LISTEN], |message| message.end = End::Cut(0));
        assert_eq!(nothing, Fate::Refused(Errno::ENODATA));
    }

    #[test]
    fn only_the_first_message_counts() {
        let second = Message::request(&[IGNORE], 1, 1);
        let first = fate(&[LISTEN], |message| {
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
            counts[match Fate::of(&message.bytes()) {
                Fate::Refused(_) => 0,
                Fate::Unanswered => 1,
                Fate::Answered(_) => 2,
            }] += 1;
        }
        assert!(counts[0] > 5, "{counts:?}");
        assert!(counts[1] > 1_000 && counts[2] > 5_000, "{counts:?}");
    }

    #[test]
    fn the_third_form_is_often_right_and_often_wrong() {
        let (mut listens, mut batches, mut ignores, mut wrong, mut large) = (0, 0, 0, 0, 0);
        for message in any_messages(20_000) {
            large += usize::from(message.data.len() > 1_000);
            let Fate::Answered(request) = Fate::of(&message.bytes()) else {
                continue;
            };
            let is_third = message.data.len() >= PROC_LISTEN;
            let mut ops = [LISTEN, IGNORE].iter();
            let has_op = ops.any(|op| message.data.starts_with(op.as_bytes()));
            match request.command {
                Some(Command::Listen(listen)) => {
                    listens += 1;
                    batches += usize::from(listen.flags == BATCH);
                }
                Some(Command::Ignore) => ignores += usize::from(is_third),
                None => wrong += usize::from(is_third && has_op),
            }
        }
        let counts = [listens, batches, ignores, wrong, large];
        assert!(batches > 20 && ignores > 200 && wrong > 200, "{counts:?}");
        // They are dear.
        assert!(listens < 400 && large < 1_500, "{counts:?}");
    }

    #[test]
    fn an_event_is_wanted_in_the_form_that_was_asked_for() {
        let exit = |code, kind| {
            let (task, parent) = (Task::leader(1), Task::NONE);
            let event = Event::Exit {
                task,
                code,
                signal: 0,
                parent,
            };
            let mut message = [0; MESSAGE_SIZE];
            message[4..6].copy_from_slice(&u16::to_ne_bytes(kind));
            let mut received = Received::decode(&message, (0, 1)).unwrap();
            received.event = event;
            received
        };
        for (flags, right, wrong) in [
            (0, NLMSG_DONE, NLMSG_EVENT),
            (BATCH, NLMSG_EVENT, NLMSG_DONE),
        ] {
            let wants = |mask, code, kind| Listen { mask, flags }.wants(&exit(code, kind));
            assert!(wants(mask::EXIT, 0, right) && !wants(mask::EXIT, 0, wrong));
            assert!(!wants(mask::FORK, 0, right));
            assert!(wants(mask::NONZERO_EXIT, 1, right) && !wants(mask::NONZERO_EXIT, 0, right));
        }
    }
}
