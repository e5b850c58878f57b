// SPDX-License-Identifier: GPL-2.0
//! The wire format of the process events connector, as user space sees it.
//!
//! Kernel headers: `include/uapi/linux/cn_proc.h`, `include/uapi/linux/connector.h`. The header
//! that a distribution ships may be older than the kernel under test, so the layouts are here.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of every message that the kernel sends, except for events with an [`Identity`].
pub const MESSAGE_SIZE: usize = 76;

/// Bytes of an event that an [`Identity`] follows.
pub const IDENTITY_MESSAGE_SIZE: usize = MESSAGE_SIZE + size_of::<Identity>();

/// `CN_IDX_PROC` and `CN_VAL_PROC`, also the multicast group.
pub const CN_PROC: u32 = 1;

/// `NLMSG_DONE`, the type of every connector message, except for events that a batch may hold.
pub const NLMSG_DONE: u16 = 3;

/// `PROC_CN_NLMSG_EVENT`, the type of events for listeners that asked for [`BATCH`].
pub const NLMSG_EVENT: u16 = 0x10;

/// `PROC_CN_LISTEN_PROCESSES`: forks and exits are those of processes, and not of threads.
pub const PROCESSES: u32 = 0x1;

/// `PROC_CN_LISTEN_IDENTITY`: an [`Identity`] follows each event.
pub const IDENTITY: u32 = 0x2;

/// `PROC_CN_LISTEN_BATCH`: events may share a datagram.
pub const BATCH: u32 = 0x4;

/// `PROC_CN_LISTEN_CGROUP`: only events of one cgroup and of those below it.
pub const CGROUP: u32 = 0x8;

/// `PROC_CN_BATCH_SIZE`: the largest size of a datagram, in bytes.
pub const BATCH_SIZE: usize = 4096;

/// `PROC_CN_MCAST_LISTEN`.
pub const LISTEN: u32 = 1;

/// `PROC_CN_MCAST_IGNORE`.
pub const IGNORE: u32 = 2;

/// `PROC_CN_MCAST_STATE`.
pub const STATE: u32 = 3;

/// `PROC_CN_FEATURE_STATE`.
pub const FEATURE_STATE: u32 = 0x200;

/// `NLM_F_MULTI`, the flag of messages in a series that an answer ends.
pub const NLM_F_MULTI: u16 = 2;

/// `PROC_EVENT_PROCESS`: a process in the state, which [`STATE`] requests. It is in no mask.
pub const PROCESS: u32 = 0x0000_0800;

/// The CPU of messages that are not part of any CPU's sequence numbers.
pub const NO_CPU: u32 = u32::MAX;

/// A `struct proc_listen`: the third form of requests.
pub const fn proc_listen(op: u32, mask: u32, flags: u32) -> [u32; 6] {
    proc_listen_in(op, mask, flags, 0)
}

/// A `struct proc_listen` with a cgroup's id, for [`CGROUP`].
pub const fn proc_listen_in(op: u32, mask: u32, flags: u32, cgroup_id: u64) -> [u32; 6] {
    let (low, high) = (cgroup_id as u32, (cgroup_id >> 32) as u32);
    let (first, second) = if cfg!(target_endian = "little") {
        (low, high)
    } else {
        (high, low)
    };
    [op, mask, flags, 0, first, second]
}

/// The bits of an event mask.
pub mod mask {
    /// Every fork, vfork, clone and thread.
    pub const FORK: u32 = 0x0000_0001;
    /// A program was executed.
    pub const EXEC: u32 = 0x0000_0002;
    /// One of the four user ids changed.
    pub const UID: u32 = 0x0000_0004;
    /// One of the four group ids changed.
    pub const GID: u32 = 0x0000_0040;
    /// A process became a session leader.
    pub const SID: u32 = 0x0000_0080;
    /// A tracer attached or detached.
    pub const PTRACE: u32 = 0x0000_0100;
    /// A task's name changed.
    pub const COMM: u32 = 0x0000_0200;
    /// The last thread of a session leader ended.
    pub const SESSION_END: u32 = 0x0000_0400;
    /// Exits with a status other than 0: a filter, not an event of its own.
    pub const NONZERO_EXIT: u32 = 0x2000_0000;
    /// A core is dumped.
    pub const COREDUMP: u32 = 0x4000_0000;
    /// A task ended.
    pub const EXIT: u32 = 0x8000_0000;
    /// All events except [`SESSION_END`], which has to be requested explicitly (`PROC_EVENT_ALL`).
    pub const ALL: u32 =
        FORK | EXEC | UID | GID | SID | PTRACE | COMM | NONZERO_EXIT | COREDUMP | EXIT;

    /// All events.
    pub const EVERYTHING: u32 = ALL | SESSION_END;

    /// The names of events for users.
    pub const NAMES: [(&str, u32); 11] = [
        ("fork", FORK),
        ("exec", EXEC),
        ("uid", UID),
        ("gid", GID),
        ("sid", SID),
        ("ptrace", PTRACE),
        ("comm", COMM),
        ("session-end", SESSION_END),
        ("nonzero-exit", NONZERO_EXIT),
        ("coredump", COREDUMP),
        ("exit", EXIT),
    ];
}

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct NetlinkHeader {
    /// Bytes of the message, this header included.
    pub length: u32,
    /// Type of the message.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Sequence number.
    pub seq: u32,
    /// Port id of the sender.
    pub pid: u32,
}

/// `struct cn_msg` without its data.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct ConnectorHeader {
    /// Index of the connector.
    pub idx: u32,
    /// Value of the connector.
    pub val: u32,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bytes of the data that follow.
    pub length: u16,
    /// Flags.
    pub flags: u16,
}

/// `struct proc_event`, with the union as bytes.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct EventBody {
    /// Kind of the event: a bit of [`mask`], [`PROCESS`], or 0 for an acknowledgement.
    pub what: u32,
    /// CPU that reported it.
    pub cpu: u32,
    /// `CLOCK_MONOTONIC` when it happened. Bytes, because the message is not 8-byte aligned.
    pub timestamp: [u8; 8],
    /// The event's own fields.
    pub data: [u8; 24],
}

/// A whole message of the kernel.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct Message {
    /// Netlink's header.
    pub netlink: NetlinkHeader,
    /// The connector's header.
    pub connector: ConnectorHeader,
    /// The event.
    pub body: EventBody,
}

/// `struct proc_event_identity`: numbers that identify an event's process, and are never reused.
/// The number of a process or thread is `st_ino` of a pidfd for it.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct Identity {
    /// The event's process.
    pub process: u64,
    /// The event's thread.
    pub thread: u64,
    /// The process of the parent or tracer that the event names, 0 if it names none.
    pub other: u64,
    /// The id of the cgroup that the event's task is in, in the unified hierarchy.
    pub cgroup: u64,
    /// When the process started, by the listener's `CLOCK_BOOTTIME`, in nanoseconds.
    pub start_ns: u64,
}

/// Headers of a request; 4, 8, or 24 bytes or more follow.
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
#[repr(C)]
pub struct RequestHeader {
    /// Netlink's header.
    pub netlink: NetlinkHeader,
    /// The connector's header.
    pub connector: ConnectorHeader,
}

/// A task, as events name it: thread id and process id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Task {
    /// Thread id, the kernel's pid.
    pub pid: i32,
    /// Process id, the kernel's tgid.
    pub tgid: i32,
}

impl Task {
    /// No task, or one that the listener cannot see.
    pub const NONE: Self = Self { pid: 0, tgid: 0 };

    /// The leader of a thread group.
    pub const fn leader(pid: i32) -> Self {
        Self { pid, tgid: pid }
    }
}

/// A task's name, padded with zeros.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// The bytes of the name, without those that pad it.
    pub fn name(&self) -> &[u8] {
        let length = self.0.iter().rposition(|byte| *byte != 0);
        &self.0[..length.map_or(0, |last| last + 1)]
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.name().escape_ascii())
    }
}

/// What a new session leader left behind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Left {
    /// Its parent's thread id.
    pub parent_pid: i32,
    /// Its parent.
    pub parent_tgid: i32,
    /// The session that it was in.
    pub session: i32,
    /// The process group that it was in.
    pub process_group: i32,
}

/// An event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// The answer to a request (`PROC_EVENT_NONE`).
    Ack {
        /// 0 or a positive errno.
        err: u32,
    },
    /// A task was created.
    Fork {
        /// Its parent.
        parent: Task,
        /// The new task.
        child: Task,
    },
    /// A program was executed.
    Exec {
        /// The task that executed it.
        task: Task,
    },
    /// User ids changed.
    Uid {
        /// The task.
        task: Task,
        /// Real user id.
        real: u32,
        /// Effective user id.
        effective: u32,
    },
    /// Group ids changed.
    Gid {
        /// The task.
        task: Task,
        /// Real group id.
        real: u32,
        /// Effective group id.
        effective: u32,
    },
    /// A process became a session leader.
    Sid {
        /// Its thread group leader.
        task: Task,
        /// What it left. All fields are 0 on a kernel that does not report them.
        left: Left,
    },
    /// A tracer attached, or detached.
    Ptrace {
        /// The traced task.
        task: Task,
        /// The tracer, or none when it detached.
        tracer: Task,
    },
    /// A task's name changed.
    Comm {
        /// The renamed task.
        task: Task,
        /// Its new name.
        comm: Comm,
    },
    /// A core is dumped.
    Coredump {
        /// The task.
        task: Task,
        /// Its parent.
        parent: Task,
    },
    /// A task ended.
    Exit {
        /// The task that ended.
        task: Task,
        /// Status, as in wait(2).
        code: u32,
        /// Signal that is sent to the parent.
        signal: u32,
        /// Its parent.
        parent: Task,
    },
    /// A session leader ended, with all its threads.
    SessionEnd {
        /// The leader.
        task: Task,
        /// Status of the process, as in wait(2).
        code: u32,
        /// Signal that is sent to the parent.
        signal: u32,
    },
    /// A process exists. This is a part of the state, and not an event.
    Process {
        /// Its thread group leader.
        task: Task,
        /// Its parent.
        parent: Task,
        /// The session that it is in.
        session: i32,
        /// The process group that it is in.
        process_group: i32,
    },
}

impl Event {
    /// Takes an event's fields from a message. Also returns how many of the data's bytes they use.
    fn decode(body: &EventBody) -> Result<(Self, usize), String> {
        let word = |index: usize| {
            let bytes = &body.data[4 * index..4 * index + 4];
            u32::from_ne_bytes(bytes.try_into().expect("the slice has four bytes"))
        };
        let task = |index| Task {
            pid: word(index) as i32,
            tgid: word(index + 1) as i32,
        };
        Ok(match body.what {
            0 => (Self::Ack { err: word(0) }, 4),
            mask::FORK => (
                Self::Fork {
                    parent: task(0),
                    child: task(2),
                },
                16,
            ),
            mask::EXEC => (Self::Exec { task: task(0) }, 8),
            mask::UID => (
                Self::Uid {
                    task: task(0),
                    real: word(2),
                    effective: word(3),
                },
                16,
            ),
            mask::GID => (
                Self::Gid {
                    task: task(0),
                    real: word(2),
                    effective: word(3),
                },
                16,
            ),
            mask::SID => {
                let [parent_pid, parent_tgid, session, process_group] =
                    [2, 3, 4, 5].map(|index| word(index) as i32);
                let left = Left {
                    parent_pid,
                    parent_tgid,
                    session,
                    process_group,
                };
                (
                    Self::Sid {
                        task: task(0),
                        left,
                    },
                    24,
                )
            }
            mask::PTRACE => (
                Self::Ptrace {
                    task: task(0),
                    tracer: task(2),
                },
                16,
            ),
            mask::COMM => {
                let comm = Comm(body.data[8..].try_into().expect("16 bytes are left"));
                (
                    Self::Comm {
                        task: task(0),
                        comm,
                    },
                    24,
                )
            }
            mask::COREDUMP => (
                Self::Coredump {
                    task: task(0),
                    parent: task(2),
                },
                16,
            ),
            mask::EXIT => {
                let (code, signal) = (word(2), word(3));
                (
                    Self::Exit {
                        task: task(0),
                        code,
                        signal,
                        parent: task(4),
                    },
                    24,
                )
            }
            mask::SESSION_END => (
                Self::SessionEnd {
                    task: task(0),
                    code: word(2),
                    signal: word(3),
                },
                16,
            ),
            PROCESS => (
                Self::Process {
                    task: task(0),
                    parent: task(2),
                    session: word(4) as i32,
                    process_group: word(5) as i32,
                },
                24,
            ),
            what => return Err(format!("unknown event 0x{what:08x}")),
        })
    }

    /// The bit of [`mask`] that requests this kind of event, [`PROCESS`] for a process in the state,
    /// 0 for an acknowledgement.
    pub fn bit(&self) -> u32 {
        match self {
            Self::Ack { .. } => 0,
            Self::Fork { .. } => mask::FORK,
            Self::Exec { .. } => mask::EXEC,
            Self::Uid { .. } => mask::UID,
            Self::Gid { .. } => mask::GID,
            Self::Sid { .. } => mask::SID,
            Self::Ptrace { .. } => mask::PTRACE,
            Self::Comm { .. } => mask::COMM,
            Self::Coredump { .. } => mask::COREDUMP,
            Self::Exit { .. } => mask::EXIT,
            Self::SessionEnd { .. } => mask::SESSION_END,
            Self::Process { .. } => PROCESS,
        }
    }

    /// The kind's name for users.
    pub fn kind(&self) -> &'static str {
        let bit = self.bit();
        match mask::NAMES.iter().find(|(_, known)| *known == bit) {
            Some((name, _)) => name,
            None if bit == PROCESS => "process",
            None => "ack",
        }
    }

    /// The process of the parent or tracer that the event names, 0 if it names none.
    pub fn other(&self) -> i32 {
        match *self {
            Self::Fork { parent, .. }
            | Self::Coredump { parent, .. }
            | Self::Exit { parent, .. }
            | Self::Process { parent, .. } => parent.tgid,
            Self::Sid { left, .. } => left.parent_tgid,
            Self::Ptrace { tracer, .. } => tracer.tgid,
            Self::Ack { .. }
            | Self::Exec { .. }
            | Self::Uid { .. }
            | Self::Gid { .. }
            | Self::Comm { .. }
            | Self::SessionEnd { .. } => 0,
        }
    }

    /// The task that the event is about: the new one for a fork, none for an acknowledgement.
    pub fn subject(&self) -> Task {
        match *self {
            Self::Ack { .. } => Task::NONE,
            Self::Fork { child, .. } => child,
            Self::Exec { task }
            | Self::Uid { task, .. }
            | Self::Gid { task, .. }
            | Self::Sid { task, .. }
            | Self::Ptrace { task, .. }
            | Self::Comm { task, .. }
            | Self::Coredump { task, .. }
            | Self::Exit { task, .. }
            | Self::SessionEnd { task, .. }
            | Self::Process { task, .. } => task,
        }
    }
}

/// A message as it was received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The headers and the raw event.
    pub message: Message,
    /// The decoded event.
    pub event: Event,
    /// What follows the event, if the listener asked for [`IDENTITY`].
    pub identity: Option<Identity>,
    /// How many bytes of the event's data are defined for its kind.
    pub defined: usize,
    /// The sender's port id and multicast groups.
    pub sender: (u32, u32),
}

impl Received {
    /// Decodes a datagram: a single message, or several of type [`NLMSG_EVENT`]. Each has to have
    /// one of the exact sizes, and no other bytes may be between or after them.
    pub fn decode_all(datagram: &[u8], sender: (u32, u32)) -> Result<Vec<Self>, String> {
        let length = datagram.len();
        if length == 0 || length > BATCH_SIZE {
            return Err(format!("a datagram has {length} bytes"));
        }
        let mut received = Vec::new();
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = rest.first_chunk().copied().map(u32::from_ne_bytes);
            let (message, behind) = length
                .and_then(|length| rest.split_at_checked(length as usize))
                .ok_or_else(|| {
                    let left = rest.len();
                    format!("a message has {length:?} bytes, and the datagram {left} more")
                })?;
            received.push(Self::decode(message, sender)?);
            rest = behind;
        }
        let is_event = |received: &Self| received.message.netlink.kind == NLMSG_EVENT;
        if received.len() > 1 && !received.iter().all(is_event) {
            return Err(format!("these messages share a datagram: {received:?}"));
        }
        Ok(received)
    }

    /// Decodes a message, which has to have one of the exact sizes, and this size in both headers.
    pub fn decode(bytes: &[u8], sender: (u32, u32)) -> Result<Self, String> {
        let size = bytes.len();
        let malformed = || {
            format!("a message has {size} bytes and not {MESSAGE_SIZE} or {IDENTITY_MESSAGE_SIZE}")
        };
        let (message, behind) = Message::read_from_prefix(bytes).map_err(|_| malformed())?;
        let identity = match behind {
            [] => None,
            _ => Some(Identity::read_from_bytes(behind).map_err(|_| malformed())?),
        };
        let lengths = (message.netlink.length, message.connector.length);
        if lengths != (size as u32, (size - size_of::<RequestHeader>()) as u16) {
            return Err(format!(
                "a message of {size} bytes has the lengths {lengths:?}"
            ));
        }
        let (event, defined) = Event::decode(&message.body)?;
        if identity.is_some() && event.bit() == 0 {
            return Err(format!("an answer has {size} bytes"));
        }
        Ok(Self {
            message,
            event,
            identity,
            defined,
            sender,
        })
    }

    /// The kernel's features, `PROC_CN_FEATURE_*`: the second word of an answer, 0 on older kernels.
    pub fn features(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = self.message.body.data;
        u32::from_ne_bytes([a, b, c, d])
    }

    /// How many processes were reported before this answer: its third word, 0 on older kernels.
    pub fn processes(&self) -> u32 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = self.message.body.data;
        u32::from_ne_bytes([a, b, c, d])
    }

    /// `CLOCK_MONOTONIC` when the event happened, in nanoseconds.
    pub fn timestamp_ns(&self) -> u64 {
        u64::from_ne_bytes(self.message.body.timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(what: u32, words: [u32; 6]) -> Vec<u8> {
        let mut data = [0; 24];
        for (bytes, word) in data.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let netlink = NetlinkHeader {
            length: 76,
            kind: NLMSG_DONE,
            flags: 0,
            seq: 9,
            pid: 0,
        };
        let connector = ConnectorHeader {
            idx: 1,
            val: 1,
            seq: 9,
            ack: 0,
            length: 40,
            flags: 0,
        };
        let body = EventBody {
            what,
            cpu: 1,
            timestamp: 5u64.to_ne_bytes(),
            data,
        };
        Message {
            netlink,
            connector,
            body,
        }
        .as_bytes()
        .to_vec()
    }

    fn event(what: u32, words: [u32; 6]) -> Event {
        Received::decode(&message(what, words), (0, 1))
            .unwrap()
            .event
    }

    #[test]
    fn layouts_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<NetlinkHeader>(), 16);
        assert_eq!(size_of::<ConnectorHeader>(), 20);
        assert_eq!(size_of::<EventBody>(), 40);
        assert_eq!(size_of::<Message>(), MESSAGE_SIZE);
        assert_eq!(IDENTITY_MESSAGE_SIZE, 116);
    }

    #[test]
    fn requests_have_their_fields_in_their_places() {
        assert_eq!(proc_listen(1, 2, 3), [1, 2, 3, 0, 0, 0]);
        let id: u64 = 0x0123_4567_89ab_cdef;
        let request = proc_listen_in(LISTEN, mask::SID, CGROUP, id);
        assert_eq!(request[..4], [LISTEN, mask::SID, CGROUP, 0]);
        assert_eq!(request.as_bytes()[16..], id.to_ne_bytes());
    }

    #[test]
    fn fields_are_taken_from_their_places() {
        let (one, two) = (Task { pid: 1, tgid: 2 }, Task { pid: 3, tgid: 4 });
        let words = [1, 2, 3, 4, 5, 6];
        assert_eq!(event(0, words), Event::Ack { err: 1 });
        assert_eq!(
            event(mask::FORK, words),
            Event::Fork {
                parent: one,
                child: two
            }
        );
        assert_eq!(
            event(mask::UID, words),
            Event::Uid {
                task: one,
                real: 3,
                effective: 4
            }
        );
        assert_eq!(
            event(mask::PTRACE, words),
            Event::Ptrace {
                task: one,
                tracer: two
            }
        );
        let parent = Task { pid: 5, tgid: 6 };
        assert_eq!(
            event(mask::EXIT, words),
            Event::Exit {
                task: one,
                code: 3,
                signal: 4,
                parent
            }
        );
        assert_eq!(
            event(mask::SESSION_END, words),
            Event::SessionEnd {
                task: one,
                code: 3,
                signal: 4
            }
        );
        assert_eq!(
            event(PROCESS, words),
            Event::Process {
                task: one,
                parent: two,
                session: 5,
                process_group: 6
            }
        );
        let answer = Received::decode(&message(0, words), (0, 1)).unwrap();
        assert_eq!((answer.features(), answer.processes()), (2, 3));
        let received = Received::decode(&message(mask::SID, words), (0, 1)).unwrap();
        let left = Left {
            parent_pid: 3,
            parent_tgid: 4,
            session: 5,
            process_group: 6,
        };
        assert_eq!(
            (received.event, received.defined),
            (Event::Sid { task: one, left }, 24)
        );
        assert_eq!((received.timestamp_ns(), received.message.body.cpu), (5, 1));
    }

    fn events(count: usize, kind: u16) -> Vec<u8> {
        let one = message(mask::SID, [0; 6]);
        let mut one = Message::read_from_bytes(&one).unwrap();
        one.netlink.kind = kind;
        one.as_bytes().repeat(count)
    }

    #[test]
    fn events_share_a_datagram_if_they_are_of_the_type() {
        let decode = |count, kind| Received::decode_all(&events(count, kind), (0, 1));
        assert_eq!(decode(53, NLMSG_EVENT).unwrap().len(), 53);
        assert_eq!(decode(1, NLMSG_DONE).unwrap().len(), 1);
        assert!(decode(54, NLMSG_EVENT).unwrap_err().contains("4104 bytes"));
        assert!(decode(0, NLMSG_EVENT).is_err());
        assert!(decode(2, NLMSG_DONE).unwrap_err().contains("share"));
        let mut cut = events(3, NLMSG_EVENT);
        cut.pop();
        assert!(Received::decode_all(&cut, (0, 1)).is_err());
    }

    const SAMPLE: Identity = Identity {
        process: 1 << 40,
        thread: 2,
        other: 3,
        cgroup: 4,
        start_ns: 5,
    };

    /// A message with [`SAMPLE`], and with these lengths in its headers.
    fn long_message(what: u32, kind: u16, lengths: (u32, u16)) -> Vec<u8> {
        let mut message = Message::read_from_bytes(&message(what, [6; 6])).unwrap();
        message.netlink.kind = kind;
        (message.netlink.length, message.connector.length) = lengths;
        [message.as_bytes(), SAMPLE.as_bytes()].concat()
    }

    #[test]
    fn an_identity_is_taken_from_behind_the_event() {
        let long = long_message(mask::COMM, NLMSG_DONE, (116, 80));
        let received = Received::decode(&long, (0, 1)).unwrap();
        assert_eq!(received.identity, Some(SAMPLE));
        assert_eq!(received.event.subject(), Task { pid: 6, tgid: 6 });
        let short = Received::decode(&message(mask::COMM, [6; 6]), (0, 1)).unwrap();
        assert_eq!((short.identity, short.event), (None, received.event));
    }

    #[test]
    fn messages_with_an_identity_share_a_datagram() {
        let long = long_message(mask::SID, NLMSG_EVENT, (116, 80));
        let batch = Received::decode_all(&long.repeat(35), (0, 1)).unwrap();
        assert_eq!(batch.len(), 35);
        assert!(batch.iter().all(|one| one.identity == Some(SAMPLE)));
        assert!(Received::decode_all(&long.repeat(36), (0, 1)).is_err());
        let done = long_message(mask::SID, NLMSG_DONE, (116, 80));
        assert_eq!(Received::decode_all(&done, (0, 1)).unwrap().len(), 1);
        let error = Received::decode_all(&done.repeat(2), (0, 1)).unwrap_err();
        assert!(error.contains("share"), "{error}");
        // This is so after a listener asked for another form.
        let mixed = [events(2, NLMSG_EVENT), long.clone(), events(1, NLMSG_EVENT)].concat();
        let mixed = Received::decode_all(&mixed, (0, 1)).unwrap();
        let identities: Vec<_> = mixed.iter().map(|one| one.identity).collect();
        assert_eq!(identities, [None, None, Some(SAMPLE), None]);
        for cut in 1..116 {
            assert!(Received::decode_all(&long.repeat(2)[..232 - cut], (0, 1)).is_err());
        }
    }

    #[test]
    fn a_message_with_wrong_lengths_is_refused() {
        for lengths in [(116, 40), (76, 80), (76, 40), (0, 0), (115, 80), (120, 84)] {
            let long = long_message(mask::COMM, NLMSG_DONE, lengths);
            let error = Received::decode(&long, (0, 1)).unwrap_err();
            assert!(error.contains("lengths"), "{error}");
            assert!(Received::decode_all(&long, (0, 1)).is_err());
        }
        let short = &long_message(mask::COMM, NLMSG_DONE, (116, 80))[..76];
        assert!(Received::decode(short, (0, 1)).is_err());
        let nothing = [0; MESSAGE_SIZE];
        assert!(Received::decode_all(&nothing, (0, 1)).is_err());
    }

    #[test]
    fn an_answer_has_no_identity() {
        let answer = long_message(0, NLMSG_DONE, (116, 80));
        let error = Received::decode(&answer, (0, 1)).unwrap_err();
        assert!(error.contains("an answer has 116 bytes"), "{error}");
    }

    #[test]
    fn other_sizes_and_kinds_are_refused() {
        let mut long = message(mask::SID, [0; 6]);
        long.push(0);
        assert!(
            Received::decode(&long, (0, 1))
                .unwrap_err()
                .contains("77 bytes")
        );
        assert!(
            Received::decode(&long[..75], (0, 1))
                .unwrap_err()
                .contains("75 bytes")
        );
        let unknown = message(0x1000, [0; 6]);
        assert!(
            Received::decode(&unknown, (0, 1))
                .unwrap_err()
                .contains("0x00001000")
        );
    }
}
