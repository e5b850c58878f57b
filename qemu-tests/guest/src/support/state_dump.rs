// SPDX-License-Identifier: GPL-2.0
//! The dump of the state, as a listener reads it datagram by datagram, with checks of what all dumps have
//! in common.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::container;
use super::scenario::{ACK, SEQ};
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::proc_stat::TICK;
use crate::timeouts;
use crate::wire::{
    CN_PROC, Event, FEATURE_STATE, IDENTITY_MESSAGE_SIZE, Identity, LISTEN, MESSAGE_SIZE, Message,
    NLM_F_MULTI, NLMSG_DONE, NLMSG_EVENT, NO_CPU, PROCESS, Received, STATE, Task, mask,
    proc_listen_in,
};

/// How long a state may take.
const STATE_LIMIT: Duration = Duration::from_secs(20);

/// A kind of event that no test of the state raises.
pub const RARE: u32 = mask::PTRACE;

/// A listener whose answer was read.
pub fn listen(mask: u32, flags: u32) -> Result<Listener, Failure> {
    listen_in(mask, flags, 0)
}

/// The same, in a cgroup.
pub fn listen_in(mask: u32, flags: u32, cgroup_id: u64) -> Result<Listener, Failure> {
    let listener = container::open()?;
    listener.request(&proc_listen_in(LISTEN, mask, flags, cgroup_id))?;
    let answer = listener.receive_datagram()?;
    let is_done = matches!(
        answer.as_deref(),
        Some([answer]) if answer.event == Event::Ack { err: 0 }
    );
    expect(is_done, format!("a listener, got {answer:?}"))?;
    Ok(listener)
}

/// What a listener read after a request for the state.
#[derive(Default)]
pub struct StateDump {
    /// The datagrams of the state, without its answer.
    pub datagrams: Vec<Vec<Received>>,
    /// All other messages that came in between.
    pub others: Vec<Received>,
    answer: Option<Received>,
}

impl StateDump {
    /// Reads the next datagram, which has to be there. Returns whether the answer was read.
    #[track_caller]
    pub fn read(&mut self, listener: &Listener) -> Result<bool, Failure> {
        let datagram = listener.receive_datagram()?;
        let datagram =
            datagram.ok_or_else(|| Failure::new("expected the next piece of a state"))?;
        let is_part = |one: &&Received| one.message.netlink.flags & NLM_F_MULTI != 0;
        let parts = datagram.iter().filter(is_part).count();
        match datagram.as_slice() {
            [one] if parts == 0 && is_answer(one) => self.answer = Some(*one),
            others if parts == 0 => self.others.extend(others),
            only_parts if parts == only_parts.len() => self.datagrams.push(datagram),
            mixed => {
                let failure = format!("expected only parts of a state, got {mixed:?}");
                return Err(Failure::new(failure));
            }
        }
        Ok(self.answer.is_some())
    }

    /// Reads up to the answer, and checks all of the dump.
    #[track_caller]
    pub fn finish(mut self, listener: &Listener) -> Result<Self, Failure> {
        let limit = timeouts::deadline(STATE_LIMIT);
        while self.answer.is_none() {
            self.read(listener)?;
            expect(Instant::now() < limit, "the end of a state")?;
        }
        self.check()?;
        Ok(self)
    }

    /// The messages about processes.
    pub fn messages(&self) -> impl Iterator<Item = &Received> {
        self.datagrams.iter().flatten()
    }

    /// The errno of the answer.
    pub fn err(&self) -> Option<u32> {
        match self.answer?.event {
            Event::Ack { err } => Some(err),
            _ => None,
        }
    }

    /// Checks what all dumps have in common.
    #[track_caller]
    fn check(&self) -> TestResult {
        let mut last = 0;
        for received in self.messages() {
            let Message {
                netlink,
                connector,
                body,
            } = received.message;
            let size = match received.identity {
                Some(_) => IDENTITY_MESSAGE_SIZE,
                None => MESSAGE_SIZE,
            };
            expect_eq(
                "nlmsghdr: length, type, flags, seq, pid",
                (
                    netlink.length as usize,
                    netlink.kind,
                    netlink.flags,
                    netlink.seq,
                    netlink.pid,
                ),
                (size, NLMSG_EVENT, NLM_F_MULTI, SEQ, 0),
            )?;
            expect_eq(
                "cn_msg: idx, val, seq, ack, flags",
                (
                    connector.idx,
                    connector.val,
                    connector.seq,
                    connector.ack,
                    connector.flags,
                ),
                (CN_PROC, CN_PROC, SEQ, ACK + 1, 0),
            )?;
            expect_eq("what, CPU", (body.what, body.cpu), (PROCESS, NO_CPU))?;
            expect_eq("sender", received.sender, (0, CN_PROC))?;
            let Task { pid, tgid } = received.event.subject();
            expect_eq("process and its first thread", pid, tgid)?;
            expect(pid > last, format!("a pid above {last}, got {pid}"))?;
            last = pid;
        }
        let times: Vec<_> = self.messages().map(Received::timestamp_ns).collect();
        expect(times.is_sorted(), "times that rise")?;
        let Some(answer) = self.answer else {
            return Err(Failure::new("no answer"));
        };
        let Message { netlink, body, .. } = answer.message;
        expect_eq(
            "the answer's type, flags, CPU",
            (netlink.kind, netlink.flags, body.cpu),
            (NLMSG_DONE, 0, NO_CPU),
        )?;
        expect_eq("the answer's sender", answer.sender, (0, CN_PROC))?;
        let has_feature = answer.features() & FEATURE_STATE != 0;
        expect(has_feature, "the feature of the state")?;
        let count = self.messages().count();
        expect_eq("processes counted", answer.processes() as usize, count)
    }

    /// The message about a process.
    fn of(&self, pid: i32) -> Option<&Received> {
        self.messages()
            .find(|received| received.event.subject().pid == pid)
    }

    /// Whether a process is in it.
    pub fn has(&self, pid: i32) -> bool {
        self.of(pid).is_some()
    }

    /// The event about a process.
    #[track_caller]
    pub fn event(&self, pid: i32) -> Result<Event, Failure> {
        let received = self.of(pid);
        let event = received.map(|received| received.event);
        event.ok_or_else(|| Failure::new(format!("expected {pid} in the state")))
    }

    /// The identity of a process, with its start rounded down as in /proc.
    #[track_caller]
    pub fn identity(&self, pid: i32) -> Result<Identity, Failure> {
        let identity = self.of(pid).and_then(|received| received.identity);
        let missing = || Failure::new(format!("expected an identity of {pid}"));
        let identity = identity.ok_or_else(missing)?;
        Ok(Identity {
            start_ns: identity.start_ns / TICK * TICK,
            ..identity
        })
    }

    /// All of its events.
    pub fn events(&self) -> Vec<Event> {
        self.messages().map(|received| received.event).collect()
    }

    /// The pids of the processes in it.
    pub fn pids(&self) -> Vec<i32> {
        let events = self.messages().map(|received| received.event);
        events.map(|event| event.subject().pid).collect()
    }
}

/// Whether a message is the answer to a request for the state.
pub fn is_answer(received: &Received) -> bool {
    let connector = received.message.connector;
    received.event.bit() == 0 && (connector.seq, connector.ack) == (SEQ, ACK + 1)
}

/// Asks for the state.
pub fn ask(listener: &Listener) -> TestResult {
    Ok(listener.send(STATE.as_bytes(), SEQ, ACK)?)
}

/// The whole state.
#[track_caller]
pub fn state(listener: &Listener) -> Result<StateDump, Failure> {
    ask(listener)?;
    let dump = StateDump::default().finish(listener)?;
    expect_eq("err", dump.err(), Some(0))?;
    Ok(dump)
}

/// Whether a request was refused, or not even sent, for want of memory.
pub fn is_without_memory(error: &ListenerError) -> bool {
    let ListenerError::System(_, error) = error else {
        return false;
    };
    let errno = error.raw_os_error();
    [Errno::ENOMEM, Errno::ENOBUFS]
        .map(|errno| Some(errno as i32))
        .contains(&errno)
}
