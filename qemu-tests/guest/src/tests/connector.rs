// SPDX-License-Identifier: GPL-2.0
//! Other users of the connector work as before, and only in the initial network namespace. There,
//! cn_test of the kernel's samples sends a message each second, and logs the messages that it gets.

use std::env;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use protocol::BUILD_VARIABLE;
use zerocopy::{FromBytes, IntoBytes};

use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{ALL, Container, Handover, NET};
use crate::support::kernel_log::Log;
use crate::test;
use crate::timeouts;
use crate::wire::{ConnectorHeader, NLMSG_DONE, NetlinkHeader, RequestHeader};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C33]).of([
    test!(another_callbacks_messages_arrive),
    test!(another_callback_is_called),
    test!(another_callback_is_in_the_initial_network_namespace_alone).covers(&[Line::C26]),
]);

/// cn_test's index, which is also its group, and its values. It has a callback for each value, and
/// sends with the second one.
const IDX: u32 = 14;
const VALUES: [u32; 2] = [0x456, 0x457];

/// What a socket binds to in order to join cn_test's group.
const GROUP: u32 = 1 << (IDX - 1);

/// How long to wait for a message that is sent each second.
const MESSAGE_LIMIT: Duration = Duration::from_secs(4);

/// cn_test, loaded until this is dropped.
struct CnTest(());

impl CnTest {
    fn load() -> Result<Self, Failure> {
        let build = env::var(BUILD_VARIABLE)
            .map_err(|_| Failure::new(format!("{BUILD_VARIABLE} does not name a directory")))?;
        let path = PathBuf::from(build).join("samples/connector/cn_test.ko");
        let file = File::open(&path).map_err(|error| {
            let path = path.display();
            Failure::new(format!(
                "{path}: {error}; build with CONFIG_SAMPLE_CONNECTOR=m"
            ))
        })?;
        finit_module(file, c"", ModuleInitFlags::empty())?;
        Ok(Self(()))
    }
}

impl Drop for CnTest {
    fn drop(&mut self) {
        if let Err(error) = delete_module(c"cn_test", DeleteModuleFlags::O_NONBLOCK) {
            eprintln!("cn_test is still loaded: {error}");
        }
    }
}

/// A socket in cn_test's group.
fn join() -> Result<Listener, Failure> {
    let mut socket = Socket::new(libc::NETLINK_CONNECTOR as isize)?;
    socket.bind(&SocketAddr::new(0, GROUP))?;
    Ok(Listener::from(socket))
}

/// Returns the number in cn_test's next message, or `None` if no message comes before the deadline.
fn next_number(member: &mut Listener, deadline: Instant) -> Result<Option<u32>, Failure> {
    let mut readable = [PollFd::new(member.as_fd(), PollFlags::POLLIN)];
    if poll(&mut readable, timeouts::poll_until(deadline))? == 0 {
        return Ok(None);
    }
    let mut datagram = Vec::with_capacity(4096);
    let (_, sender) = member
        .socket()
        .recv_from(&mut datagram, libc::MSG_DONTWAIT)?;
    let headers = NetlinkHeader::read_from_prefix(&datagram)
        .ok()
        .and_then(|(netlink, rest)| {
            let (connector, data) = ConnectorHeader::read_from_prefix(rest).ok()?;
            Some((netlink, connector, data))
        });
    let Some((netlink, connector, data)) = headers else {
        let length = datagram.len();
        return Err(Failure::new(format!("a message of {length} bytes came")));
    };
    let number = connector.seq;
    expect_eq(
        "the sender",
        (sender.port_number(), sender.multicast_groups()),
        (0, GROUP),
    )?;
    expect_eq(
        "the type",
        (netlink.kind, netlink.seq),
        (NLMSG_DONE, number),
    )?;
    expect_eq("the id", (connector.idx, connector.val), (IDX, VALUES[1]))?;
    let text = format!("counter = {number}\0");
    let data = data.get(..connector.length.into()).unwrap_or(data);
    expect_eq("the data", data, text.as_bytes())?;
    Ok(Some(number))
}

/// Expects two messages from cn_test, one after the other.
fn expect_messages(member: &mut Listener) -> TestResult {
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let number = next_number(member, timeouts::deadline(MESSAGE_LIMIT))?;
        numbers.push(number.ok_or_else(|| Failure::new("cn_test sent nothing"))?);
    }
    expect_eq("the second number", numbers[1], numbers[0] + 1)
}

/// Sends cn_test a message with this text. When this returns, cn_test's callback was called.
fn send(member: &mut Listener, text: &str) -> std::io::Result<()> {
    let data = [text.as_bytes(), b"\0"].concat();
    let netlink = NetlinkHeader {
        length: (size_of::<RequestHeader>() + data.len()) as u32,
        kind: NLMSG_DONE,
        flags: 0,
        seq: 0,
        pid: 0,
    };
    let connector = ConnectorHeader {
        idx: IDX,
        val: VALUES[0],
        seq: 42,
        ack: 77,
        length: data.len() as u16,
        flags: 0,
    };
    let request = [RequestHeader { netlink, connector }.as_bytes(), &data].concat();
    let address = SocketAddr::new(0, 0);
    member.socket().send_to(&request, &address, 0).map(drop)
}

/// Returns the messages that cn_test logged, without the part that depends on the time.
fn received(log: &mut Log) -> std::io::Result<Vec<String>> {
    let records = log.records()?;
    let received = records.iter().filter_map(|record| {
        let (_, rest) = record.split_once("cn_test_callback: ")?;
        let what = rest.split_once(": ").map_or(rest, |(_jiffies, what)| what);
        Some(what.trim_end().to_owned())
    });
    Ok(received.collect())
}

/// Returns what cn_test logs for a message with this text.
fn logged(text: &str) -> String {
    let length = text.len() + 1;
    let [val, _] = VALUES;
    format!("idx={IDX:x}, val={val:x}, seq=42, ack=77, len={length}: {text}.")
}

fn another_callbacks_messages_arrive() -> TestResult {
    let mut member = join()?;
    let _cn_test = CnTest::load()?;
    expect_messages(&mut member)
}

fn another_callback_is_called() -> TestResult {
    let _cn_test = CnTest::load()?;
    let mut log = Log::new()?;
    send(&mut join()?, "from outside")?;
    expect_eq("the log", received(&mut log)?, vec![logged("from outside")])
}

fn another_callback_is_in_the_initial_network_namespace_alone() -> TestResult {
    let _cn_test = CnTest::load()?;
    let listed = fs::read_to_string("/proc/self/net/connector")?;
    for val in VALUES {
        let line = format!("{:<15} {IDX}:{val}\n", "cn_test");
        expect(listed.contains(&line), format!("{line:?}, got {listed:?}"))?;
    }
    for kinds in [NET, ALL] {
        let container = Container::idle(kinds)?;
        let handover = Handover::new()?;
        let mut log = Log::new()?;
        container.run(|| {
            let mut inside = join()?;
            // Refused if the namespace has no connector, and dropped if it has one without cn_test.
            let _ = send(&mut inside, "from inside");
            handover.send(&inside)
        })?;
        let (mut inside, mut outside) = (handover.receive()?, join()?);
        send(&mut outside, "from outside")?;
        expect_eq("the log", received(&mut log)?, vec![logged("from outside")])?;
        expect_messages(&mut outside)?;
        let arrived = next_number(&mut inside, Instant::now())?;
        expect_eq("messages inside", arrived, None)?;
        // The unpatched kernel has no such file there.
        let listed = fs::read_to_string(container.proc("net/connector")).unwrap_or_default();
        expect(
            !listed.contains("cn_test"),
            format!("no cn_test, got {listed:?}"),
        )?;
    }
    Ok(())
}
