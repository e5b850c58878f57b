// SPDX-License-Identifier: GPL-2.0
//! A listener for process events. It shows existing and new sessions, processes that exit, and
//! losses, until it is interrupted.
//!
//! Crates: netlink-sys, nix (with feature `poll`), zerocopy (with feature `derive`).

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{fmt, io, iter, mem};

use netlink_sys::protocols::NETLINK_CONNECTOR;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::{EBUSY, ENOBUFS, MSG_DONTWAIT};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use zerocopy::{FromBytes, Immutable, IntoBytes};

// From linux/netlink.h and linux/connector.h.
const NLMSG_DONE: u16 = 3;
const NLMSG_HDRLEN: usize = 16;
const NLMSG_ALIGNTO: usize = 4;
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;

// From linux/cn_proc.h.
const PROC_CN_MCAST_LISTEN: u32 = 1;
const PROC_CN_MCAST_STATE: u32 = 3;
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_SID: u32 = 0x0000_0080;
const PROC_EVENT_PROCESS: u32 = 0x0000_0800;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;
const PROC_CN_FEATURE_ACK: u32 = 0x1;
const PROC_CN_FEATURE_SEQ: u32 = 0x2;
const PROC_CN_FEATURE_SID_ORIGIN: u32 = 0x8;
const PROC_CN_FEATURE_PROCESSES: u32 = 0x20;
const PROC_CN_FEATURE_IDENTITY: u32 = 0x40;
const PROC_CN_FEATURE_BATCH: u32 = 0x80;
const PROC_CN_FEATURE_STATE: u32 = 0x200;
const PROC_CN_LISTEN_PROCESSES: u32 = 0x1;
const PROC_CN_LISTEN_IDENTITY: u32 = 0x2;
const PROC_CN_LISTEN_BATCH: u32 = 0x4;
const PROC_CN_BATCH_SIZE: usize = 4096;

/// The features that this program requires.
const FEATURES: u32 = PROC_CN_FEATURE_ACK
    | PROC_CN_FEATURE_SEQ
    | PROC_CN_FEATURE_SID_ORIGIN
    | PROC_CN_FEATURE_PROCESSES
    | PROC_CN_FEATURE_IDENTITY
    | PROC_CN_FEATURE_BATCH
    | PROC_CN_FEATURE_STATE;

/// The CPU of a message that is not numbered.
const NO_CPU: u32 = u32::MAX;

const ANSWER_LIMIT_MS: u16 = 1000;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A `struct nlmsghdr` and a `struct cn_msg`.
#[derive(FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct Headers {
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
}

/// A `struct proc_listen`, which follows the headers of a request.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Listen {
    op: u32,
    mask: u32,
    flags: u32,
    reserved: u32,
    cgroup_id: u64,
}

/// A message of the kernel: the headers and a `struct proc_event`, with its union as words.
#[derive(FromBytes)]
#[repr(C)]
struct Message {
    headers: Headers,
    what: u32,
    cpu: u32,
    timestamp_ns: [u32; 2],
    data: [u32; 6],
}

/// A `struct proc_event_identity`, which follows an event. It is 0 in answers.
#[derive(Default, FromBytes)]
#[repr(C)]
struct Identity {
    process: u64,
    thread: u64,
    other: u64,
    cgroup: u64,
    start_ns: u64,
}

/// Distinguishes a process from others that get its number.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(pidfd inode {}, cgroup {})", self.process, self.cgroup)
    }
}

impl Message {
    /// The events and answers in a datagram. Its messages follow each other as `NLMSG_NEXT()` finds
    /// them.
    fn all(mut datagram: &[u8]) -> impl Iterator<Item = (Self, Identity)> + '_ {
        let bytes = iter::from_fn(move || {
            let (len, _) = u32::read_from_prefix(datagram).ok()?;
            let len = len as usize;
            if len < NLMSG_HDRLEN {
                return None;
            }
            let message = datagram.get(..len)?;
            let next = len.next_multiple_of(NLMSG_ALIGNTO);
            datagram = datagram.get(next..).unwrap_or_default();
            Some(message)
        });
        bytes.filter_map(|bytes| {
            let (message, rest) = Self::read_from_prefix(bytes).ok()?;
            let identity = Identity::read_from_prefix(rest).unwrap_or_default().0;
            let from = (message.headers.idx, message.headers.val);
            (from == (CN_IDX_PROC, CN_VAL_PROC)).then_some((message, identity))
        })
    }
}

struct Listener {
    socket: Socket,
    /// The number of the last request.
    request: u32,
    /// The number of each CPU's next message; it is 0 for a CPU that is missing.
    next: HashMap<u32, u32>,
    /// Whether events were lost, and STATE was not sent since.
    lost: bool,
    /// The existing sessions, by the identities of their leaders: the number of each, and whether
    /// it was reported since STATE was sent.
    sessions: HashMap<u64, (u32, bool)>,
    /// The processes that ended since STATE was sent, until its answer: the state may still contain
    /// them.
    ended: Option<HashSet<u64>>,
}

impl Listener {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_CONNECTOR)?;
        socket.bind(&SocketAddr::new(0, CN_IDX_PROC))?;
        Ok(Self {
            socket,
            request: 0,
            next: HashMap::new(),
            lost: false,
            sessions: HashMap::new(),
            ended: None,
        })
    }

    /// Sends an `enum proc_cn_mcast_op` or a [`Listen`].
    fn request(&mut self, data: &(impl Immutable + IntoBytes)) -> io::Result<()> {
        self.request = self.request.wrapping_add(1);
        let headers = Headers {
            nlmsg_len: (size_of::<Headers>() + size_of_val(data)) as u32,
            nlmsg_type: NLMSG_DONE,
            nlmsg_flags: 0,
            nlmsg_seq: 0,
            nlmsg_pid: 0,
            idx: CN_IDX_PROC,
            val: CN_VAL_PROC,
            seq: self.request,
            ack: 0,
            len: size_of_val(data) as u16,
            flags: 0,
        };
        let request = [headers.as_bytes(), data.as_bytes()].concat();
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(&request, &kernel, 0)?;
        Ok(())
    }

    /// Whether this is the answer to the last request.
    fn is_answer(&self, message: &Message) -> bool {
        let numbers = (message.headers.seq, message.headers.ack);
        message.what == PROC_EVENT_NONE && numbers == (self.request, 1)
    }

    /// Sends LISTEN, and checks the answer.
    fn start(&mut self, mask: u32) -> Result<()> {
        self.request(&Listen {
            op: PROC_CN_MCAST_LISTEN,
            mask,
            flags: PROC_CN_LISTEN_PROCESSES | PROC_CN_LISTEN_IDENTITY | PROC_CN_LISTEN_BATCH,
            reserved: 0,
            cgroup_id: 0,
        })?;

        // Kernels with PROC_CN_FEATURE_ACK send nothing before the answer.
        self.wait(PollTimeout::from(ANSWER_LIMIT_MS))?;
        let datagram = self.receive().unwrap_or_default();
        let answer = match Message::all(&datagram).next() {
            Some((message, _)) if self.is_answer(&message) => message,
            _ => return Err("this kernel does not answer requests".into()),
        };

        let [error, features, ..] = answer.data;
        if features & FEATURES != FEATURES {
            return Err(format!("this kernel has features {features:#x} only").into());
        }
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error as i32).into());
        }

        // The numbers of this CPU start after the answer's, all others at 0.
        self.next.insert(answer.cpu, answer.headers.seq + 1);
        println!("listening, features {features:#x}");
        Ok(())
    }

    /// Waits until there is something to read.
    fn wait(&self, timeout: PollTimeout) -> nix::Result<()> {
        // SAFETY: The socket stays open for as long as `self` is borrowed.
        let socket = unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) };
        match poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads one datagram. Returns an empty one if it is not from the kernel. Fails with `EAGAIN`
    /// if there is none, and with `ENOBUFS` if events were lost.
    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut datagram = Vec::with_capacity(PROC_CN_BATCH_SIZE);
        let (_, sender) = self.socket.recv_from(&mut datagram, MSG_DONTWAIT)?;
        if sender.port_number() != 0 {
            datagram.clear();
        }
        Ok(datagram)
    }

    /// Reads all messages, and then sends STATE if events were lost.
    fn drain(&mut self) -> Result<()> {
        loop {
            match self.receive() {
                Ok(datagram) => {
                    for (message, identity) in Message::all(&datagram) {
                        self.check_number(&message);
                        self.show(&message, &identity)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                    println!("no room for more events");
                    self.lost = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        // STATE is not sent earlier: until the queue is empty, new events are also lost. If STATE
        // was sent before, its answer was read by now, unless the state stopped.
        if mem::take(&mut self.lost) || self.ended.is_some() {
            self.ask()?;
        }
        Ok(())
    }

    /// Sends STATE, when nothing is left to read.
    fn ask(&mut self) -> io::Result<()> {
        for (_, reported) in self.sessions.values_mut() {
            *reported = false;
        }
        self.ended = Some(HashSet::new());
        self.request(&PROC_CN_MCAST_STATE)
    }

    /// A session that was not reported has ended, and its `PROC_EVENT_EXIT` was lost.
    fn end_state(&mut self) {
        self.ended = None;
        self.sessions.retain(|_, (leader, reported)| {
            if !*reported {
                println!("session {leader} is gone");
            }
            *reported
        });
    }

    /// Detects events that were lost before a message.
    fn check_number(&mut self, message: &Message) {
        if message.cpu == NO_CPU {
            return;
        }
        let next = self.next.entry(message.cpu).or_default();
        let gap = message.headers.seq.wrapping_sub(*next);
        *next = message.headers.seq.wrapping_add(1);
        if gap != 0 {
            println!("lost {gap} events of CPU {}", message.cpu);
            self.lost = true;
        }
    }

    fn show(&mut self, message: &Message, identity: &Identity) -> io::Result<()> {
        match (message.what, message.data) {
            (PROC_EVENT_SID, [_, leader, _, parent, session, group]) => {
                self.sessions.insert(identity.process, (leader, true));
                println!(
                    "session {leader} began: child of {parent}, left session {session} and process \
                     group {group} {identity}"
                );
            }
            (PROC_EVENT_EXIT, [_, process, code, ..]) => {
                self.sessions.remove(&identity.process);
                if let Some(ended) = &mut self.ended {
                    ended.insert(identity.process);
                }
                match ExitStatus::from_raw(code as i32).signal() {
                    Some(signal) => {
                        println!("process {process} was killed by signal {signal} {identity}")
                    }
                    None => {
                        let status = code >> 8 & 0xff;
                        println!("process {process} exited with status {status} {identity}")
                    }
                }
            }
            // A session has the number of its leader.
            (PROC_EVENT_PROCESS, [_, leader, _, _, session, _]) if leader == session => {
                let ended = self.ended.as_ref();
                if ended.is_some_and(|ended| ended.contains(&identity.process)) {
                    return Ok(());
                }
                let known = self.sessions.insert(identity.process, (leader, true));
                if known.is_none() {
                    println!("session {session} is there {identity}");
                }
            }
            // Answers to earlier requests are ignored.
            (PROC_EVENT_NONE, [error, _, processes, ..]) if self.is_answer(message) => {
                match error as i32 {
                    0 => {
                        self.end_state();
                        println!("{processes} processes are there");
                    }
                    EBUSY => {}
                    error => return Err(io::Error::from_raw_os_error(error)),
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut listener = Listener::open()?;
    listener.start(PROC_EVENT_SID | PROC_EVENT_EXIT)?;

    // Start as after a loss: with the existing processes.
    listener.lost = true;
    loop {
        listener.drain()?;
        listener.wait(PollTimeout::NONE)?;
    }
}
