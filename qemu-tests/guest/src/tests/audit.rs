// SPDX-License-Identifier: GPL-2.0
//! Another user of netlink: the audit subsystem logs when a socket joins or leaves its multicast group.
//! Core netlink reports it by the calls that the connector also gets (`bind()` and `unbind()`).

use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use zerocopy::{FromBytes, IntoBytes};

use crate::child;
use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
use crate::support::process::{status, succeed};
use crate::test;
use crate::timeouts;
use crate::wire::NetlinkHeader;

pub const TESTS: &[Test] = &[test!(each_membership_begins_and_ends_as_often)
    .stock_fails("a group that is joined twice is left once")
    .covers(&[Line::C64])];

// The numbers of linux/audit.h.
const GROUP: u32 = 1;
const SET: u16 = 1001;
const EVENT_LISTENER: u16 = 1335;
const STATUS_ENABLED: u32 = 1;
/// The number of words in `struct audit_status`.
const STATUS_WORDS: usize = 11;

/// How long a record may take: a kernel thread sends it.
const RECORD_LIMIT: Duration = Duration::from_secs(5);

fn open() -> Result<Socket, Failure> {
    match Socket::new(libc::NETLINK_AUDIT as isize) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            Err(Failure::skip("the kernel has no CONFIG_AUDIT"))
        }
        socket => Ok(socket?),
    }
}

/// Audit logs until this is dropped.
struct Enabled(Socket);

impl Enabled {
    fn new() -> Result<Self, Failure> {
        let socket = open()?;
        let enabled = Self(socket);
        enabled.set(1)?;
        Ok(enabled)
    }

    fn set(&self, value: u32) -> TestResult {
        let mut words = [0; STATUS_WORDS];
        words[..2].copy_from_slice(&[STATUS_ENABLED, value]);
        let header = NetlinkHeader {
            length: (size_of::<NetlinkHeader>() + size_of_val(&words)) as u32,
            kind: SET,
            flags: (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16,
            seq: 0,
            pid: 0,
        };
        let message = [header.as_bytes(), words.as_bytes()].concat();
        self.0.send_to(&message, &SocketAddr::new(0, 0), 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        // The error follows the header.
        let error = &answer[size_of::<NetlinkHeader>()..][..4];
        expect_eq("error of audit", error, &[0; 4])
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        let _ = self.set(0);
    }
}

/// The processes and the operations, "connect" or "disconnect", that audit logs. Ends before the first
/// one of the process `last`.
fn operations(socket: &Socket, last: i32) -> Result<Vec<(i32, String)>, Failure> {
    let deadline = timeouts::deadline(RECORD_LIMIT);
    let mut operations = Vec::new();
    loop {
        let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, timeouts::poll_until(deadline))? == 0 {
            break;
        }
        let (record, _) = socket.recv_from_full()?;
        let Ok((header, text)) = NetlinkHeader::read_from_prefix(&record) else {
            return Err(Failure::new(format!("a netlink message, got {record:?}")));
        };
        if header.kind != EVENT_LISTENER {
            continue;
        }
        let text = String::from_utf8_lossy(text);
        let field = |name: &str| {
            text.split_whitespace()
                .find_map(|word| word.strip_prefix(name))
        };
        let (Some(pid), Some(operation)) = (field("pid="), field("op=")) else {
            return Err(Failure::new(format!(
                "a record with pid and op, got {text}"
            )));
        };
        let pid = pid
            .parse()
            .map_err(|_| Failure::new(format!("a pid, got {text}")))?;
        if pid == last {
            return Ok(operations);
        }
        operations.push((pid, operation.to_owned()));
    }
    Err(Failure::new(format!(
        "a record of {last}, got {operations:?}"
    )))
}

/// One socket joins by both system calls, and twice, and leaves by each, and another one is closed.
fn each_membership_begins_and_ends_as_often() -> TestResult {
    let _enabled = Enabled::new()?;
    let mut observer = open()?;
    // A message to a group does not go to sockets with the sender's port id, which is 0.
    observer.bind_auto()?;
    observer.add_membership(GROUP)?;
    let member = child::fork(|| {
        status(|| {
            let mut socket = open()?;
            socket.bind(&SocketAddr::new(0, GROUP))?;
            socket.add_membership(GROUP)?;
            let mut address = SocketAddr::new(0, 0);
            socket.get_address(&mut address)?;
            let port = address.port_number();
            socket.bind(&SocketAddr::new(port, GROUP))?;
            socket.bind(&SocketAddr::new(port, 0))?;
            socket.add_membership(GROUP)?;
            socket.drop_membership(GROUP)?;
            socket.drop_membership(GROUP)?;
            open()?.add_membership(GROUP)?;
            Ok(())
        })
    })?;
    let pid = member.pid().as_raw();
    succeed(member)?;
    let last = child::fork(|| status(|| Ok(open()?.add_membership(GROUP)?)))?;
    let last_pid = last.pid().as_raw();
    succeed(last)?;
    let operations = operations(&observer, last_pid)?;
    let count = |operation: &str| {
        let own = operations.iter().filter(|(own, _)| *own == pid);
        own.filter(|(_, own)| own == operation).count()
    };
    expect_eq(
        "connects and disconnects",
        (count("connect"), count("disconnect")),
        (5, 5),
    )
}
