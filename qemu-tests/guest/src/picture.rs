// SPDX-License-Identifier: GPL-2.0
//! The picture: which processes live, from the state that the kernel tells and from the events after
//! it, and from nothing else.
//!
//! Processes are known by their identities (`PROC_CN_LISTEN_IDENTITY`), which are never used again.
//! A process may be in a datagram of the state that is read after its EXIT, or after its SID. So a process
//! that has ended while the state is told is remembered until its end, and a session leader never ceases to
//! be one.
//!
//! After a loss, the kernel drops all events until the queue was read empty, and no further error tells
//! that. So the state is asked for when nothing is left to be read; and once more, if there is a loss
//! before its end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

use crate::listener::{Listener, ListenerError};
use crate::wire::{Event, IDENTITY, Identity, Received, mask};

/// The events that the picture is made of. Without [`mask::SID`], which may be left out, nothing is
/// known of session leaders.
pub const MASK: u32 = mask::FORK | mask::EXIT | mask::SID;

/// The flags that a listener needs for it, beside others.
pub const FLAGS: u32 = IDENTITY;

/// A process that lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Process {
    /// Its number, as the listener has it.
    pub pid: i32,
    /// Whether it leads a session.
    pub leads: bool,
    /// As it was told first: its parent and its cgroup may be others by now.
    pub identity: Identity,
    /// Whether it was told since the state was asked for.
    is_confirmed: bool,
}

/// A state that was asked for, and is not complete yet.
#[derive(Debug)]
struct PendingState {
    /// The number of the request.
    seq: u32,
    /// The processes that ended since the request.
    ended: BTreeSet<u64>,
    /// Whether events were lost since the request.
    has_losses: bool,
}

/// Whether the picture is valid.
#[derive(Debug)]
enum Validity {
    /// Nothing: no state was asked for.
    Nothing,
    /// A state is on its way.
    Begun(PendingState),
    /// All that live are in it, and nobody else: of what was read.
    Exact,
    /// Events were lost, and no state was asked for since then.
    Lossy,
}

/// The processes that live, of those that a listener can see.
#[derive(Debug)]
pub struct Picture {
    living: BTreeMap<u64, Process>,
    validity: Validity,
    /// The number of the last request.
    seq: u32,
    losses: u64,
    states: u64,
}

impl Default for Picture {
    fn default() -> Self {
        Self {
            living: BTreeMap::new(),
            validity: Validity::Nothing,
            seq: 0,
            losses: 0,
            states: 0,
        }
    }
}

impl Picture {
    /// The processes, by the numbers that pidfds have for them.
    pub fn living(&self) -> &BTreeMap<u64, Process> {
        &self.living
    }

    /// Whether all that live are in it, and nobody else: of what was read.
    pub fn is_exact(&self) -> bool {
        matches!(self.validity, Validity::Exact)
    }

    /// How often reading told that events were lost.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// How many states were told to their end.
    pub fn states(&self) -> u64 {
        self.states
    }

    /// Reads the next message of a listener, and takes it into the picture; [`None`] if there is none
    /// until the deadline. Asks for the state whenever that is needed: at first, and after a loss.
    ///
    /// The listener listens for [`MASK`] with [`FLAGS`], and was told so. The numbers of other requests
    /// that it makes are 0.
    ///
    /// # Errors
    ///
    /// What reading fails with, but for losses, and the errno of a state that was refused or cut off.
    /// The next call asks for it again.
    pub fn read(
        &mut self,
        listener: &mut Listener,
        deadline: Instant,
    ) -> Result<Option<Received>, ListenerError> {
        loop {
            if let Validity::Nothing = self.validity {
                self.ask(listener)?;
            }
            // A piece of a state is there before what comes before it was read.
            let until = if self.is_exact() {
                deadline
            } else {
                Instant::now()
            };
            match listener.receive(until) {
                Ok(Some(received)) => {
                    self.take(&received)?;
                    return Ok(Some(received));
                }
                Ok(None) => match self.validity {
                    Validity::Lossy => self.ask(listener)?,
                    // There was no memory for it. Reading has it go on, if only the answer to a
                    // request that is refused.
                    Validity::Begun(_) => {
                        listener.ask_for_state(0)?;
                        if Instant::now() >= deadline {
                            return Ok(None);
                        }
                    }
                    Validity::Exact | Validity::Nothing => return Ok(None),
                },
                Err(error) if error.is_overrun() => self.lose(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads until the picture is exact; whether it came to that before the deadline.
    pub fn complete(
        &mut self,
        listener: &mut Listener,
        deadline: Instant,
    ) -> Result<bool, ListenerError> {
        while !self.is_exact() && Instant::now() < deadline {
            self.read(listener, deadline)?;
        }
        Ok(self.is_exact())
    }

    /// Reads until the picture is exact and nothing is left to be read; whether it came to that before
    /// the deadline.
    pub fn catch_up(
        &mut self,
        listener: &mut Listener,
        deadline: Instant,
    ) -> Result<bool, ListenerError> {
        while Instant::now() < deadline {
            if self.read(listener, Instant::now())?.is_none() && self.is_exact() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn ask(&mut self, listener: &Listener) -> Result<(), ListenerError> {
        // 0 is the number of other requests.
        let seq = self.seq.checked_add(1).unwrap_or(1);
        listener.ask_for_state(seq)?;
        self.begin(seq);
        Ok(())
    }

    /// The state was asked for, in a request with this number.
    fn begin(&mut self, seq: u32) {
        for process in self.living.values_mut() {
            process.is_confirmed = false;
        }
        self.seq = seq;
        self.validity = Validity::Begun(PendingState {
            seq,
            ended: BTreeSet::new(),
            has_losses: false,
        });
    }

    /// Events were lost.
    fn lose(&mut self) {
        self.losses += 1;
        match &mut self.validity {
            Validity::Nothing => {}
            Validity::Begun(pending) => pending.has_losses = true,
            Validity::Exact | Validity::Lossy => self.validity = Validity::Lossy,
        }
    }

    /// The state of which a message is, if it is on its way.
    fn pending(&self, received: &Received) -> Option<&PendingState> {
        match &self.validity {
            Validity::Begun(pending) if pending.seq == received.message.connector.seq => {
                Some(pending)
            }
            _ => None,
        }
    }

    fn take(&mut self, received: &Received) -> Result<(), ListenerError> {
        let pending = self.pending(received);
        match (received.event, received.identity) {
            (Event::Ack { err }, _) if pending.is_some() => return self.end(err),
            (Event::Process { task, session, .. }, Some(who))
                if pending.is_some_and(|pending| !pending.ended.contains(&who.process)) =>
            {
                self.confirm(who, task.pid, session == task.pid);
            }
            (Event::Fork { child, .. }, Some(who)) if child.pid == child.tgid => {
                self.confirm(who, child.pid, false);
            }
            (Event::Sid { task, .. }, Some(who)) => self.confirm(who, task.pid, true),
            (Event::Exit { task, .. }, Some(who)) if task.pid == task.tgid => {
                self.living.remove(&who.process);
                if let Validity::Begun(pending) = &mut self.validity {
                    pending.ended.insert(who.process);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Somebody lives, and leads a session if that is said.
    fn confirm(&mut self, identity: Identity, pid: i32, leads: bool) {
        let process = self.living.entry(identity.process).or_insert(Process {
            pid,
            leads,
            identity,
            is_confirmed: true,
        });
        process.leads |= leads;
        process.is_confirmed = true;
    }

    /// The state that is on its way has come to its end, or to an error.
    fn end(&mut self, err: u32) -> Result<(), ListenerError> {
        let before = std::mem::replace(&mut self.validity, Validity::Lossy);
        if err != 0 {
            let error = io::Error::from_raw_os_error(err as i32);
            return Err(ListenerError::System("STATE", error));
        }
        // If a process was not told, its end was lost.
        self.living.retain(|_, process| process.is_confirmed);
        self.states += 1;
        if !matches!(before, Validity::Begun(pending) if pending.has_losses) {
            self.validity = Validity::Exact;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::wire::{Left, Message, Task};

    /// The number of the first request.
    const FIRST: u32 = 1;

    fn received(seq: u32, event: Event, process: Option<u64>) -> Received {
        let mut message = Message::new_zeroed();
        message.connector.seq = seq;
        let identity = process.map(|process| Identity {
            process,
            ..Identity::default()
        });
        Received {
            message,
            event,
            identity,
            defined: 0,
            sender: (0, 1),
        }
    }

    /// A picture that is fed by hand. A process's number is 100 more than its pid.
    #[derive(Default)]
    struct Fed(Picture);

    impl Fed {
        fn begun(seq: u32) -> Self {
            let mut fed = Self::default();
            fed.0.begin(seq);
            fed
        }

        fn take(&mut self, seq: u32, event: Event, pid: i32) {
            let received = received(seq, event, Some(pid as u64 + 100));
            self.0.take(&received).unwrap();
        }

        fn fork(&mut self, child: Task) {
            let parent = Task::leader(1);
            self.take(9, Event::Fork { parent, child }, child.tgid);
        }

        fn exit(&mut self, task: Task) {
            let event = Event::Exit {
                task,
                code: 0,
                signal: 17,
                parent: Task::leader(1),
            };
            self.take(9, event, task.tgid);
        }

        fn sid(&mut self, pid: i32) {
            let (task, left) = (Task::leader(pid), Left::default());
            self.take(9, Event::Sid { task, left }, pid);
        }

        fn told(&mut self, seq: u32, pid: i32, session: i32) {
            let event = Event::Process {
                task: Task::leader(pid),
                parent: Task::leader(1),
                session,
                process_group: session,
            };
            self.take(seq, event, pid);
        }

        fn answer(&mut self, seq: u32) {
            let answer = received(seq, Event::Ack { err: 0 }, None);
            self.0.take(&answer).unwrap();
        }

        /// The living processes, and whether they lead a session.
        fn living(&self) -> Vec<(i32, bool)> {
            let living = self.0.living.iter().inspect(|(number, process)| {
                assert_eq!(**number, process.pid as u64 + 100);
            });
            living
                .map(|(_, process)| (process.pid, process.leads))
                .collect()
        }
    }

    #[test]
    fn who_is_told_or_forked_lives_until_the_end() {
        let mut fed = Fed::begun(FIRST);
        fed.told(FIRST, 2, 1);
        fed.fork(Task::leader(3));
        fed.told(FIRST, 3, 1);
        fed.told(FIRST, 4, 4);
        fed.exit(Task::leader(2));
        assert!(!fed.0.is_exact());
        fed.answer(FIRST);
        assert!(fed.0.is_exact());
        assert_eq!(fed.living(), [(3, false), (4, true)]);
        fed.fork(Task::leader(5));
        fed.exit(Task::leader(4));
        assert_eq!(fed.living(), [(3, false), (5, false)]);
    }

    #[test]
    fn who_is_told_after_the_end_has_ended() {
        let mut fed = Fed::begun(FIRST);
        fed.exit(Task::leader(2));
        fed.told(FIRST, 2, 1);
        fed.answer(FIRST);
        assert_eq!(fed.living(), []);
    }

    #[test]
    fn who_is_told_after_the_begin_of_a_session_leads_it() {
        let mut fed = Fed::begun(FIRST);
        fed.sid(2);
        fed.told(FIRST, 2, 1);
        fed.answer(FIRST);
        assert_eq!(fed.living(), [(2, true)]);
    }

    #[test]
    fn threads_are_nobody() {
        let mut fed = Fed::begun(FIRST);
        fed.told(FIRST, 2, 1);
        fed.fork(Task { pid: 3, tgid: 2 });
        fed.answer(FIRST);
        fed.exit(Task { pid: 3, tgid: 2 });
        assert_eq!(fed.living(), [(2, false)]);
    }

    #[test]
    fn who_is_not_told_again_has_ended() {
        let mut fed = Fed::begun(FIRST);
        for pid in 2..5 {
            fed.told(FIRST, pid, 1);
        }
        fed.answer(FIRST);
        fed.0.lose();
        assert!(!fed.0.is_exact());
        fed.0.begin(2);
        fed.told(2, 3, 3);
        fed.fork(Task::leader(6));
        fed.answer(2);
        assert!(fed.0.is_exact());
        assert_eq!(fed.living(), [(3, true), (6, false)]);
        assert_eq!((fed.0.losses(), fed.0.states()), (1, 2));
    }

    #[test]
    fn a_state_with_losses_is_not_exact() {
        let mut fed = Fed::begun(FIRST);
        fed.told(FIRST, 2, 1);
        fed.0.lose();
        fed.answer(FIRST);
        assert!(!fed.0.is_exact());
        fed.0.begin(2);
        fed.answer(2);
        assert!(fed.0.is_exact());
        assert_eq!(fed.living(), []);
    }

    #[test]
    fn what_is_of_another_request_is_passed_over() {
        let mut fed = Fed::begun(2);
        fed.told(FIRST, 2, 1);
        fed.answer(0);
        fed.answer(FIRST);
        assert!(!fed.0.is_exact());
        assert_eq!(fed.living(), []);
    }

    #[test]
    fn a_state_that_is_cut_off_is_an_error() {
        let mut fed = Fed::begun(FIRST);
        let cut_off = received(FIRST, Event::Ack { err: 125 }, None);
        let error = fed.0.take(&cut_off).unwrap_err();
        assert!(error.to_string().contains("STATE"), "{error}");
        assert!(!fed.0.is_exact());
    }
}
