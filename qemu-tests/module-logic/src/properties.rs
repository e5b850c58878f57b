// SPDX-License-Identifier: GPL-2.0

//! What has to hold whatever the input, against models that were written for nothing else.

use crate::control::{Command, Flags, Listen, Malformed};
use crate::mask::{bits, Mask};
use crate::wire::{Event, Ids, Message, NO_CPU};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// What is in front of each event in C, field by field.
mod layout {
    use zerocopy_derive::FromBytes;

    /// `struct nlmsghdr`, `struct cn_msg`, and `struct proc_event` up to its union.
    #[derive(Debug, FromBytes, PartialEq)]
    #[repr(C)]
    pub(super) struct Headers {
        pub(super) nlmsg_len: u32,
        pub(super) nlmsg_type: u16,
        pub(super) nlmsg_flags: u16,
        pub(super) nlmsg_seq: u32,
        pub(super) nlmsg_pid: u32,
        pub(super) idx: u32,
        pub(super) val: u32,
        pub(super) seq: u32,
        pub(super) ack: u32,
        pub(super) len: u16,
        pub(super) flags: u16,
        pub(super) what: u32,
        pub(super) cpu: u32,
        pub(super) timestamp_low: u32,
        pub(super) timestamp_high: u32,
    }
}

/// Bytes before the union.
const HEADERS: usize = size_of::<layout::Headers>();

fn ids() -> impl Strategy<Value = Ids> {
    any::<(i32, i32)>().prop_map(|(pid, tgid)| Ids { pid, tgid })
}

/// An event with the words that have to stand in the union, from its start; the rest is zero.
fn event() -> impl Strategy<Value = (Event, u32, Vec<u32>)> {
    let words = |numbers: &[i32]| -> Vec<u32> { numbers.iter().map(|word| *word as u32).collect() };

    prop_oneof![
        (ids(), ids()).prop_map(move |(parent, child)| (
            Event::Fork { parent, child },
            0x0000_0001,
            words(&[parent.pid, parent.tgid, child.pid, child.tgid]),
        )),
        ids().prop_map(move |process| (
            Event::Exec { process },
            0x0000_0002,
            words(&[process.pid, process.tgid]),
        )),
        (ids(), any::<u32>(), any::<u32>()).prop_map(|(process, ruid, euid)| (
            Event::Uid {
                process,
                ruid,
                euid
            },
            0x0000_0004,
            vec![process.pid as u32, process.tgid as u32, ruid, euid],
        )),
        (ids(), any::<u32>(), any::<u32>()).prop_map(|(process, rgid, egid)| (
            Event::Gid {
                process,
                rgid,
                egid
            },
            0x0000_0040,
            vec![process.pid as u32, process.tgid as u32, rgid, egid],
        )),
        (ids(), ids(), any::<i32>(), any::<i32>()).prop_map(
            move |(process, parent, session, process_group)| (
                Event::Sid {
                    process,
                    parent,
                    session,
                    process_group
                },
                0x0000_0080,
                words(&[
                    process.pid,
                    process.tgid,
                    parent.pid,
                    parent.tgid,
                    session,
                    process_group,
                ]),
            )
        ),
        (ids(), ids()).prop_map(move |(process, tracer)| (
            Event::Ptrace { process, tracer },
            0x0000_0100,
            words(&[process.pid, process.tgid, tracer.pid, tracer.tgid]),
        )),
        (ids(), any::<[u8; 16]>()).prop_map(|(process, comm)| (
            Event::Comm { process, comm },
            0x0000_0200,
            [process.pid as u32, process.tgid as u32]
                .into_iter()
                .chain(
                    comm.chunks(4)
                        .map(|word| u32::read_from_bytes(word).unwrap())
                )
                .collect(),
        )),
        (ids(), ids()).prop_map(move |(process, parent)| (
            Event::Coredump { process, parent },
            0x4000_0000,
            words(&[process.pid, process.tgid, parent.pid, parent.tgid]),
        )),
        (ids(), any::<u32>(), any::<u32>(), ids()).prop_map(
            |(process, exit_code, exit_signal, parent)| (
                Event::Exit {
                    process,
                    exit_code,
                    exit_signal,
                    parent
                },
                0x8000_0000,
                vec![
                    process.pid as u32,
                    process.tgid as u32,
                    exit_code,
                    exit_signal,
                    parent.pid as u32,
                    parent.tgid as u32,
                ],
            )
        ),
        (ids(), any::<u32>(), any::<u32>()).prop_map(|(process, exit_code, exit_signal)| (
            Event::SessionEnd {
                process,
                exit_code,
                exit_signal
            },
            0x0000_0400,
            vec![
                process.pid as u32,
                process.tgid as u32,
                exit_code,
                exit_signal
            ],
        )),
    ]
}

fn headers(kind: u16, seq: u32, ack: u32, what: u32, cpu: u32, time: u64) -> layout::Headers {
    let [low, high] = if cfg!(target_endian = "little") {
        [time as u32, (time >> 32) as u32]
    } else {
        [(time >> 32) as u32, time as u32]
    };

    layout::Headers {
        nlmsg_len: 76,
        nlmsg_type: kind,
        nlmsg_flags: 0,
        nlmsg_seq: seq,
        nlmsg_pid: 0,
        idx: 1,
        val: 1,
        seq,
        ack,
        len: 40,
        flags: 0,
        what,
        cpu,
        timestamp_low: low,
        timestamp_high: high,
    }
}

/// The bytes of a `struct proc_listen` up to the fields that have no meaning yet.
const MEANT: usize = 12;

/// `PROC_CN_LISTEN_BATCH`.
const BATCH: u32 = 4;

/// The words of a request with flags, which may be known or not: an operation, a mask and flags.
fn third_form() -> impl Strategy<Value = [u32; 3]> {
    let flags = prop_oneof![
        4 => prop_oneof![Just(0), Just(BATCH)],
        1 => (0..u32::BITS).prop_map(|bit| 1 << bit),
        1 => any::<u32>(),
    ];

    (0_u32..4, any::<u32>(), flags).prop_map(|(op, mask, flags)| [op, mask, flags])
}

/// A request in the third form, in so many bytes: zeros follow the flags.
fn padded(words: [u32; 3], length: usize) -> Vec<u8> {
    let mut data = words.as_bytes().to_vec();

    data.resize(length, 0);
    data
}

/// Data of a request: in any of the forms, or in none.
fn request() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..64),
        (0_u32..4, any::<u32>()).prop_map(|words| [words.0, words.1].as_bytes().to_vec()),
        (0_u32..4).prop_map(|word| word.as_bytes().to_vec()),
        (third_form(), 0_usize..100).prop_map(|(words, length)| padded(words, length)),
        (third_form(), vec(any::<u8>(), 0..64)).prop_map(|(words, mut data)| {
            data.splice(..0, words.as_bytes().iter().copied());
            data
        }),
    ]
}

/// What the data of a request ask for, if they are one.
fn understood(data: &[u8]) -> Option<Command> {
    let word = |at: usize| match data.get(at..at + 4) {
        Some(word) => u32::from_ne_bytes(word.try_into().unwrap()),
        None => 0,
    };
    let is_form = matches!(data.len(), 4 | 8 | 24..);
    let others_are_0 = data.iter().skip(MEANT).all(|byte| *byte == 0);
    let flags = match word(8) {
        0 => Flags::default(),
        BATCH => Flags::BATCH,
        _ => return None,
    };
    let listen = Listen {
        mask: Mask::requested(word(4)),
        flags,
    };

    match word(0) {
        1 if is_form && others_are_0 => Some(Command::Listen(listen)),
        2 if is_form && others_are_0 => Some(Command::Ignore),
        _ => None,
    }
}

/// How often a listener gets an event: it is found once for each kind that it asked for.
fn copies(mask: Mask, bit: u32, failed: bool) -> usize {
    let is_meant = bit != bits::EXIT || mask.has_exit(i32::from(failed));

    usize::from(mask.has(bit) && is_meant)
}

proptest! {
    /// Each byte of an event's message has its place, however often the message was used before.
    #[test]
    fn an_event_is_encoded_as_c_has_it(
        events in vec((event(), any::<bool>()), 1..4),
        cpu: u32,
        time: u64,
        seq: u32,
    ) {
        let mut message = Message::new(cpu, time);

        for ((event, what, words), batch) in events {
            let kind = if batch { 16 } else { 3 };
            message.tell(&event);
            message.number(seq);
            message.set_batch(batch);

            let bytes = message.as_bytes();
            prop_assert_eq!(bytes.len(), 76);
            let found = layout::Headers::read_from_bytes(&bytes[..HEADERS]).unwrap();
            prop_assert_eq!(found, headers(kind, seq, 0, what, cpu, time));
            let mut union = [0; 6];
            union[..words.len()].copy_from_slice(&words);
            prop_assert_eq!(&bytes[HEADERS..], union.as_bytes());
        }
    }

    /// An answer has the request's numbers, and nothing of an event.
    #[test]
    fn an_answer_is_encoded_as_c_has_it(seq: u32, ack: u32, time: u64, errno in 0_u32..4096) {
        let message = Message::acknowledge(seq, ack, NO_CPU, time, errno);

        let bytes = message.as_bytes();
        let found = layout::Headers::read_from_bytes(&bytes[..HEADERS]).unwrap();
        prop_assert_eq!(found, headers(3, seq, ack.wrapping_add(1), 0, u32::MAX, time));
        prop_assert_eq!(&bytes[HEADERS..HEADERS + 4], errno.as_bytes());
        prop_assert!(bytes[HEADERS + 8..].iter().all(|byte| *byte == 0));
    }

    /// Any bytes are one of the two commands, or none.
    #[test]
    fn a_request_is_understood_by_its_length_and_fields(data in request()) {
        prop_assert_eq!(Command::parse(&data), understood(&data).ok_or(Malformed));
    }

    /// The third form asks for what the second does, with its flags. Zeros behind it add nothing.
    #[test]
    fn zeros_ask_for_nothing(op in 1_u32..3, mask: u32, batch: bool, more in 0_usize..200) {
        let flags = if batch { Flags::BATCH } else { Flags::default() };
        let second = Command::parse([op, mask].as_bytes());
        let expected = match second {
            Ok(Command::Listen(Listen { mask, .. })) => Ok(Command::Listen(Listen { mask, flags })),
            other => other,
        };
        let third = padded([op, mask, u32::from(batch) * BATCH], 24 + more);

        prop_assert!(second.is_ok());
        prop_assert_eq!(Command::parse(&third), expected);
    }

    /// Each bit of the flags and behind them is refused, but for the one that is known.
    #[test]
    fn a_bit_without_a_meaning_is_refused(
        op in 1_u32..3,
        mask: u32,
        batch: bool,
        length in 24_usize..200,
        at: prop::sample::Index,
        bit in 0..u8::BITS,
    ) {
        let flags = u32::from(batch) * BATCH;
        let right = padded([op, mask, flags], length);
        let mut wrong = right.clone();
        wrong[8 + at.index(length - 8)] ^= 1 << bit;
        let changed = u32::from_ne_bytes(wrong[8..12].try_into().unwrap()) ^ flags;
        prop_assume!(changed != BATCH);

        prop_assert!(Command::parse(&right).is_ok());
        prop_assert_eq!(Command::parse(&wrong), Err(Malformed));
    }

    /// The listing tells the flags by the bits that were asked for.
    #[test]
    fn flags_are_told_as_they_were_asked_for(mask: u32, flags: u32, batch: bool) {
        for flags in [flags, u32::from(batch) * BATCH] {
            if let Ok(command) = Command::parse(&padded([1, mask, flags], 24)) {
                let Command::Listen(listen) = command else {
                    panic!("{command:?}");
                };
                prop_assert_eq!(listen.flags.bits(), flags);
                prop_assert_eq!(listen.flags.contain(Flags::BATCH), flags & BATCH != 0);
            }
        }
    }

    /// A listener gets what it asked for once, and nothing else.
    #[test]
    fn who_asked_gets_an_event_once(requested: u32, kind in 0_usize..10, failed: bool) {
        const KINDS: [u32; 10] = [
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
        let bit = KINDS[kind];
        let known = KINDS.iter().fold(bits::NONZERO_EXIT, |known, bit| known | bit);
        let asks_for_failures = bit == bits::EXIT && failed && requested & bits::NONZERO_EXIT != 0;
        let asks_for_all = requested & known == 0 && bit != bits::SESSION_END;
        let asks = asks_for_all || requested & bit != 0 || asks_for_failures;

        prop_assert_eq!(copies(Mask::requested(requested), bit, failed), usize::from(asks));
    }
}
