// SPDX-License-Identifier: GPL-2.0
//! A listener for process events: shows each session that begins, each process that exits, and what
//! was lost, until it is interrupted.
//!
//! Crates: netlink-sys, nix (with feature `poll`), zerocopy (with feature `derive`).

use std::collections::HashMap;
use std::error::Error;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{fs, io, iter};

use netlink_sys::protocols::NETLINK_CONNECTOR;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc::{ENOBUFS, MSG_DONTWAIT};
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
const PROC_EVENT_NONE: u32 = 0;
const PROC_EVENT_SID: u32 = 0x0000_0080;
const PROC_EVENT_EXIT: u32 = 0x8000_0000;
const PROC_CN_FEATURE_ACK: u32 = 0x1;
const PROC_CN_FEATURE_SEQ: u32 = 0x2;
const PROC_CN_FEATURE_SID_ORIGIN: u32 = 0x8;
const PROC_CN_FEATURE_IDENTITY: u32 = 0x40;
const PROC_CN_FEATURE_BATCH: u32 = 0x80;
const PROC_CN_LISTEN_IDENTITY: u32 = 0x2;
const PROC_CN_LISTEN_BATCH: u32 = 0x4;
const PROC_CN_BATCH_SIZE: usize = 4096;

/// What this program can't do without.
const FEATURES: u32 = PROC_CN_FEATURE_ACK | PROC_CN_FEATURE_SEQ | PROC_CN_FEATURE_SID_ORIGIN;

/// The CPU of a message that is not numbered.
const NO_CPU: u32 = u32::MAX;

const REQUEST_SEQ: u32 = 1000;
const REQUEST_ACK: u32 = 2000;
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

/// What is behind the headers of a request: a `struct proc_input`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Input {
    op: u32,
    mask: u32,
}

/// Or a `struct proc_listen`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Listen {
    op: u32,
    mask: u32,
    flags: u32,
    reserved: u32,
    cgroup_id: u64,
}

/// A message of the kernel: `struct proc_event` behind the headers, the union in it as words.
#[derive(FromBytes)]
#[repr(C)]
struct Message {
    headers: Headers,
    what: u32,
    cpu: u32,
    timestamp_ns: [u32; 2],
    data: [u32; 6],
}

/// What follows an event, if the kernel has it: `struct proc_event_identity`, not aligned.
#[derive(FromBytes)]
#[repr(C)]
struct Identity {
    process: u64,
    thread: u64,
    other: u64,
    cgroup: u64,
    start_ns: u64,
}

impl Message {
    /// The messages of a datagram that are of interest: events, and the answers to requests. One is
    /// behind the other, as `NLMSG_NEXT()` finds them.
    fn all(mut datagram: &[u8]) -> impl Iterator<Item = (Self, Option<Identity>)> + '_ {
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
            let identity = Identity::read_from_prefix(rest).ok();
            let from = (message.headers.idx, message.headers.val);
            (from == (CN_IDX_PROC, CN_VAL_PROC)).then_some((message, identity.map(|(it, _)| it)))
        })
    }
}

struct Listener {
    socket: Socket,
    /// The number of each CPU's next message; 0 for a CPU that is not in it.
    next: HashMap<u32, u32>,
    /// Whether something was lost, and /proc was not read since.
    lost: bool,
}

impl Listener {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_CONNECTOR)?;
        socket.bind(&SocketAddr::new(0, CN_IDX_PROC))?;
        Ok(Self {
            socket,
            next: HashMap::new(),
            lost: false,
        })
    }

    /// Sends an [`Input`] or a [`Listen`].
    fn request(&self, data: &(impl Immutable + IntoBytes)) -> io::Result<()> {
        let headers = Headers {
            nlmsg_len: (size_of::<Headers>() + size_of_val(data)) as u32,
            nlmsg_type: NLMSG_DONE,
            nlmsg_flags: 0,
            nlmsg_seq: 0,
            nlmsg_pid: 0,
            idx: CN_IDX_PROC,
            val: CN_VAL_PROC,
            seq: REQUEST_SEQ,
            ack: REQUEST_ACK,
            len: size_of_val(data) as u16,
            flags: 0,
        };
        let request = [headers.as_bytes(), data.as_bytes()].concat();
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(&request, &kernel, 0)?;
        Ok(())
    }

    /// Asks for events, and makes sure that they come.
    fn start(&mut self, mask: u32) -> Result<()> {
        let op = PROC_CN_MCAST_LISTEN;
        self.request(&Input { op, mask })?;

        // Kernels with PROC_CN_FEATURE_ACK send nothing before the answer.
        self.wait(PollTimeout::from(ANSWER_LIMIT_MS))?;
        let datagram = self.receive().unwrap_or_default();
        let answer = match Message::all(&datagram).next() {
            Some((message, _))
                if message.what == PROC_EVENT_NONE
                    && message.headers.seq == REQUEST_SEQ
                    && message.headers.ack == REQUEST_ACK + 1 =>
            {
                message
            }
            _ => return Err("this kernel does not answer requests".into()),
        };

        let [error, features, ..] = answer.data;
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error as i32).into());
        }
        if features & FEATURES != FEATURES {
            return Err(format!("this kernel has features {features:#x} only").into());
        }

        // The numbers of the answer's CPU go on from it, all others from 0.
        self.next.insert(answer.cpu, answer.headers.seq + 1);
        println!("listening, features {features:#x}");

        // Events may come before this answer, which is of no interest: on an error nothing changes,
        // and events come as they do on older kernels.
        let mut flags = 0;
        if features & PROC_CN_FEATURE_BATCH != 0 {
            flags |= PROC_CN_LISTEN_BATCH;
        }
        if features & PROC_CN_FEATURE_IDENTITY != 0 {
            flags |= PROC_CN_LISTEN_IDENTITY;
        }
        if flags != 0 {
            self.request(&Listen {
                op,
                mask,
                flags,
                reserved: 0,
                cgroup_id: 0,
            })?;
        }
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

    /// Reads one datagram, of which nothing is left when it is not the kernel's. Fails with
    /// `EAGAIN` when there is none, and with `ENOBUFS` when events were lost.
    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut datagram = Vec::with_capacity(PROC_CN_BATCH_SIZE);
        let (_, sender) = self.socket.recv_from(&mut datagram, MSG_DONTWAIT)?;
        if sender.port_number() != 0 {
            datagram.clear();
        }
        Ok(datagram)
    }

    /// Reads all there is, and then makes up for what is not.
    fn drain(&mut self) -> Result<()> {
        loop {
            match self.receive() {
                Ok(datagram) => {
                    for (message, identity) in Message::all(&datagram) {
                        self.check_number(&message);
                        show(&message, identity);
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
        // Not before: until the queue is empty, new events are lost, too.
        if std::mem::take(&mut self.lost) {
            show_all_sessions()?;
        }
        Ok(())
    }

    /// Notices what is missing before a message.
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
}

fn show(message: &Message, identity: Option<Identity>) {
    // What tells the process from others that get its number.
    let identity = identity
        .map(|it| format!(" (pidfd inode {}, cgroup {})", it.process, it.cgroup))
        .unwrap_or_default();
    match (message.what, message.data) {
        (PROC_EVENT_SID, [_, leader, _, parent, session, group]) => println!(
            "session {leader} began: child of {parent}, left session {session} and process group \
             {group}{identity}"
        ),
        // Other threads of a process are of no interest here.
        (PROC_EVENT_EXIT, [thread, process, code, ..]) if thread == process => {
            let status = ExitStatus::from_raw(code as i32);
            match status.signal() {
                Some(signal) => {
                    println!("process {process} was killed by signal {signal}{identity}")
                }
                None => {
                    let status = code >> 8 & 0xff;
                    println!("process {process} exited with status {status}{identity}")
                }
            }
        }
        _ => {}
    }
}

/// Finds out by /proc what no event tells: what was before, and what was lost.
fn show_all_sessions() -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Who is gone by now leads no session.
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        if session(&String::from_utf8_lossy(&stat)) == Some(pid) {
            println!("session {pid} is there");
        }
    }
    Ok(())
}

/// The session in a line of /proc/PID/stat. The name may hold anything; behind it are the state,
/// the parent, the process group and the session.
fn session(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(3)?.parse().ok()
}

fn main() -> Result<()> {
    let mut listener = Listener::open()?;
    listener.start(PROC_EVENT_SID | PROC_EVENT_EXIT)?;

    // In this order, so that no session is missed in between.
    show_all_sessions()?;
    loop {
        listener.drain()?;
        listener.wait(PollTimeout::NONE)?;
    }
}
