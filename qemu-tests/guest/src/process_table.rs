// SPDX-License-Identifier: GPL-2.0
//! The table: the processes that live. Its only sources are the state that the kernel reports and
//! the events after it.
//!
//! Processes are known by their identities (`PROC_CN_LISTEN_IDENTITY`), which are never reused.
//! A process may be in a datagram of the state that is read after its EXIT, or after its SID. So a
//! process that ends while the state is reported is remembered until the state is complete, and a
//! session leader always stays one.
//!
//! After a loss, the kernel drops all events until the reader has emptied the queue, and no further
//! error reports that. So the table requests the state when nothing is left to be read. It requests
//! the state again if there is a loss before the state is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Instant;

use crate::listener::{Listener, ListenerError};
use crate::wire::{Event, IDENTITY, Identity, Received, mask};

/// The events that the table is made of. [`mask::SID`] may be left out. Then the table misses
/// processes that become session leaders after the state was reported.
pub const MASK: u32 = mask::FORK | mask::EXIT | mask::SID;

/// The flags that a listener needs for the table. It may have others, too.
pub const FLAGS: u32 = IDENTITY;

/// A process that lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Process {
    /// Its pid, as the listener sees it.
    pub pid: i32,
    /// Whether it leads a session.
    pub leads: bool,
    /// Its identity when it was first reported. Its parent and its cgroup may have changed since.
    pub identity: Identity,
    /// Whether it was reported since the state was requested.
    is_confirmed: bool,
}

/// A state that was requested, and is not complete.
#[derive(Debug)]
struct PendingState {
    /// The sequence number of the request.
    seq: u32,
    /// The processes that ended since the request.
    ended: BTreeSet<u64>,
    /// Whether events were lost since the request.
    has_losses: bool,
}

/// Whether the table is valid.
#[derive(Debug)]
enum Validity {
    /// It is not: no state was requested.
    Nothing,
    /// A state is being reported.
    Begun(PendingState),
    /// It has exactly the living processes, as of the last message that was read.
    Exact,
    /// Events were lost, and no state has been requested since then.
    Lossy,
}

/// The processes that live, of those that a listener can see.
#[derive(Debug)]
pub struct ProcessTable {
    living: BTreeMap<u64, Process>,
    validity: Validity,
    /// The sequence number of the last request.
    seq: u32,
    losses: u64,
    states: u64,
}

impl Default for ProcessTable {
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

impl ProcessTable {
    /// The processes, by the inode numbers of their pidfds.
    pub fn living(&self) -> &BTreeMap<u64, Process> {
        &self.living
    }

    /// Whether it has exactly the living processes, as of the last message that was read.
    pub fn is_exact(&self) -> bool {
        matches!(self.validity, Validity::Exact)
    }

    /// How often a read reported that events were lost.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// How many states were received completely.
    pub fn states(&self) -> u64 {
        self.states
    }

    /// Reads the next message of a listener, and adds it to the table. Returns [`None`] if no message
    /// arrives before the deadline. Requests the state whenever that is needed: at first, and after a
    /// loss.
    ///
    /// The listener has to listen for [`MASK`] with [`FLAGS`] already. Its other requests have the
    /// sequence number 0.
    ///
    /// # Errors
    ///
    /// The error of a read, except for losses, and the errno of a state that was refused or cut off.
    /// The next call requests the state again.
    pub fn read(
        &mut self,
        listener: &mut Listener,
        deadline: Instant,
    ) -> Result<Option<Received>, ListenerError> {
        loop {
            if let Validity::Nothing = self.validity {
                self.ask(listener)?;
            }
            // The kernel queues the next datagram of a state while the one before it is read, so
            // that waiting is not necessary.
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
                    // There was no memory for the next datagram. A read makes the state continue, even
                    // if it reads only the answer to a request that is refused.
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

    /// Reads until the table is exact. Returns whether it is exact before the deadline.
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

    /// Reads until the table is exact and nothing is left to be read. Returns whether this is so before
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
        // 0 is the sequence number of other requests.
        let seq = self.seq.checked_add(1).unwrap_or(1);
        listener.ask_for_state(seq)?;
        self.begin(seq);
        Ok(())
    }

    /// The state was requested with this sequence number.
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

    /// The pending state that a message belongs to, if it does.
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
            (Event::Process { task, session, .. }, Some(identity))
                if pending.is_some_and(|pending| !pending.ended.contains(&identity.process)) =>
            {
                self.confirm(identity, task.pid, session == task.pid);
            }
            (Event::Fork { child, .. }, Some(identity)) if child.pid == child.tgid => {
                self.confirm(identity, child.pid, false);
            }
            (Event::Sid { task, .. }, Some(identity)) => self.confirm(identity, task.pid, true),
            (Event::Exit { task, .. }, Some(identity)) if task.pid == task.tgid => {
                self.living.remove(&identity.process);
                if let Validity::Begun(pending) = &mut self.validity {
                    pending.ended.insert(identity.process);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A process lives, and leads a session if `leads` is set.
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

    /// The pending state is complete, or has failed.
    fn end(&mut self, err: u32) -> Result<(), ListenerError> {
        let before = std::mem::replace(&mut self.validity, Validity::Lossy);
        if err != 0 {
            let error = io::Error::from_raw_os_error(err as i32);
            return Err(ListenerError::System("STATE", error));
        }
        // If a process was not reported, its end was lost.
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

    /// The sequence number of the first request.
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

    /// A table that is fed by hand. A process's number is 100 more than its pid.
    #[derive(Default)]
    struct Fed(ProcessTable);

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

        fn report(&mut self, seq: u32, pid: i32, session: i32) {
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
    fn a_reported_or_forked_process_lives_until_its_end() {
        let mut fed = Fed::begun(FIRST);
        fed.report(FIRST, 2, 1);
        fed.fork(Task::leader(3));
        fed.report(FIRST, 3, 1);
        fed.report(FIRST, 4, 4);
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
    fn a_process_reported_after_its_end_has_ended() {
        let mut fed = Fed::begun(FIRST);
        fed.exit(Task::leader(2));
        fed.report(FIRST, 2, 1);
        fed.answer(FIRST);
        assert_eq!(fed.living(), []);
    }

    #[test]
    fn a_process_reported_after_its_sid_leads_a_session() {
        let mut fed = Fed::begun(FIRST);
        fed.sid(2);
        fed.report(FIRST, 2, 1);
        fed.answer(FIRST);
        assert_eq!(fed.living(), [(2, true)]);
    }

    #[test]
    fn threads_are_not_processes() {
        let mut fed = Fed::begun(FIRST);
        fed.report(FIRST, 2, 1);
        fed.fork(Task { pid: 3, tgid: 2 });
        fed.answer(FIRST);
        fed.exit(Task { pid: 3, tgid: 2 });
        assert_eq!(fed.living(), [(2, false)]);
    }

    #[test]
    fn a_process_that_is_not_reported_again_has_ended() {
        let mut fed = Fed::begun(FIRST);
        for pid in 2..5 {
            fed.report(FIRST, pid, 1);
        }
        fed.answer(FIRST);
        fed.0.lose();
        assert!(!fed.0.is_exact());
        fed.0.begin(2);
        fed.report(2, 3, 3);
        fed.fork(Task::leader(6));
        fed.answer(2);
        assert!(fed.0.is_exact());
        assert_eq!(fed.living(), [(3, true), (6, false)]);
        assert_eq!((fed.0.losses(), fed.0.states()), (1, 2));
    }

    #[test]
    fn a_state_with_losses_is_not_exact() {
        let mut fed = Fed::begun(FIRST);
        fed.report(FIRST, 2, 1);
        fed.0.lose();
        fed.answer(FIRST);
        assert!(!fed.0.is_exact());
        fed.0.begin(2);
        fed.answer(2);
        assert!(fed.0.is_exact());
        assert_eq!(fed.living(), []);
    }

    #[test]
    fn messages_of_another_request_are_ignored() {
        let mut fed = Fed::begun(2);
        fed.report(FIRST, 2, 1);
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
