// SPDX-License-Identifier: GPL-2.0

//! The messages that listeners read, byte for byte.
//!
//! This file uses no code of the kernel, and is tested on the host. All fields are in the byte
//! order of the machine, as usual in netlink. The layouts are those of
//! `include/uapi/linux/netlink.h`, `include/uapi/linux/connector.h` and
//! `include/uapi/linux/cn_proc.h`.

use zerocopy::IntoBytes as _;
use zerocopy_derive::{
    Immutable,
    IntoBytes, //
};

/// `CN_IDX_PROC`: the connector's index of process events, and the group in the sender's address
/// that listeners see.
pub(crate) const CN_IDX_PROC: u32 = 1;
/// `CN_VAL_PROC`: the connector's value of process events.
const CN_VAL_PROC: u32 = 1;

/// The `PROC_CN_FEATURE_*` that this module has on all kernels:
///
/// - `ACK`: each request gets one answer.
/// - `SEQ`: a gap in the numbers is a loss.
/// - `NAMESPACES`: ids are those that the listener sees.
/// - `SID_ORIGIN`: the event of a new session leader says what the leader left.
/// - `SESSION_END`: the end of a session leader is an event.
/// - `PROCESSES`: a listener may ask for forks and exits of processes only.
/// - `IDENTITY`: a listener may ask for the identity of each process.
/// - `BATCH`: a listener may ask for several events in one datagram.
/// - `STATE`: a listener may ask for the existing processes.
const FEATURES: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x200;
/// `PROC_CN_FEATURE_CGROUP`: a listener may ask for the events of one cgroup. Only kernels with
/// cgroups have this feature.
const FEATURE_CGROUP: u32 = 0x100;

/// The `cpu` of a message that takes no number of any CPU.
pub(crate) const NO_CPU: u32 = u32::MAX;

/// How many 32-bit words the largest event has.
const WORDS: usize = 6;

/// A `struct nlmsghdr`, a `struct cn_msg` and a `struct proc_event`. For listeners that asked for
/// it, a `struct proc_event_identity` follows.
///
/// The last two are 8-byte aligned in C, but follow headers of 36 bytes. That is why the 64-bit
/// fields are arrays of bytes here.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct Message {
    nlmsg_len: u32,
    nlmsg_type: u16,
    nlmsg_flags: u16,
    nlmsg_seq: u32,
    nlmsg_pid: u32,
    idx: u32,
    val: u32,
    seq: u32,
    ack: u32,
    len: u16,
    flags: u16,
    what: u32,
    cpu: u32,
    timestamp_ns: [u8; 8],
    event_data: [u32; WORDS],
    identity: Identity,
}

/// A `struct proc_event_identity`, which says which process a message is about.
#[derive(Clone, Copy, Default, Immutable, IntoBytes)]
#[repr(C)]
pub(crate) struct Identity {
    process: [u8; 8],
    thread: [u8; 8],
    other: [u8; 8],
    cgroup: [u8; 8],
    start_ns: [u8; 8],
}

impl Identity {
    /// Returns an identity:
    ///
    /// - `process`, `thread`: the inode numbers of the process and its thread in pidfs
    /// - `other`: that of the parent's or tracer's process, 0 if it is not visible
    /// - `cgroup`: the id of the cgroup
    /// - `start_ns`: when the process started, by `CLOCK_BOOTTIME`, in nanoseconds
    pub(crate) fn new(process: u64, thread: u64, other: u64, cgroup: u64, start_ns: u64) -> Self {
        Self {
            process: process.to_ne_bytes(),
            thread: thread.to_ne_bytes(),
            other: other.to_ne_bytes(),
            cgroup: cgroup.to_ne_bytes(),
            start_ns: start_ns.to_ne_bytes(),
        }
    }
}

/// `NLMSG_DONE`: the type of every message of the connector except [`NLMSG_EVENT`].
const NLMSG_DONE: u16 = 3;
/// `NLM_F_MULTI`: the flag of messages that are followed by one of type [`NLMSG_DONE`], the last
/// one.
const NLM_F_MULTI: u16 = 2;
/// `PROC_CN_NLMSG_EVENT`: the type of events that may share a datagram. It is not `NLMSG_DONE`,
/// because loops over the messages of a datagram stop there.
const NLMSG_EVENT: u16 = 16;

/// The length of the headers in bytes.
const HEADERS_LEN: u16 = 16 + 20;
/// The length of a `struct proc_event` in bytes.
const EVENT_LEN: u16 = 40;
/// The length of a `struct proc_event_identity` in bytes.
const IDENTITY_LEN: u16 = 40;

/// The form of a message that a receiver asked for: the fields of the headers that depend on it.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    nlmsg_len: u32,
    nlmsg_type: u16,
    len: u16,
}

impl Form {
    /// Returns a form: whether the message may share its datagram with others, and whether it has
    /// an identity.
    pub(crate) const fn new(batch: bool, identity: bool) -> Self {
        let len = if identity {
            EVENT_LEN + IDENTITY_LEN
        } else {
            EVENT_LEN
        };

        Self {
            nlmsg_len: (HEADERS_LEN + len) as u32,
            nlmsg_type: if batch { NLMSG_EVENT } else { NLMSG_DONE },
            len,
        }
    }
}

const _: () = assert!(size_of::<Message>() == (HEADERS_LEN + EVENT_LEN + IDENTITY_LEN) as usize);
const _: () = assert!(size_of::<Identity>() == IDENTITY_LEN as usize);

impl Message {
    /// Returns a message from a CPU, alone in its datagram, without an event yet. `timestamp_ns` is
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    #[inline]
    pub(crate) fn new(cpu: u32, timestamp_ns: u64) -> Self {
        const FORM: Form = Form::new(false, false);

        Self {
            nlmsg_len: FORM.nlmsg_len,
            nlmsg_type: FORM.nlmsg_type,
            nlmsg_flags: 0,
            nlmsg_seq: 0,
            nlmsg_pid: 0,
            idx: CN_IDX_PROC,
            val: CN_VAL_PROC,
            seq: 0,
            ack: 0,
            len: FORM.len,
            flags: 0,
            what: 0,
            cpu,
            timestamp_ns: timestamp_ns.to_ne_bytes(),
            event_data: [0; WORDS],
            identity: Identity::default(),
        }
    }

    /// Sets the event, with the numbers that the receiver sees.
    #[inline]
    pub(crate) fn set_event(&mut self, event: &Event) {
        self.what = event.what();
        self.event_data = event.words();
        if let Event::Comm { comm, .. } = event {
            self.event_data[2..].as_mut_bytes().copy_from_slice(comm);
        }
    }

    /// Sets the identity of the process that the event is about.
    #[inline]
    pub(crate) fn identify(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// Sets the form that a receiver asked for.
    #[inline]
    pub(crate) fn set_form(&mut self, form: Form) {
        self.nlmsg_type = form.nlmsg_type;
        self.len = form.len;
        self.nlmsg_len = form.nlmsg_len;
    }

    /// Returns the bytes of the message: its form determines whether the identity is among them.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        let bytes = self.as_bytes();

        // The compiler knows the length in each case, and so removes checks of it.
        if self.len == EVENT_LEN {
            &bytes[..usize::from(HEADERS_LEN + EVENT_LEN)]
        } else {
            bytes
        }
    }

    /// Sets the number of the message, which depends on the receiver.
    #[inline]
    pub(crate) fn number(&mut self, seq: u32) {
        self.nlmsg_seq = seq;
        self.seq = seq;
    }

    /// Returns an answer to a request with this `seq` and this `ack`. Its own `ack` is that of the
    /// request plus one, with wrapping.
    pub(crate) fn answer(
        (seq, ack): (u32, u32),
        cpu: u32,
        timestamp_ns: u64,
        event: Event,
    ) -> Self {
        let mut message = Self::new(cpu, timestamp_ns);

        message.set_event(&event);
        message.number(seq);
        message.ack = ack.wrapping_add(1);
        message
    }

    /// Marks the message as one of several messages that end with an answer.
    pub(crate) fn set_multipart(&mut self) {
        self.nlmsg_flags = NLM_F_MULTI;
    }
}

/// The numbers of a task in the receiver's pid namespace, 0 if the task is not visible there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    /// The id of the thread, as from gettid(2).
    pub(crate) pid: i32,
    /// The id of the thread group, as from getpid(2).
    pub(crate) tgid: i32,
}

/// An event, with one variant for each struct in the union of `struct proc_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The answer to a request.
    Ack {
        /// A positive error number, or 0.
        errno: u32,
        /// `PROC_CN_FEATURE_*`.
        features: u32,
        /// How many processes were reported before the answer.
        processes: u32,
    },
    /// `parent` forked `child`.
    Fork { parent: Ids, child: Ids },
    /// `process` executed a new program.
    Exec { process: Ids },
    /// A user id of `process` changed. The event has the real and the effective user id.
    Uid { process: Ids, ruid: u32, euid: u32 },
    /// A group id of `process` changed. The event has the real and the effective group id.
    Gid { process: Ids, rgid: u32, egid: u32 },
    /// `process`, a child of `parent`, became a session leader and left `session` and
    /// `process_group`.
    Sid {
        process: Ids,
        parent: Ids,
        session: i32,
        process_group: i32,
    },
    /// `tracer` attached to `process`. Both numbers of `tracer` are 0 if a tracer detached, or is
    /// not visible.
    Ptrace { process: Ids, tracer: Ids },
    /// `process` has a new name.
    Comm { process: Ids, comm: [u8; 16] },
    /// `process`, a child of `parent`, dumps core.
    Coredump { process: Ids, parent: Ids },
    /// `process`, a child of `parent`, exited. The code is the status as in wait(2). The signal is
    /// the one that the parent gets, -1 for none.
    Exit {
        process: Ids,
        exit_code: u32,
        exit_signal: u32,
        parent: Ids,
    },
    /// `process`, a session leader, ended as a whole. The code is the status as in wait(2). The
    /// signal is the one that the parent gets, -1 for none.
    SessionEnd {
        process: Ids,
        exit_code: u32,
        exit_signal: u32,
    },
    /// `process`, a child of `parent`, exists. This is part of a state, and not something that
    /// happened to the process.
    Process {
        process: Ids,
        parent: Ids,
        session: i32,
        process_group: i32,
    },
}

impl Event {
    /// Returns the contents of an answer. `errno` is a positive error number, or 0 for success.
    /// `processes` is how many processes were reported before.
    pub(crate) fn ack(errno: u32, processes: u32, has_cgroups: bool) -> Self {
        let cgroup = if has_cgroups { FEATURE_CGROUP } else { 0 };

        Self::Ack {
            errno,
            features: FEATURES | cgroup,
            processes,
        }
    }

    /// Returns the type of the event: a value of `enum proc_cn_event`.
    #[inline]
    fn what(&self) -> u32 {
        use crate::mask::bits;

        match self {
            Event::Ack { .. } => 0,
            Event::Fork { .. } => bits::FORK,
            Event::Exec { .. } => bits::EXEC,
            Event::Uid { .. } => bits::UID,
            Event::Gid { .. } => bits::GID,
            Event::Sid { .. } => bits::SID,
            Event::Ptrace { .. } => bits::PTRACE,
            Event::Comm { .. } => bits::COMM,
            Event::Coredump { .. } => bits::COREDUMP,
            Event::Exit { .. } => bits::EXIT,
            Event::SessionEnd { .. } => bits::SESSION_END,
            Event::Process { .. } => bits::PROCESS,
        }
    }

    /// Returns the fields in the order of the C struct, without the name of [`Event::Comm`], which
    /// [`Message::set_event`] copies. Words that are not defined for an event are 0.
    #[inline]
    fn words(&self) -> [u32; WORDS] {
        const fn id(number: i32) -> u32 {
            number as u32
        }

        match *self {
            Event::Ack {
                errno,
                features,
                processes,
            } => [errno, features, processes, 0, 0, 0],
            Event::Fork { parent, child } => [
                id(parent.pid),
                id(parent.tgid),
                id(child.pid),
                id(child.tgid),
                0,
                0,
            ],
            Event::Uid {
                process,
                ruid: real,
                euid: effective,
            }
            | Event::Gid {
                process,
                rgid: real,
                egid: effective,
            } => [id(process.pid), id(process.tgid), real, effective, 0, 0],
            Event::Sid {
                process,
                parent,
                session,
                process_group,
            }
            | Event::Process {
                process,
                parent,
                session,
                process_group,
            } => [
                id(process.pid),
                id(process.tgid),
                id(parent.pid),
                id(parent.tgid),
                id(session),
                id(process_group),
            ],
            Event::Ptrace {
                process,
                tracer: other,
            }
            | Event::Coredump {
                process,
                parent: other,
            } => [
                id(process.pid),
                id(process.tgid),
                id(other.pid),
                id(other.tgid),
                0,
                0,
            ],
            Event::Exec { process } | Event::Comm { process, .. } => {
                [id(process.pid), id(process.tgid), 0, 0, 0, 0]
            }
            Event::Exit {
                process,
                exit_code,
                exit_signal,
                parent,
            } => [
                id(process.pid),
                id(process.tgid),
                exit_code,
                exit_signal,
                id(parent.pid),
                id(parent.tgid),
            ],
            Event::SessionEnd {
                process,
                exit_code,
                exit_signal,
            } => [
                id(process.pid),
                id(process.tgid),
                exit_code,
                exit_signal,
                0,
                0,
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Ids = Ids { pid: 11, tgid: 12 };
    const OTHER: Ids = Ids { pid: 13, tgid: 14 };

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// Checks the fields that are the same in all events, and returns the words of the union.
    fn check_event(event: Event, what: u32) -> Vec<u32> {
        let mut message = Message::new(3, 0x0123_4567_89ab_cdef);
        message.set_event(&event);
        message.number(7);
        let bytes = message.bytes();

        assert_eq!(bytes.len(), 76);
        assert_eq!(word(bytes, 0), 76);
        assert_eq!(bytes[4..8], [3_u16.to_ne_bytes(), [0, 0]].concat());
        assert_eq!((word(bytes, 8), word(bytes, 12)), (7, 0));

        let bytes = &bytes[16..];
        assert_eq!((word(bytes, 0), word(bytes, 4)), (1, 1));
        assert_eq!((word(bytes, 8), word(bytes, 12)), (7, 0));
        assert_eq!(u16::from_ne_bytes([bytes[16], bytes[17]]), 40);
        assert_eq!(u16::from_ne_bytes([bytes[18], bytes[19]]), 0);
        assert_eq!((word(bytes, 20), word(bytes, 24)), (what, 3));
        assert_eq!(bytes[28..36], 0x0123_4567_89ab_cdef_u64.to_ne_bytes());

        (36..60).step_by(4).map(|at| word(bytes, at)).collect()
    }

    #[test]
    fn fork_has_parent_then_child() {
        let fork = Event::Fork {
            parent: OTHER,
            child: PROCESS,
        };
        assert_eq!(check_event(fork, 1), [13, 14, 11, 12, 0, 0]);
    }

    #[test]
    fn exec_has_the_process() {
        let exec = Event::Exec { process: PROCESS };
        assert_eq!(check_event(exec, 2), [11, 12, 0, 0, 0, 0]);
    }

    #[test]
    fn uid_and_gid_have_real_then_effective() {
        let uid = Event::Uid {
            process: PROCESS,
            ruid: 1000,
            euid: 1001,
        };
        assert_eq!(check_event(uid, 4), [11, 12, 1000, 1001, 0, 0]);

        let gid = Event::Gid {
            process: PROCESS,
            rgid: 1000,
            egid: 1001,
        };
        assert_eq!(check_event(gid, 0x40), [11, 12, 1000, 1001, 0, 0]);
    }

    #[test]
    fn sid_has_what_was_left_after_mainlines_fields() {
        let sid = Event::Sid {
            process: PROCESS,
            parent: OTHER,
            session: 15,
            process_group: 16,
        };
        assert_eq!(check_event(sid, 0x80), [11, 12, 13, 14, 15, 16]);
    }

    #[test]
    fn ptrace_has_the_tracer_last() {
        let ptrace = Event::Ptrace {
            process: PROCESS,
            tracer: OTHER,
        };
        assert_eq!(check_event(ptrace, 0x100), [11, 12, 13, 14, 0, 0]);
    }

    #[test]
    fn comm_keeps_the_order_of_its_bytes() {
        let comm = *b"0123456789abcde\0";
        let renamed = Event::Comm {
            process: PROCESS,
            comm,
        };
        let words = check_event(renamed, 0x200);

        assert_eq!(words[..2], [11, 12]);
        let bytes: Vec<u8> = words[2..]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(bytes, comm);
    }

    #[test]
    fn coredump_has_the_parent_last() {
        let coredump = Event::Coredump {
            process: PROCESS,
            parent: OTHER,
        };
        assert_eq!(check_event(coredump, 0x4000_0000), [11, 12, 13, 14, 0, 0]);
    }

    #[test]
    fn exit_has_code_and_signal_before_the_parent() {
        let exit = Event::Exit {
            process: PROCESS,
            exit_code: 7 << 8,
            exit_signal: 17,
            parent: OTHER,
        };
        assert_eq!(check_event(exit, 0x8000_0000), [11, 12, 7 << 8, 17, 13, 14]);
    }

    #[test]
    fn session_end_has_code_and_signal() {
        let end = Event::SessionEnd {
            process: PROCESS,
            exit_code: 7 << 8,
            exit_signal: 17,
        };
        assert_eq!(check_event(end, 0x400), [11, 12, 7 << 8, 17, 0, 0]);
    }

    #[test]
    fn an_event_in_a_batch_does_not_end_it() {
        let mut message = Message::new(3, 5);

        for (batch, nlmsg_type) in [(true, 16_u16), (false, 3)] {
            message.set_form(Form::new(batch, false));
            assert_eq!(message.bytes()[4..6], nlmsg_type.to_ne_bytes());
        }
    }

    #[test]
    fn an_identity_follows_the_event() {
        let mut message = Message::new(3, 5);
        message.set_event(&Event::Exec { process: PROCESS });
        message.identify(Identity::new(1 << 40, 2 << 40, 4 << 40, 3 << 40, 5 << 40));

        for batch in [true, false] {
            message.set_form(Form::new(batch, false));
            let alone = message.bytes().to_vec();
            message.set_form(Form::new(batch, true));
            let bytes = message.bytes();

            assert_eq!((alone.len(), bytes.len()), (76, 116));
            assert_eq!(
                (word(bytes, 0), u16::from_ne_bytes([bytes[32], bytes[33]])),
                (116, 80)
            );
            assert_eq!(bytes[4..32], alone[4..32]);
            assert_eq!(bytes[34..76], alone[34..]);
            let identity: Vec<u64> = bytes[76..]
                .chunks_exact(8)
                .map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()))
                .collect();
            // process, thread, other, cgroup, start_ns
            assert_eq!(identity, [1 << 40, 2 << 40, 4 << 40, 3 << 40, 5 << 40]);
        }
    }

    #[test]
    fn acknowledgement_counts_the_requests_ack_up() {
        for (ack, answered) in [(0, 1), (77, 78), (u32::MAX, 0)] {
            let message = Message::answer((42, ack), NO_CPU, 5, Event::ack(22, 0, false));
            let bytes = message.bytes();
            assert_eq!(bytes.len(), 76);
            assert_eq!(word(bytes, 8), 42);

            let bytes = &bytes[16..];
            assert_eq!((word(bytes, 8), word(bytes, 12)), (42, answered));
            assert_eq!((word(bytes, 20), word(bytes, 24)), (0, u32::MAX));
            assert_eq!((word(bytes, 36), word(bytes, 40)), (22, 0x2ff));
            assert!(bytes[44..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn an_answer_has_the_number_of_processes() {
        let message = Message::answer((42, 0), NO_CPU, 5, Event::ack(0, 3, false));

        assert_eq!(word(message.bytes(), 60), 3);
    }

    #[test]
    fn a_process_is_one_of_several_messages_of_an_answer() {
        let event = Event::Process {
            process: PROCESS,
            parent: OTHER,
            session: 15,
            process_group: 16,
        };
        assert_eq!(check_event(event, 0x800), [11, 12, 13, 14, 15, 16]);

        let mut message = Message::answer((42, 77), NO_CPU, 5, event);
        message.set_form(Form::new(true, false));
        message.set_multipart();
        let bytes = message.bytes();

        // NLM_F_MULTI and no NLMSG_DONE
        assert_eq!(word(bytes, 4), u32::from_ne_bytes([16, 0, 2, 0]));
        assert_eq!((word(bytes, 8), word(bytes, 28)), (42, 78));
    }

    #[test]
    fn where_there_are_cgroups_the_answer_says_so() {
        let message = Message::answer((42, 0), NO_CPU, 5, Event::ack(0, 0, true));

        assert_eq!(word(message.bytes(), 56), 0x3ff);
    }
}
