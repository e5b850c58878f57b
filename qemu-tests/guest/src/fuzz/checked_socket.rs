// SPDX-License-Identifier: GPL-2.0
//! A socket under test, with a model of it: whether it listens, for which events, in which form, and
//! which numbers come next. Every byte that the kernel sends to it is compared with the model.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use super::environment::Environment;
use super::message::{Command, Listen, Message, Reaction};
use super::reading::{Read, Reading};
use super::requests::{ExpectedAnswer, Requests};
use super::tally::Tally;
use crate::debugfs::ListenerLine;
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::own_task;
use crate::support::sequence_numbers::SequenceNumbers;
use crate::support::socket_filter::keep_bytes;
use crate::timeouts;
use crate::wire::{Comm, Event, NO_CPU, PROCESS, Received, mask};

/// How long the sender of an event may take to count it.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// How many events of this process a socket may leave unread. The buffer that every user has holds
/// about twice as many, each in a datagram of its own.
const UNREAD: usize = 100;

/// The same while a state is sent, which may fill half of the buffer.
const UNREAD_BESIDE_STATE: usize = 40;

/// What a socket asked for, by the answers that were read.
#[derive(Default)]
struct Subscription {
    /// What it listens for, and in which form, if it listens.
    now: Option<Listen>,
    /// What it listened for earlier, since it became a listener. Each comes with the time of the
    /// answer to the LISTEN that changed it. LISTEN waits for no grace period: an event that was
    /// reported before that time may come later, in the form that was asked for earlier.
    before: Vec<(Listen, u64)>,
}

impl Subscription {
    /// Notes that LISTEN was answered at this time.
    fn listen(&mut self, listen: Listen, time: u64) {
        let before = self.now.replace(listen);
        self.before.extend(before.map(|before| (before, time)));
    }

    /// Notes that the socket no longer listens. All events that were reported to it are queued.
    fn end(&mut self) {
        *self = Self::default();
    }

    /// The requests that an event which was reported at this time may match.
    fn at(&self, time: u64) -> impl Iterator<Item = Listen> {
        let before = self.before.iter().filter(move |(_, until)| time <= *until);
        self.now
            .into_iter()
            .chain(before.map(|(listen, _)| *listen))
    }
}

/// A socket, by all descriptors that this process has of it, and its model.
pub struct CheckedSocket {
    pub handles: Vec<Listener>,
    pub is_member: bool,
    /// Whether it was opened in a user namespace that is neither this process's nor an ancestor of
    /// it. Then this process can't make it listen.
    is_foreign: bool,
    /// Whether it has a filter, so that each part of the state has a datagram of its own.
    has_filter: bool,
    requests: Requests,
    asked: Subscription,
    /// How many events it has read since it began to listen, truncated ones included.
    events: u64,
    numbers: SequenceNumbers,
    /// The new names of this task whose events the socket still has to read.
    names: VecDeque<Comm>,
    /// The datagram to read next, if it was peeked at. It must not change any more.
    seen: Option<Read>,
}

impl CheckedSocket {
    /// A socket that has asked for nothing yet.
    pub fn new(listener: Listener, is_member: bool) -> Self {
        Self {
            handles: vec![listener],
            is_member,
            is_foreign: false,
            has_filter: false,
            requests: Requests::new(),
            asked: Subscription::default(),
            events: 0,
            numbers: SequenceNumbers::default(),
            names: VecDeque::new(),
            seen: None,
        }
    }

    /// A socket that another process made listen. Its unread messages show which numbers come next.
    pub fn adopt(
        mut listener: Listener,
        listen: Listen,
        is_foreign: bool,
    ) -> Result<Self, Failure> {
        let queued = listener.take_queued()?;
        let mut asked = Subscription::default();
        asked.listen(listen, 0);
        Ok(Self {
            is_foreign,
            requests: Requests::listening(listen),
            asked,
            numbers: SequenceNumbers::after(&queued),
            ..Self::new(listener, true)
        })
    }

    /// Sends a message, and expects the reaction that the model predicts.
    pub fn send(
        &mut self,
        message: &Message,
        environment: &Environment,
        tally: &mut Tally,
    ) -> TestResult {
        self.post(message, environment, tally)?;
        self.drain(environment, tally)
            .map_err(|failure| failure.about(format!("{message:?}")))
    }

    /// Sends a message, and leaves its answer to be read later.
    pub fn post(
        &mut self,
        message: &Message,
        environment: &Environment,
        tally: &mut Tally,
    ) -> TestResult {
        let message = self.requests.distinct(message);
        let datagram = message.bytes(environment.cgroups.made());
        let reaction = Reaction::of(&datagram, &environment.cgroups);
        let sent = self.handle()?.send_datagram(&datagram);
        tally.messages += 1;
        check_sent(&reaction, sent).map_err(|failure| failure.about(format!("{message:?}")))?;
        tally.count(&reaction);
        if let Reaction::Answered(request) = reaction {
            let is_in = |cgroup| environment.is_within(cgroup);
            self.requests.sent(request, self.is_foreign, is_in);
        }
        Ok(())
    }

    /// Reads all that is queued. Expects all that was asked for, and nothing else.
    pub fn drain(&mut self, environment: &Environment, tally: &mut Tally) -> TestResult {
        while let Some(datagram) = self.next(MsgFlags::empty())? {
            self.took(&datagram, environment, tally)?;
        }
        self.requests.expect_answered()?;
        let unread = self.names.len();
        expect_eq("names of this task that were not reported", unread, 0)
    }

    /// Attaches a filter that keeps everything, once the socket has got all that it asked for.
    pub fn filter(&mut self, environment: &Environment, tally: &mut Tally) -> TestResult {
        self.drain(environment, tally)?;
        self.has_filter = true;
        Ok(keep_bytes(self.handle()?, u32::MAX)?)
    }

    /// Peeks at the next datagram, if there is one.
    pub fn peek(&mut self, reading: Reading, tally: &mut Tally) -> TestResult {
        let part = reading.read(self.handle()?, MsgFlags::MSG_PEEK)?;
        if part.is_none() {
            return expect_eq("the datagram that was peeked at", self.seen.take(), None);
        }
        tally.peeks += 1;
        // The kernel appends nothing to it any more.
        let whole = self.next(MsgFlags::MSG_PEEK)?;
        let whole = whole.ok_or_else(|| Failure::new("the datagram that was peeked at is gone"))?;
        self.seen = Some(whole.clone());
        reading.check(part, whole)
    }

    /// Reads one datagram, if there is one. A peek at it shows what does not fit into the buffer.
    pub fn read(
        &mut self,
        reading: Reading,
        environment: &Environment,
        tally: &mut Tally,
    ) -> TestResult {
        let Some(whole) = self.next(MsgFlags::MSG_PEEK)? else {
            return Ok(());
        };
        let part = reading.read(self.handle()?, MsgFlags::empty())?;
        tally.cut += u64::from(part.as_ref().is_some_and(|part| part.is_cut));
        reading.check(part, whole.clone())?;
        self.took(&whole, environment, tally)
    }

    /// Notes that the socket left the group. If it was a member, it no longer listens.
    pub fn left(&mut self, environment: &Environment, tally: &mut Tally) -> TestResult {
        let was_member = std::mem::take(&mut self.is_member);
        if was_member {
            self.requests.ended();
        }
        self.drain(environment, tally)?;
        if was_member {
            self.asked.end();
        }
        Ok(())
    }

    /// Notes that this task has a new name.
    pub fn renamed(&mut self, name: Comm, environment: &Environment) {
        let (cgroups, own) = (&environment.cgroups, environment.this_process.cgroup);
        let gets_name = |listen: Listen| {
            let cgroup = listen.cgroup();
            listen.mask & mask::COMM != 0 && cgroup.is_none_or(|id| cgroups.is_within(own, id))
        };
        if self.requests.listens().is_some_and(gets_name) {
            self.names.push_back(name);
        }
    }

    /// Whether it has to read now, so that it loses nothing.
    pub fn is_late(&self) -> bool {
        let most = match self.requests.is_dumping() {
            true => UNREAD_BESIDE_STATE,
            false => UNREAD,
        };
        self.names.len() > most
    }

    /// One of the descriptors.
    pub fn handle(&mut self) -> Result<&mut Listener, Failure> {
        self.handles
            .last_mut()
            .ok_or_else(|| Failure::new("the socket is closed already"))
    }

    /// Expects the socket's line in the listing to match the model, or no line if it does not listen.
    pub fn check_line(
        &mut self,
        net_ns: u64,
        environment: &Environment,
        tally: &mut Tally,
    ) -> TestResult {
        let port_id = self.handle()?.port_id()?;
        let limit = timeouts::deadline(COUNT_LIMIT);
        let (lines, before) = loop {
            self.drain(environment, tally)?;
            let before = self.events;
            let lines = environment.lines(net_ns, &[port_id])?;
            // The listing may or may not count events that were sent while it was read.
            self.drain(environment, tally)?;
            // An event is counted a moment after it can be read. A count that is wrong stays wrong.
            let counted = |line: &ListenerLine| (before..=self.events).contains(&line.delivered);
            if lines.iter().all(counted) || Instant::now() > limit {
                break (lines, before);
            }
        };
        let asked: Vec<_> = lines
            .iter()
            .map(|line| Listen {
                mask: line.mask,
                flags: line.flags,
                cgroup_id: line.cgroup,
            })
            .collect();
        let what = "masks, flags and cgroups in the listing";
        expect_eq(what, asked, Vec::from_iter(self.asked.now))?;
        for line in lines {
            expect_eq("lost events in the listing", line.lost, 0)?;
            let read = before..=self.events;
            expect(
                read.contains(&line.delivered),
                format!("{read:?} delivered events in the listing, got {line:?}"),
            )?;
        }
        Ok(())
    }

    /// Reads the next datagram as a whole, if there is one. With `MSG_PEEK`, the datagram stays.
    /// Expects a datagram that was peeked at before to be the same.
    fn next(&mut self, flags: MsgFlags) -> Result<Option<Read>, Failure> {
        let next = Reading::WHOLE.read(self.handle()?, flags)?;
        if next.is_some() {
            self.requests.has_read();
        }
        if let Some(seen) = self.seen.take() {
            expect_eq(
                "the datagram that was peeked at",
                next.as_ref(),
                Some(&seen),
            )?;
        }
        Ok(next)
    }

    /// Expects the contents of a datagram that was read to match the model.
    fn took(
        &mut self,
        datagram: &Read,
        environment: &Environment,
        tally: &mut Tally,
    ) -> TestResult {
        let messages = Received::decode_all(&datagram.bytes, datagram.sender);
        let messages = messages.map_err(Failure::new)?;
        self.check_company(&messages)?;
        for received in &messages {
            match received.event {
                Event::Ack { .. } => {
                    let expected = self.requests.answer(received)?;
                    environment.check_answer(received, &expected)?;
                    self.answered(received, &expected, environment, tally)?;
                }
                Event::Process { .. } => {
                    self.process(received, environment)?;
                    tally.process(self.has_filter);
                }
                _ => {
                    self.happened(received, environment)?;
                    tally.event(received);
                }
            }
        }
        Ok(())
    }

    /// Expects either all or none of the messages in a datagram to be parts of the state.
    fn check_company(&self, messages: &[Received]) -> TestResult {
        let is_process = |received: &&Received| received.event.bit() == PROCESS;
        let is_right = match messages.iter().filter(is_process).count() {
            0 => true,
            1 if self.has_filter => messages.len() == 1,
            processes => processes == messages.len() && !self.has_filter,
        };
        expect(is_right, format!("a part of the state, got {messages:?}"))
    }

    /// Checks an event that was read.
    fn happened(&mut self, received: &Received, environment: &Environment) -> TestResult {
        environment.check_event(received)?;
        // Until a request is answered, events match what was asked for before it, or by it.
        let listens = self.asked.now.is_some();
        let next = self.requests.asked().filter(|_| listens);
        let asked = self.asked.at(received.timestamp_ns());
        check_wanted(received, asked.chain(next), environment)?;
        let missing = self.numbers.advance_to(received)?;
        expect_eq("missing numbers before an event", missing, 0)?;
        self.check_name(received)?;
        self.events += 1;
        Ok(())
    }

    /// Checks a process that was read as a part of the state.
    fn process(&mut self, received: &Received, environment: &Environment) -> TestResult {
        let is_own = environment.is_own(received);
        let (request, listen) = self.requests.process(received, is_own)?;
        environment.check_process(received, &request)?;
        let is_in = |id| environment.may_be_in(received, id);
        let is_meant = listen.cgroup().is_none_or(is_in);
        let what = format!("processes as {listen:x?} asks for, got {received:?}");
        expect(is_meant, what)
    }

    fn answered(
        &mut self,
        answer: &Received,
        expected: &ExpectedAnswer,
        environment: &Environment,
        tally: &mut Tally,
    ) -> TestResult {
        let ExpectedAnswer { request, error, .. } = expected;
        tally.answer(request, *error);
        let cpu = answer.message.body.cpu;
        let succeeds = *error == 0;
        let starts = succeeds
            && matches!(request.command, Ok(Command::Listen(_)))
            && self.asked.now.is_none();
        if starts {
            environment.check_cpu(cpu)?;
            self.numbers = SequenceNumbers::after(&[*answer]);
            self.events = 0;
            tally.listeners += 1;
        } else {
            expect_eq("CPU of an answer", cpu, NO_CPU)?;
        }
        match request.command {
            Ok(Command::Listen(listen)) if succeeds => {
                self.asked.listen(listen, answer.timestamp_ns());
            }
            Ok(Command::Listen(_) | Command::State) | Err(_) => {}
            Ok(Command::Ignore) => self.asked.end(),
        }
        Ok(())
    }

    /// Expects the names of this task to be reported in their order.
    fn check_name(&mut self, received: &Received) -> TestResult {
        match received.event {
            Event::Comm { task, comm } if task == own_task() => {
                expect_eq("a name of this task", Some(comm), self.names.pop_front())
            }
            _ => Ok(()),
        }
    }
}

/// Expects that one of these requests asks for an event, and for the form of its message.
pub fn check_wanted(
    received: &Received,
    asked: impl Iterator<Item = Listen>,
    environment: &Environment,
) -> TestResult {
    let asked: Vec<_> = asked.collect();
    let is_wanted = asked.iter().any(|listen| {
        let may_be_in = |id| environment.may_be_in(received, id);
        listen.wants(received) && listen.cgroup().is_none_or(may_be_in)
    });
    let Received {
        message,
        event,
        identity,
        ..
    } = received;
    let kind = message.netlink.kind;
    let what = format!("events as {asked:x?} ask for, got {event:?} of type {kind}, {identity:?}");
    expect(is_wanted, what)
}

/// Expects that sendto(2) accepted a datagram, unless it had to refuse it.
pub fn check_sent(reaction: &Reaction, sent: io::Result<()>) -> TestResult {
    let refused = match sent {
        Ok(()) => None,
        Err(error) => Some(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
    };
    let expected = match reaction {
        Reaction::Refused(errno) => Some(*errno),
        _ => None,
    };
    expect_eq("error of sendto", refused, expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::BATCH;

    fn at(asked: &Subscription, time: u64) -> Vec<(u32, u32)> {
        let listens = asked.at(time);
        listens
            .map(|Listen { mask, flags, .. }| (mask, flags))
            .collect()
    }

    fn listen(mask: u32, flags: u32) -> Listen {
        Listen {
            mask,
            flags,
            cgroup_id: 0,
        }
    }

    #[test]
    fn what_was_reported_before_an_answer_may_be_for_what_was_asked_before() {
        let mut asked = Subscription::default();
        assert!(at(&asked, 0).is_empty());
        let (sid, comm) = (mask::SID, mask::COMM);
        asked.listen(listen(sid, 0), 10);
        assert_eq!(at(&asked, 5), [(sid, 0)]);
        asked.listen(listen(sid, BATCH), 20);
        asked.listen(listen(comm, 0), 30);
        assert_eq!(at(&asked, 31), [(comm, 0)]);
        assert_eq!(at(&asked, 30), [(comm, 0), (sid, BATCH)]);
        assert_eq!(at(&asked, 20), [(comm, 0), (sid, 0), (sid, BATCH)]);
        asked.end();
        assert!(at(&asked, 0).is_empty());
    }
}
