// SPDX-License-Identifier: GPL-2.0
//! What does not change during a run, and what follows from it for each message that is read.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::cgroups::Cgroups;
use super::message::Request;
use super::requests::ExpectedAnswer;
use super::this_process::ThisProcess;
use crate::cpus::cpus;
use crate::debugfs::{ListenerLine, Listing, open};
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::procfs::own_namespace;
use crate::wire::{
    CN_PROC, ConnectorHeader, Event, EventBody, IGNORE, Identity, MESSAGE_SIZE, NLM_F_MULTI,
    NLMSG_DONE, NLMSG_EVENT, NO_CPU, NetlinkHeader, Received, Task,
};

/// The bytes of an answer that report the kernel's features.
const FEATURES: Range<usize> = 4..8;

/// The bytes of an answer that report how many processes the state had.
const PROCESSES: Range<usize> = 8..12;

/// The fields of a message's headers that are not the same in all messages.
struct Headers {
    kind: u16,
    flags: u16,
    seq: u32,
    ack: u32,
}

/// What does not change during a run. Only `this_process` has to be replaced in another process.
#[derive(Clone)]
pub struct Environment {
    cpus: Arc<[usize]>,
    features: [u8; 4],
    since: u64,
    listing: Arc<File>,
    user_ns: u64,
    /// The cgroups that exist.
    pub cgroups: Arc<Cgroups>,
    pub this_process: ThisProcess,
}

impl Environment {
    /// Collects this, in the initial namespaces.
    pub fn new() -> Result<Self, Failure> {
        let since = now(ClockId::CLOCK_MONOTONIC)?;
        let cgroups = Cgroups::new()?;
        let mut listener = Listener::open()?;
        listener.request(&[IGNORE])?;
        let answer = listener.answer()?;
        let [_, _, _, _, a, b, c, d, ..] = answer.message.body.data;
        Ok(Self {
            cpus: cpus()?.into(),
            features: [a, b, c, d],
            since,
            listing: open()?.into(),
            user_ns: own_namespace("user")?,
            this_process: ThisProcess::find(&cgroups)?,
            cgroups: cgroups.into(),
        })
    }

    /// The same for this process, which was forked since, or moved to another cgroup.
    pub fn of_this_process(&self) -> Result<Self, Failure> {
        Ok(Self {
            this_process: ThisProcess::find(&self.cgroups)?,
            ..self.clone()
        })
    }

    /// Whether this process has the ids of the initial namespaces, and so may map them in others.
    pub fn has_initial_ids(&self) -> Result<bool, Failure> {
        Ok(own_namespace("user")? == self.user_ns)
    }

    /// The lines of listeners with one of these port ids, in a network namespace.
    pub fn lines(&self, net_ns: u64, port_ids: &[u32]) -> Result<Vec<ListenerLine>, Failure> {
        // Other listeners come and go while the listing is written, so that the count is of no use.
        let lines = Listing::read_from(&self.listing)?.lines.into_iter();
        Ok(lines
            .filter(|line| line.net_ns == net_ns && port_ids.contains(&line.port_id))
            .collect())
    }

    /// Expects each byte of an answer to be right, except for the CPU.
    pub fn check_answer(&self, received: &Received, expected: &ExpectedAnswer) -> TestResult {
        let mut data = [0; 24];
        data[..4].copy_from_slice(&expected.error.to_ne_bytes());
        data[FEATURES].copy_from_slice(&self.features);
        data[PROCESSES].copy_from_slice(&expected.processes.to_ne_bytes());
        let headers = Headers {
            kind: NLMSG_DONE,
            flags: 0,
            seq: expected.request.seq,
            ack: expected.request.ack.wrapping_add(1),
        };
        self.check_bytes(received, &headers, data)
    }

    /// Expects the same of the message about a process of the state, except for the pids in it.
    pub fn check_process(&self, received: &Received, request: &Request) -> TestResult {
        let event = &received.event;
        let (Task { pid, tgid }, other) = (event.subject(), event.other());
        expect(pid > 0, format!("a process's pid, got {event:?}"))?;
        expect_eq("a process's first thread", pid, tgid)?;
        expect(other >= 0, format!("a parent's pid, got {event:?}"))?;
        if self.this_process.is_subject(event) {
            self.this_process.check_process(event)?;
        }
        if let Some(identity) = received.identity {
            self.check_identity(event, identity)
                .map_err(|failure| failure.about(format!("{received:?}")))?;
        }
        expect_eq("CPU of a process", received.message.body.cpu, NO_CPU)?;
        let headers = Headers {
            kind: NLMSG_EVENT,
            flags: NLM_F_MULTI,
            seq: request.seq,
            ack: request.ack.wrapping_add(1),
        };
        self.check_bytes(received, &headers, received.message.body.data)
    }

    /// Whether a message is about this process.
    pub fn is_own(&self, received: &Received) -> bool {
        self.this_process.is_subject(&received.event)
    }

    /// Whether this process is in a cgroup or below it.
    pub fn is_within(&self, cgroup: u64) -> bool {
        self.cgroups.is_within(self.this_process.cgroup, cgroup)
    }

    /// Expects the same of an event, except for its number and for which of the two types it has:
    /// see [`super::checked_socket::check_wanted`].
    pub fn check_event(&self, received: &Received) -> TestResult {
        let body = received.message.body;
        let mut data = body.data;
        data[received.defined..].fill(0);
        if let Event::Comm { comm, .. } = received.event {
            let name = comm
                .0
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or_default();
            data[received.defined - comm.0.len() + name..].fill(0);
        }
        self.check_cpu(body.cpu)?;
        if let Some(identity) = received.identity {
            self.check_identity(&received.event, identity)
                .map_err(|failure| failure.about(format!("{received:?}")))?;
        }
        let kind = received.message.netlink.kind;
        let is_known = [NLMSG_DONE, NLMSG_EVENT].contains(&kind);
        expect(is_known, format!("a type that events have, got {kind}"))?;
        let headers = Headers {
            kind,
            flags: 0,
            seq: received.message.connector.seq,
            ack: 0,
        };
        self.check_bytes(received, &headers, data)
    }

    /// Expects numbers for the tasks that an event names, and for no other task. If the event is about
    /// this process, expects the numbers of this process.
    fn check_identity(&self, event: &Event, identity: Identity) -> TestResult {
        let Task { pid, tgid } = event.subject();
        let is_started = identity.start_ns <= now(ClockId::CLOCK_BOOTTIME)?;
        let got = (
            identity.process != 0,
            identity.thread == identity.process,
            identity.thread != 0,
            identity.other != 0,
            is_started,
        );
        let expected = (true, pid == tgid, true, event.other() != 0, true);
        expect_eq("what an identity has", got, expected)?;
        if self.this_process.is_subject(event) {
            return self.this_process.check(identity);
        }
        match self.cgroups.made() {
            0 => expect_eq("a cgroup where there are none", identity.cgroup, 0),
            _ => {
                let is_there = self.cgroups.has(identity.cgroup);
                expect(is_there, "a cgroup that exists")
            }
        }
    }

    /// Whether an event may have happened in a cgroup or below it, by what is known of its process.
    pub fn may_be_in(&self, received: &Received, cgroup: u64) -> bool {
        let known = match received.identity {
            Some(identity) => identity.cgroup,
            None if self.is_own(received) => self.this_process.cgroup,
            None => return true,
        };
        self.cgroups.is_within(known, cgroup)
    }

    /// Expects a CPU that exists.
    pub fn check_cpu(&self, cpu: u32) -> TestResult {
        let known = self.cpus.contains(&(cpu as usize));
        expect(known, format!("a CPU that exists, got {cpu}"))
    }

    fn check_bytes(&self, received: &Received, headers: &Headers, data: [u8; 24]) -> TestResult {
        let Headers {
            kind,
            flags,
            seq,
            ack,
        } = *headers;
        let message = received.message;
        expect_eq("sender", received.sender, (0, 1))?;
        let more = received.identity.map_or(0, |_| size_of::<Identity>());
        let netlink = NetlinkHeader {
            length: (MESSAGE_SIZE + more) as u32,
            kind,
            flags,
            seq,
            pid: 0,
        };
        expect_eq("netlink's header", message.netlink, netlink)?;
        let connector = ConnectorHeader {
            idx: CN_PROC,
            val: CN_PROC,
            seq,
            ack,
            length: (size_of::<EventBody>() + more) as u16,
            flags: 0,
        };
        expect_eq("the connector's header", message.connector, connector)?;
        expect_eq("data", message.body.data, data)?;
        let time = received.timestamp_ns();
        let is_now = (self.since..=now(ClockId::CLOCK_MONOTONIC)?).contains(&time);
        expect(is_now, format!("a time in this run, got {time} ns"))
    }
}

/// The time of a clock, in nanoseconds.
fn now(clock: ClockId) -> Result<u64, Failure> {
    Ok(u64::try_from(
        Duration::from(clock_gettime(clock)?).as_nanos(),
    )?)
}
