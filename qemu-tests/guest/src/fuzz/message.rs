// SPDX-License-Identifier: GPL-2.0
//! Messages to the connector, well-formed or not in any of their parts, and what the kernel has to
//! make of them.

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{
    CN_PROC, ConnectorHeader, IGNORE, LISTEN, NLMSG_DONE, NetlinkHeader, RequestHeader, mask,
};

const NETLINK_HEADER: usize = size_of::<NetlinkHeader>();
const HEADERS: usize = size_of::<RequestHeader>();

/// `CONNECTOR_MAX_MSG_SIZE`: the bytes that may follow netlink's header.
const LARGEST: usize = 16384;

/// The bits of a mask that are looked at.
const KNOWN: u32 = mask::ALL | mask::SESSION_END;

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

/// Usually an operation in one of its two forms; otherwise one of a wrong length, or any bytes.
fn data(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let request = [operation(u)?, events(u)?];
    let request = request.as_bytes();
    Ok(match u.int_in_range(0..=15)? {
        0..=6 => request.to_vec(),
        7..=10 => request[..4].to_vec(),
        11..=12 => {
            [request, u.bytes(32.min(u.len()))?].concat()[..u.int_in_range(0..=40)?].to_vec()
        }
        13..=14 => {
            let length = u.int_in_range(0..=64)?;
            u.bytes(length.min(u.len()))?.to_vec()
        }
        _ => {
            let length = match u.int_in_range(0..=3)? {
                0 => u.int_in_range(0..=LARGEST + 4096)?,
                _ => LARGEST - HEADERS + NETLINK_HEADER + u.int_in_range(0..=4)? - 2,
            };
            request.iter().copied().cycle().take(length).collect()
        }
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
    /// These events, at least one.
    Listen(u32),
    /// No events.
    Ignore,
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
        let words: Vec<u32> = data
            .chunks(4)
            .map(|word| Some(u32::from_ne_bytes(word.try_into().ok()?)))
            .collect::<Option<_>>()?;
        let (op, bits) = match *words {
            [op] => (op, mask::ALL),
            [op, bits] => (op, bits),
            _ => return None,
        };
        match (op, bits & KNOWN) {
            (LISTEN, 0) => Some(Self::Listen(mask::ALL)),
            (LISTEN, known) => Some(Self::Listen(known)),
            (IGNORE, _) => Some(Self::Ignore),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_is_right_is_answered() {
        let all = answered(Some(Command::Listen(mask::ALL)));
        assert_eq!(fate(&[LISTEN], |_| {}), all);
        assert_eq!(fate(&[LISTEN, !KNOWN], |_| {}), all);
        let sid = answered(Some(Command::Listen(mask::SID)));
        assert_eq!(fate(&[LISTEN, mask::SID | 8], |_| {}), sid);
        assert_eq!(
            fate(&[IGNORE, mask::SID], |_| {}),
            answered(Some(Command::Ignore))
        );
        assert_eq!(fate(&[3], |_| {}), answered(None));
        assert_eq!(fate(&[LISTEN, 0, 0], |_| {}), answered(None));
        assert_eq!(fate(&[], |_| {}), answered(None));
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
        assert_eq!(first, answered(Some(Command::Listen(mask::ALL))));
    }

    #[test]
    fn many_are_answered_and_many_are_not() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(512).collect();
            let message: Message = Unstructured::new(&bytes).arbitrary().unwrap();
            counts[match Fate::of(&message.bytes()) {
                Fate::Refused(_) => 0,
                Fate::Unanswered => 1,
                Fate::Answered(_) => 2,
            }] += 1;
        }
        assert!(counts[0] > 5, "{counts:?}");
        assert!(counts[1] > 1_000 && counts[2] > 5_000, "{counts:?}");
    }
}
