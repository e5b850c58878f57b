// SPDX-License-Identifier: GPL-2.0

//! Properties that hold for all inputs. The tests compare the module's code with models that were
//! written only for that.

use crate::control::{Command, Flags, Listen, Malformed};
use crate::mask::{bits, Mask};
use crate::wire::{Event, Form, Identity, Ids, Message, NO_CPU};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// The headers before each event, field by field as in C.
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

/// The number of bytes before the union.
const HEADERS: usize = size_of::<layout::Headers>();

fn ids() -> impl Strategy<Value = Ids> {
    any::<(i32, i32)>().prop_map(|(pid, tgid)| Ids { pid, tgid })
}

/// Generates an event, its `what`, and the words that the union has to start with; the rest is
/// zero.
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
        (ids(), ids(), any::<i32>(), any::<i32>()).prop_map(
            move |(process, parent, session, process_group)| (
                Event::Process {
                    process,
                    parent,
                    session,
                    process_group
                },
                0x0000_0800,
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

/// Returns the headers that a message has to have. `identity` is the number of bytes after the
/// event.
fn headers(
    (kind, identity): (u16, u16),
    (seq, ack): (u32, u32),
    what: u32,
    cpu: u32,
    time: u64,
) -> layout::Headers {
    let [low, high] = if cfg!(target_endian = "little") {
        [time as u32, (time >> 32) as u32]
    } else {
        [(time >> 32) as u32, time as u32]
    };

    layout::Headers {
        nlmsg_len: 76 + u32::from(identity),
        nlmsg_type: kind,
        nlmsg_flags: 0,
        nlmsg_seq: seq,
        nlmsg_pid: 0,
        idx: 1,
        val: 1,
        seq,
        ack,
        len: 40 + identity,
        flags: 0,
        what,
        cpu,
        timestamp_low: low,
        timestamp_high: high,
    }
}

/// A receiver of an event: whether it asked for batches, and the fields of the identity if it asked
/// for identities.
#[derive(Debug)]
struct Receiver {
    batch: bool,
    identity: Option<[u64; 5]>,
}

fn receiver() -> impl Strategy<Value = Receiver> {
    any::<(bool, Option<[u64; 5]>)>().prop_map(|(batch, identity)| Receiver { batch, identity })
}

/// `PROC_CN_LISTEN_BATCH`.
const BATCH: u32 = 4;

/// `PROC_CN_LISTEN_CGROUP`.
const CGROUP: u32 = 8;

/// The bit of each flag.
const NAMES: [(u32, Flags); 4] = [
    (1, Flags::PROCESSES),
    (2, Flags::IDENTITY),
    (BATCH, Flags::BATCH),
    (CGROUP, Flags::CGROUP),
];

/// Returns the bits of the flags that a kernel with cgroups knows, or one without.
fn known(has_cgroups: bool) -> u32 {
    if has_cgroups {
        15
    } else {
        7
    }
}

/// A `struct proc_listen`, without the bytes that may follow it.
#[derive(Clone, Copy, Debug)]
struct ProcListen {
    op: u32,
    mask: u32,
    flags: u32,
    reserved: u32,
    cgroup_id: u64,
}

impl ProcListen {
    /// Returns its bytes, truncated or padded with zeros to this length.
    fn padded(self, length: usize) -> Vec<u8> {
        let words = [self.op, self.mask, self.flags, self.reserved];
        let mut data = [words.as_bytes(), self.cgroup_id.as_bytes()].concat();

        data.resize(length, 0);
        data
    }
}

/// The bits of a mask that have a meaning.
const EVENTS: u32 = 0xe000_07c7;

/// Generates a mask, with bits that have no meaning in some cases.
fn mask() -> impl Strategy<Value = u32> {
    prop_oneof![2 => any::<u32>().prop_map(|bits| bits & EVENTS), 1 => any::<u32>()]
}

/// Generates 0 in most cases.
fn mostly_0<T: Arbitrary + Clone + Default>() -> impl Strategy<Value = T> {
    prop_oneof![4 => Just(T::default()), 1 => any::<T>()]
}

/// Generates a request with flags, which may be valid or not.
fn proc_listen() -> impl Strategy<Value = ProcListen> {
    let flags = prop_oneof![
        4 => 0_u32..16,
        1 => (0..u32::BITS).prop_map(|bit| 1 << bit),
        1 => any::<u32>(),
    ];
    let id = prop_oneof![mostly_0::<u64>(), (0..u64::BITS).prop_map(|bit| 1 << bit)];

    (0_u32..5, mask(), flags, mostly_0::<u32>(), id).prop_map(
        |(op, mask, flags, reserved, cgroup_id)| ProcListen {
            op,
            mask,
            flags,
            reserved,
            cgroup_id,
        },
    )
}

/// Generates a request that is valid on a kernel with cgroups, or on one without.
fn right(has_cgroups: bool) -> impl Strategy<Value = ProcListen> {
    (1_u32..4, any::<u32>(), 0..=known(has_cgroups), any::<u64>()).prop_map(
        |(op, bits, flags, id)| ProcListen {
            op,
            mask: bits & EVENTS,
            flags,
            reserved: 0,
            cgroup_id: if flags & CGROUP == 0 { 0 } else { id },
        },
    )
}

/// Generates a valid request, and whether the kernel has cgroups.
fn right_anywhere() -> impl Strategy<Value = (bool, ProcListen)> {
    any::<bool>()
        .prop_flat_map(|has_cgroups| right(has_cgroups).prop_map(move |asked| (has_cgroups, asked)))
}

/// Generates the data of a request in any of the forms, or in none.
fn request() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..64),
        (0_u32..5, any::<u32>()).prop_map(|words| [words.0, words.1].as_bytes().to_vec()),
        (0_u32..5).prop_map(|word| word.as_bytes().to_vec()),
        (proc_listen(), 0_usize..100).prop_map(|(asked, length)| asked.padded(length)),
        right(true).prop_map(|asked| asked.padded(24)),
        (proc_listen(), 0_usize..25, vec(any::<u8>(), 0..64))
            .prop_map(|(asked, length, more)| { [asked.padded(length), more].concat() }),
    ]
}

/// What a request asks for, with the bits of its flags.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asked {
    Listen {
        mask: Mask,
        flags: u32,
        cgroup_id: u64,
    },
    Ignore,
    State,
}

/// Parses the data of a request with the module's code.
fn parsed(data: &[u8], has_cgroups: bool) -> Result<Asked, Malformed> {
    Command::parse(data, Flags::known(has_cgroups)).map(|command| match command {
        Command::Listen(Listen {
            mask,
            flags,
            cgroup_id,
        }) => Asked::Listen {
            mask,
            flags: flags.bits(),
            cgroup_id,
        },
        Command::Ignore => Asked::Ignore,
        Command::State => Asked::State,
    })
}

/// Parses the data of a request with the model. Returns [`None`] if it is invalid.
fn understood(data: &[u8], has_cgroups: bool) -> Option<Asked> {
    // The model reads a missing byte as 0.
    let byte = |at: usize| data.get(at).copied().unwrap_or(0);
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte_of| byte(at + byte_of)));
    let cgroup_id = u64::from_ne_bytes([16, 17, 18, 19, 20, 21, 22, 23].map(byte));
    let (op, mask, flags, reserved) = (word(0), word(4), word(8), word(12));
    let is_form = matches!(data.len(), 4 | 8 | 24..);
    let is_known = (0..u32::BITS)
        .filter(|bit| flags >> bit & 1 == 1)
        .all(|bit| bit < 3 || bit == 3 && has_cgroups)
        && (data.len() <= 8 || mask & !EVENTS == 0);
    let has_use = cgroup_id == 0 || flags & CGROUP != 0;
    let others_are_0 = reserved == 0 && (24..data.len()).all(|at| byte(at) == 0);

    match op {
        _ if !(is_form && is_known && has_use && others_are_0) => None,
        1 => Some(Asked::Listen {
            mask: Mask::requested(mask),
            flags,
            cgroup_id,
        }),
        2 => Some(Asked::Ignore),
        3 if data.len() != 8 => Some(Asked::State),
        _ => None,
    }
}

/// Returns how many times a listener gets an event: once, if it asked for this kind.
fn copies(mask: Mask, bit: u32, failed: bool) -> usize {
    let is_meant = bit != bits::EXIT || mask.has_exit(i32::from(failed));

    usize::from(mask.has(bit) && is_meant)
}

proptest! {
    /// Each byte of an event's message has its place, even if the message was used before, and in
    /// all forms.
    #[test]
    fn an_event_is_encoded_as_in_c(
        events in vec((event(), vec(receiver(), 1..4)), 1..4),
        cpu: u32,
        time: u64,
        seq: u32,
    ) {
        let mut message = Message::new(cpu, time);

        for ((event, what, words), receivers) in events {
            message.set_event(&event);
            for (index, Receiver { batch, identity }) in (0..).zip(receivers) {
                let number = seq.wrapping_add(index);
                message.number(number);
                message.set_form(Form::new(batch, identity.is_some()));
                if let Some([process, thread, other, cgroup, start_ns]) = identity {
                    message.identify(Identity::new(process, thread, other, cgroup, start_ns));
                }

                let bytes = message.bytes();
                let follows = if identity.is_some() { 40 } else { 0 };
                prop_assert_eq!(bytes.len(), 76 + follows);
                let found = layout::Headers::read_from_bytes(&bytes[..HEADERS]).unwrap();
                let kind = if batch { 16 } else { 3 };
                let form_of = (kind, follows as u16);
                prop_assert_eq!(found, headers(form_of, (number, 0), what, cpu, time));
                let mut union = [0; 6];
                union[..words.len()].copy_from_slice(&words);
                prop_assert_eq!(&bytes[HEADERS..76], union.as_bytes());
                let fields = identity.unwrap_or_default();
                prop_assert_eq!(&bytes[76..], &fields.as_bytes()[..follows]);
            }
        }
    }

    /// An answer has the numbers of the request, and nothing of an event.
    #[test]
    fn an_answer_is_encoded_as_in_c(
        seq: u32,
        ack: u32,
        time: u64,
        errno in 0_u32..4096,
        processes: u32,
        has_cgroups: bool,
    ) {
        let event = Event::ack(errno, processes, has_cgroups);
        let message = Message::answer((seq, ack), NO_CPU, time, event);

        let bytes = message.bytes();
        prop_assert_eq!(bytes.len(), 76);
        let found = layout::Headers::read_from_bytes(&bytes[..HEADERS]).unwrap();
        let numbers = (seq, ack.wrapping_add(1));
        prop_assert_eq!(found, headers((3, 0), numbers, 0, u32::MAX, time));
        let features: u32 = if has_cgroups { 0x3ff } else { 0x2ff };
        let union = [errno, features, processes, 0, 0, 0];
        prop_assert_eq!(&bytes[HEADERS..], union.as_bytes());
    }

    /// Any bytes are one of the three commands, or an invalid request.
    #[test]
    fn a_request_is_understood_by_its_length_and_fields(data in request(), has_cgroups: bool) {
        let understood = understood(&data, has_cgroups).ok_or(Malformed);

        prop_assert_eq!(parsed(&data, has_cgroups), understood);
    }

    /// The third form asks for the same as the second one, with its flags and its cgroup. Zeros
    /// after it change nothing.
    #[test]
    fn zeros_ask_for_nothing((has_cgroups, asked) in right_anywhere(), more in 0_usize..200) {
        prop_assume!(asked.op != 3);
        let second = parsed(&asked.padded(8), has_cgroups);
        let expected = match second {
            Ok(Asked::Listen { mask, .. }) => Ok(Asked::Listen {
                mask,
                flags: asked.flags,
                cgroup_id: asked.cgroup_id,
            }),
            other => other,
        };

        prop_assert!(second.is_ok());
        prop_assert_eq!(parsed(&asked.padded(24 + more), has_cgroups), expected);
    }

    /// Each bit of the mask, of the flags and of the bytes after them is refused. The exceptions
    /// are the bits of known events and flags, and of the id of a cgroup with its flag.
    #[test]
    fn a_bit_without_a_meaning_is_refused(
        (has_cgroups, asked) in right_anywhere(),
        length in 24_usize..100,
        at: prop::sample::Index,
        bit in 0..u8::BITS,
    ) {
        let right = asked.padded(length);
        let mut wrong = right.clone();
        let at = 4 + at.index(length - 4);
        wrong[at] ^= 1 << bit;
        let word = |at: usize| u32::from_ne_bytes(wrong[at..at + 4].try_into().unwrap());
        prop_assume!((word(4) ^ asked.mask) & EVENTS == 0);
        prop_assume!((word(8) ^ asked.flags) & known(has_cgroups) == 0);
        prop_assume!(!(16..24).contains(&at) || asked.flags & CGROUP == 0);

        prop_assert!(parsed(&right, has_cgroups).is_ok());
        prop_assert_eq!(parsed(&wrong, has_cgroups), Err(Malformed));
    }

    /// The parsed flags are those of the request.
    #[test]
    fn flags_are_those_that_were_asked_for(asked in right(true)) {
        let data = ProcListen { op: 1, ..asked }.padded(24);
        let Ok(Command::Listen(Listen { flags, .. })) = Command::parse(&data, Flags::known(true)) else {
            panic!("{asked:?}");
        };

        prop_assert_eq!(flags.bits(), asked.flags);
        for (bit, flag) in NAMES {
            prop_assert_eq!(flags.contain(flag), asked.flags & bit != 0);
        }
    }

    /// A listener gets each event that it asked for once, and no other event.
    #[test]
    fn a_listener_gets_requested_events_once(requested: u32, kind in 0_usize..10, failed: bool) {
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
