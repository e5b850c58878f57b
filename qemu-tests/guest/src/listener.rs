// SPDX-License-Identifier: GPL-2.0
//! A listener: a netlink connector socket that asks for process events.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::time::{Duration, Instant};
use std::{fmt, io};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::dup;
use zerocopy::IntoBytes;

use crate::timeouts;
use crate::wire::{
    BATCH_SIZE, CGROUP, CN_PROC, ConnectorHeader, Event, IGNORE, LISTEN, NLMSG_DONE, NetlinkHeader,
    Received, RequestHeader, STATE, proc_listen, proc_listen_in,
};

/// How long to wait for an event that has to come.
pub const EVENT_LIMIT: Duration = Duration::from_secs(5);

/// How long to wait for an answer, which comes from the kernel's side of sendto(2).
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Room for the events of the whole guest while a test does not read.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Why a listener cannot return a message.
#[derive(Debug)]
pub enum ListenerError {
    /// A system call failed.
    System(&'static str, io::Error),
    /// The kernel sent something that is no process event.
    Malformed(String),
    /// The expected message did not arrive in time. The events that arrived instead are listed.
    Missing(String, Vec<Event>),
}

impl fmt::Display for ListenerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(call, error) => write!(formatter, "{call}: {error}"),
            Self::Malformed(what) => write!(formatter, "malformed message: {what}"),
            Self::Missing(what, seen) => {
                write!(
                    formatter,
                    "{what} did not arrive, but {} other messages did",
                    seen.len()
                )?;
                for event in seen.iter().rev().take(8).rev() {
                    write!(formatter, "\n  {event:?}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ListenerError {}

impl ListenerError {
    /// The error of a system call.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::System(_, error) => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// Whether messages were lost because there was no room for them.
    pub fn is_overrun(&self) -> bool {
        self.errno() == Some(Errno::ENOBUFS)
    }
}

/// A socket in the group of process events.
pub struct Listener {
    socket: Socket,
    /// Messages that were received while the listener waited for another one.
    pending: VecDeque<Received>,
    /// The rest of the last datagram.
    unread: VecDeque<Received>,
}

impl Listener {
    /// Opens and binds a socket that has not asked for anything yet.
    pub fn open() -> Result<Self, ListenerError> {
        let listener = Self::open_unprivileged()?;
        listener.enlarge_buffer()?;
        Ok(listener)
    }

    /// Makes the receive buffer larger than unprivileged users may.
    pub fn enlarge_buffer(&self) -> Result<(), ListenerError> {
        setsockopt(self, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|error| ListenerError::System("setsockopt(SO_RCVBUFFORCE)", error.into()))
    }

    /// As [`Self::open`], but with the default receive buffer.
    pub fn open_unprivileged() -> Result<Self, ListenerError> {
        let mut listener = Self::open_unbound()?;
        listener
            .socket
            .bind(&SocketAddr::new(0, CN_PROC))
            .map_err(|error| ListenerError::System("bind", error))?;
        Ok(listener)
    }

    /// A socket without an address and without a group.
    pub fn open_unbound() -> Result<Self, ListenerError> {
        Socket::new(libc::NETLINK_CONNECTOR as isize)
            .map(Self::from)
            .map_err(|error| ListenerError::System("socket", error))
    }

    /// The socket, for operations that only some tests need.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// The address that the kernel chose, which identifies the socket in the listing.
    pub fn port_id(&self) -> Result<u32, ListenerError> {
        let mut address = SocketAddr::new(0, 0);
        self.socket
            .get_address(&mut address)
            .map_err(|error| ListenerError::System("getsockname", error))?;
        Ok(address.port_number())
    }

    /// A listener for the events of a mask (8-byte form).
    pub fn listen(mask: u32) -> Result<Self, ListenerError> {
        let listener = Self::open()?;
        listener.request(&[LISTEN, mask])?;
        Ok(listener)
    }

    /// A listener for the events of a mask, with `PROC_CN_LISTEN_*` (24-byte form).
    pub fn listen_with(mask: u32, flags: u32) -> Result<Self, ListenerError> {
        let listener = Self::open()?;
        listener.request(&proc_listen(LISTEN, mask, flags))?;
        Ok(listener)
    }

    /// A listener for the events of a mask in a cgroup and those below it, with
    /// `PROC_CN_LISTEN_CGROUP` and other flags.
    pub fn listen_in(mask: u32, flags: u32, cgroup_id: u64) -> Result<Self, ListenerError> {
        let listener = Self::open()?;
        listener.request(&proc_listen_in(LISTEN, mask, flags | CGROUP, cgroup_id))?;
        Ok(listener)
    }

    /// A listener without a mask (4-byte form).
    pub fn listen_all() -> Result<Self, ListenerError> {
        let listener = Self::open()?;
        listener.request(&[LISTEN])?;
        Ok(listener)
    }

    /// Ends the subscription (4-byte form).
    pub fn ignore(&self) -> Result<(), ListenerError> {
        self.request(&[IGNORE])
    }

    /// Requests the state, which lists all processes (4-byte form). Its messages have this sequence
    /// number.
    pub fn ask_for_state(&self, seq: u32) -> Result<(), ListenerError> {
        self.send(STATE.as_bytes(), seq, 0)
    }

    /// Sends a request with the numbers 0, so that its answer cannot be recognised.
    pub fn request(&self, words: &[u32]) -> Result<(), ListenerError> {
        self.send(words.as_bytes(), 0, 0)
    }

    /// Sends a request. It has taken effect when this returns: the kernel handles it in sendto(2).
    pub fn send(&self, data: &[u8], seq: u32, ack: u32) -> Result<(), ListenerError> {
        self.send_datagram(&Self::request_datagram(data, seq, ack))
            .map_err(|error| ListenerError::System("sendto", error))
    }

    /// The bytes of a request.
    pub fn request_datagram(data: &[u8], seq: u32, ack: u32) -> Vec<u8> {
        let length = size_of::<RequestHeader>() + data.len();
        let netlink = NetlinkHeader {
            length: length as u32,
            kind: NLMSG_DONE,
            flags: 0,
            seq,
            pid: 0,
        };
        let length = data.len() as u16;
        let connector = ConnectorHeader {
            idx: CN_PROC,
            val: CN_PROC,
            seq,
            ack,
            length,
            flags: 0,
        };
        [RequestHeader { netlink, connector }.as_bytes(), data].concat()
    }

    /// Sends arbitrary bytes to the kernel.
    pub fn send_datagram(&self, datagram: &[u8]) -> io::Result<()> {
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(datagram, &kernel, 0).map(drop)
    }

    /// Another descriptor of the same socket.
    pub fn duplicate(&self) -> nix::Result<Self> {
        let descriptor = dup(self)?;
        // SAFETY: The descriptor is a socket, and its ownership is transferred.
        Ok(Self::from(unsafe {
            Socket::from_raw_fd(descriptor.into_raw_fd())
        }))
    }

    /// The next message, or `None` if none arrives before the deadline.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<Received>, ListenerError> {
        if let Some(received) = self.pending.pop_front() {
            return Ok(Some(received));
        }
        self.receive_new(deadline)
    }

    fn receive_new(&mut self, deadline: Instant) -> Result<Option<Received>, ListenerError> {
        loop {
            if let Some(received) = self.unread.pop_front() {
                return Ok(Some(received));
            }
            if let Some(datagram) = self.receive_datagram()? {
                self.unread = datagram.into();
                continue;
            }
            let timeout = timeouts::poll_until(deadline);
            if timeout == PollTimeout::ZERO {
                return Ok(None);
            }
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(ListenerError::System("poll", error.into())),
            }
        }
    }

    /// The messages of the next datagram, if there is one.
    pub fn receive_datagram(&self) -> Result<Option<Vec<Received>>, ListenerError> {
        // The buffer has one byte more than a datagram, which shows a datagram that is too long.
        let mut buffer = Vec::with_capacity(BATCH_SIZE + 1);
        match self.socket.recv_from(&mut buffer, libc::MSG_DONTWAIT) {
            Ok((_, sender)) => {
                let sender = (sender.port_number(), sender.multicast_groups());
                let received = Received::decode_all(&buffer, sender);
                received.map(Some).map_err(ListenerError::Malformed)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(ListenerError::System("recvfrom", error)),
        }
    }

    /// Waits for the first message that is wanted. The others stay, in their order.
    pub fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&Received) -> bool,
    ) -> Result<Received, ListenerError> {
        self.wait_until(what, timeouts::deadline(EVENT_LIMIT), wanted)
    }

    /// Waits for the first message that is wanted, until a deadline. The others stay.
    fn wait_until(
        &mut self,
        what: &str,
        deadline: Instant,
        wanted: impl Fn(&Received) -> bool,
    ) -> Result<Received, ListenerError> {
        if let Some(index) = self.pending.iter().position(&wanted) {
            return Ok(self
                .pending
                .remove(index)
                .expect("the index was just found"));
        }
        while let Some(received) = self.receive_new(deadline)? {
            if wanted(&received) {
                return Ok(received);
            }
            self.pending.push_back(received);
        }
        let seen = self.pending.iter().map(|received| received.event).collect();
        Err(ListenerError::Missing(what.to_owned(), seen))
    }

    /// Waits for the answer to a request.
    pub fn answer(&mut self) -> Result<Received, ListenerError> {
        let deadline = timeouts::deadline(ANSWER_LIMIT);
        self.wait_until("the answer", deadline, |received| received.event.bit() == 0)
    }

    /// Takes all messages up to the first wanted one, which is the last of the list.
    pub fn take_through(
        &mut self,
        what: &str,
        wanted: impl Fn(&Received) -> bool,
    ) -> Result<Vec<Received>, ListenerError> {
        let deadline = timeouts::deadline(EVENT_LIMIT);
        let mut taken = Vec::new();
        while let Some(received) = self.receive(deadline)? {
            taken.push(received);
            if wanted(&received) {
                return Ok(taken);
            }
        }
        let seen = taken.iter().map(|received| received.event).collect();
        Err(ListenerError::Missing(what.to_owned(), seen))
    }

    /// Takes all messages that have arrived, without waiting.
    pub fn take_queued(&mut self) -> Result<Vec<Received>, ListenerError> {
        let now = Instant::now();
        let mut taken = Vec::new();
        while let Some(received) = self.receive(now)? {
            taken.push(received);
        }
        Ok(taken)
    }

    /// Takes the answers that have arrived, without waiting. The events stay, in their order.
    pub fn take_answers(&mut self) -> Result<Vec<Received>, ListenerError> {
        let messages = self.take_queued()?.into_iter();
        let (answers, events): (Vec<_>, Vec<_>) =
            messages.partition(|received| received.event.bit() == 0);
        self.pending = events.into();
        Ok(answers)
    }

    /// Takes all messages that have arrived, also if some messages were lost.
    pub fn drain(&mut self) -> Result<Drained, ListenerError> {
        let now = Instant::now();
        let mut drained = Drained::default();
        loop {
            match self.receive(now) {
                Ok(None) => return Ok(drained),
                Ok(Some(received)) => drained.messages.push(received),
                Err(error) if error.is_overrun() => drained.enobufs += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes all datagrams that have arrived.
    pub fn take_datagrams(&self) -> Result<Vec<Vec<Received>>, ListenerError> {
        let mut datagrams = Vec::new();
        while let Some(datagram) = self.receive_datagram()? {
            datagrams.push(datagram);
        }
        Ok(datagrams)
    }
}

/// The messages that had arrived, and how often a read failed with ENOBUFS.
#[derive(Debug, Default)]
pub struct Drained {
    pub messages: Vec<Received>,
    pub enobufs: usize,
}

impl From<Socket> for Listener {
    fn from(socket: Socket) -> Self {
        Self {
            socket,
            pending: VecDeque::new(),
            unread: VecDeque::new(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The socket is open as long as the listener lives, which the lifetime ensures.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}
