// SPDX-License-Identifier: GPL-2.0
//! The requests that were sent through a socket, and whose answers were not read: what these answers
//! have to be, and what a state has to contain.
//!
//! All requests are answered in the order in which they were sent, except for a request for the state.
//! Its answer comes after the whole state, and each read makes the kernel send more of the state. So
//! until that answer was read, it is not always known whether the kernel was still sending the state
//! when another request came.

use std::collections::VecDeque;

use nix::errno::Errno;

use super::message::{Command, Listen, Message, Request};
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::wire::{Event, IDENTITY, Received};

/// Whether something is true, as far as the fuzzer can know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tristate {
    No,
    Maybe,
    Yes,
}

/// A dump of the state that the kernel sends, or may be sending.
#[derive(Clone, Copy, Debug)]
struct ExpectedDump {
    request: Request,
    /// What the listener had asked for by then. Later requests do not change it.
    listen: Listen,
    /// Whether this process has to be in it.
    has_us: bool,
    /// How many processes were read.
    count: u32,
    /// The pid of the last one.
    last: i32,
    /// Whether this process was read.
    found_us: bool,
    /// Whether the listener ended before all of it was sent.
    is_cut_off: Tristate,
}

impl ExpectedDump {
    fn new(request: Request, listen: Listen, has_us: bool) -> Self {
        Self {
            request,
            listen,
            has_us,
            count: 0,
            last: 0,
            found_us: false,
            is_cut_off: Tristate::No,
        }
    }

    /// Takes the next process.
    fn take(&mut self, task: i32, has_identity: bool, is_us: bool) -> TestResult {
        let (last, asked) = (self.last, self.listen.flags & IDENTITY != 0);
        expect(
            task > last,
            format!("a process with a pid above {last}, got {task}"),
        )?;
        expect_eq("whether a process has an identity", has_identity, asked)?;
        self.count += 1;
        self.last = task;
        self.found_us |= is_us;
        Ok(())
    }

    /// Expects that it may end with this error.
    fn check_end(&self, error: u32) -> TestResult {
        let is_cut_off = error == Errno::ECANCELED as u32;
        let is_possible = match self.is_cut_off {
            Tristate::No => error == 0,
            Tristate::Maybe => error == 0 || is_cut_off,
            Tristate::Yes => is_cut_off,
        };
        expect(is_possible, format!("another end of {self:?}, got {error}"))?;
        // A state that was cut off may not have reached it.
        let is_missing = is_cut_off && !self.found_us;
        let has_us = self.has_us && !is_missing;
        expect_eq("whether this process was read", self.found_us, has_us)
    }
}

/// A request whose answer has not been read yet.
#[derive(Clone, Copy, Debug)]
enum Pending {
    /// The kernel answers it immediately, with this `err`.
    Answer(Request, u32),
    /// It asks for the state, and is refused if the kernel was still sending another one.
    State(ExpectedDump),
}

impl Pending {
    fn request(&self) -> &Request {
        match self {
            Self::Answer(request, _) => request,
            Self::State(dump) => &dump.request,
        }
    }
}

/// What an answer has to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExpectedAnswer {
    /// The request that it answers.
    pub request: Request,
    /// Its `err`.
    pub error: u32,
    /// How many processes it says were sent.
    pub processes: u32,
}

/// The kernel's view of a socket, after all that was sent.
#[derive(Debug)]
pub struct Requests {
    /// What it listens for, if it listens.
    listens: Option<Listen>,
    /// Whether it listens in namespaces in which this process is.
    sees_us: bool,
    /// Whether a state is being sent.
    is_dumping: Tristate,
    /// The state that the next message may be a part of.
    dump: Option<ExpectedDump>,
    /// Requests without an answer, in the order in which they were sent.
    pending: VecDeque<Pending>,
    /// The last number that [`Self::distinct`] chose.
    seq: u32,
}

impl Requests {
    /// A socket through which nothing was sent.
    pub fn new() -> Self {
        Self {
            listens: None,
            sees_us: false,
            is_dumping: Tristate::No,
            dump: None,
            pending: VecDeque::new(),
            seq: 0,
        }
    }

    /// A socket that another process made listen, in namespaces in which this process is not visible.
    pub fn listening(listen: Listen) -> Self {
        Self {
            listens: Some(listen),
            ..Self::new()
        }
    }

    /// What it listens for, if it listens.
    pub fn listens(&self) -> Option<Listen> {
        self.listens
    }

    /// Whether a state is being sent, by what was read.
    pub fn is_dumping(&self) -> bool {
        self.dump.is_some()
    }

    /// The message to send. It has a number of its own, so that its answer is not taken for that to
    /// another request.
    pub fn distinct(&mut self, message: &Message) -> Message {
        let message = message.clone();
        if self.dump.is_none() && self.pending.is_empty() {
            return message;
        }
        loop {
            self.seq = self.seq.wrapping_add(1);
            let is_taken = |request: &Request| request.seq == self.seq;
            let dump = self.dump.iter().map(|dump| &dump.request);
            let mut all = dump.chain(self.pending.iter().map(Pending::request));
            if !all.any(is_taken) {
                return message.numbered(self.seq);
            }
        }
    }

    /// Notes that this process sent a request. It may not make a foreign socket listen. `is_in`
    /// returns whether the process is in a cgroup.
    pub fn sent(&mut self, request: Request, is_foreign: bool, is_in: impl Fn(u64) -> bool) {
        let may_not = is_foreign && self.listens.is_none();
        let error = match request.command {
            // The kernel does not look up the cgroup if the sender may not listen.
            Ok(Command::Listen(_)) | Err(Errno::ENOENT) if may_not => Errno::EPERM as u32,
            Ok(Command::Listen(listen)) => {
                self.sees_us |= self.listens.is_none();
                self.listens = Some(listen);
                0
            }
            Ok(Command::Ignore) => {
                self.ended();
                0
            }
            Ok(Command::State) => match self.begin(request, is_in) {
                Some(error) => error,
                None => return,
            },
            Err(errno) => errno as u32,
        };
        self.pending.push_back(Pending::Answer(request, error));
    }

    /// Notes that the state was asked for. Returns the error if that is certainly refused.
    fn begin(&mut self, request: Request, is_in: impl Fn(u64) -> bool) -> Option<u32> {
        let Some(listen) = self.listens else {
            return Some(Errno::ENOTCONN as u32);
        };
        let has_us = self.sees_us && listen.cgroup().is_none_or(is_in);
        let dump = ExpectedDump::new(request, listen, has_us);
        let before = self.is_dumping;
        // A state with a process in it needs one more datagram for its answer, after the first.
        self.is_dumping = match before {
            _ if has_us => Tristate::Yes,
            Tristate::No => Tristate::Maybe,
            _ => before,
        };
        match before {
            Tristate::Yes => return Some(Errno::EBUSY as u32),
            Tristate::Maybe => self.pending.push_back(Pending::State(dump)),
            Tristate::No => self.dump = Some(dump),
        }
        None
    }

    /// Notes that the socket no longer listens.
    pub fn ended(&mut self) {
        self.listens = None;
        self.sees_us = false;
        let possible = self.pending.iter_mut().filter_map(|pending| match pending {
            Pending::State(dump) => Some(dump),
            Pending::Answer(..) => None,
        });
        let mut all: Vec<_> = self.dump.iter_mut().chain(possible).collect();
        let is_cut_off = match (self.is_dumping, all.len()) {
            (Tristate::Yes, 1) => Tristate::Yes,
            _ => Tristate::Maybe,
        };
        for dump in &mut all {
            if dump.is_cut_off != Tristate::Yes {
                dump.is_cut_off = is_cut_off;
            }
        }
    }

    /// Notes that a datagram was read or peeked at. If a state is being sent, the kernel then
    /// queued its next piece.
    pub fn has_read(&mut self) {
        if self.is_dumping == Tristate::Yes {
            self.is_dumping = Tristate::Maybe;
        }
    }

    /// What unanswered requests for events ask for, up to a request that ends all events.
    pub fn asked(&self) -> impl Iterator<Item = Listen> {
        let requests = self.pending.iter().filter_map(|pending| match pending {
            Pending::Answer(request, 0) => Some(request.command),
            _ => None,
        });
        let before_end = requests.take_while(|command| *command != Ok(Command::Ignore));
        before_end.filter_map(|command| match command {
            Ok(Command::Listen(listen)) => Some(listen),
            _ => None,
        })
    }

    /// Takes a process that was read. Returns the request for it, and what the listener asked for.
    pub fn process(
        &mut self,
        received: &Received,
        is_us: bool,
    ) -> Result<(Request, Listen), Failure> {
        match &mut self.dump {
            Some(dump) if is_answer(received, &dump.request) => {
                let pid = received.event.subject().pid;
                dump.take(pid, received.identity.is_some(), is_us)?;
                Ok((dump.request, dump.listen))
            }
            dump => Err(Failure::new(format!(
                "a process of {dump:?}, got {received:?}"
            ))),
        }
    }

    /// Takes an answer that was read. Returns what it has to be.
    pub fn answer(&mut self, received: &Received) -> Result<ExpectedAnswer, Failure> {
        let error = match received.event {
            Event::Ack { err } => err,
            _ => 0,
        };
        if let Some(dump) = self.dump.filter(|one| is_answer(received, &one.request)) {
            dump.check_end(error)?;
            self.end_dump();
            return Ok(ExpectedAnswer {
                request: dump.request,
                error,
                processes: dump.count,
            });
        }
        let (request, error) = match self.pending.pop_front() {
            Some(Pending::Answer(request, error)) => (request, error),
            Some(Pending::State(dump)) => (dump.request, Errno::EBUSY as u32),
            None => return Err(Failure::new(format!("a second answer: {received:?}"))),
        };
        Ok(ExpectedAnswer {
            request,
            error,
            processes: 0,
        })
    }

    /// Ends the dump of a state. The next pending request for a state was not refused: the answer to a
    /// refused one would have been read before.
    fn end_dump(&mut self) {
        let is_state = |pending: &Pending| matches!(pending, Pending::State(_));
        let next = self.pending.iter().position(is_state);
        self.dump = next.and_then(|index| match self.pending.remove(index)? {
            Pending::State(dump) => Some(dump),
            Pending::Answer(..) => None,
        });
        if self.dump.is_none() {
            self.is_dumping = Tristate::No;
        }
    }

    /// Expects that all requests were answered, and that no state stopped before its end.
    pub fn expect_answered(&self) -> TestResult {
        let is_answered = self.dump.is_none() && self.pending.is_empty();
        expect(is_answered, format!("answers to all of {self:?}"))
    }
}

/// Whether a message has the numbers that answers to a request have.
fn is_answer(received: &Received, request: &Request) -> bool {
    let connector = received.message.connector;
    (connector.seq, connector.ack) == (request.seq, request.ack.wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::wire::{CGROUP, STATE, Task, mask};

    const EBUSY: u32 = Errno::EBUSY as u32;
    const ECANCELED: u32 = Errno::ECANCELED as u32;
    const ENOTCONN: u32 = Errno::ENOTCONN as u32;

    /// This process's pid.
    const US: i32 = 10;

    fn received(seq: u32, event: Event) -> Received {
        let mut message = crate::wire::Message::new_zeroed();
        (message.connector.seq, message.connector.ack) = (seq, 1);
        Received {
            message,
            event,
            identity: None,
            defined: 0,
            sender: (0, 1),
        }
    }

    /// Requests with different numbers.
    struct Scene(Requests);

    impl Scene {
        /// A listener that has read the answer to its request.
        fn new() -> Self {
            let mut scene = Self(Requests::new());
            scene.listen(1, 0);
            scene.answered(1, 0, 0);
            scene
        }

        fn send(&mut self, seq: u32, command: Command) {
            let command = Ok(command);
            let request = Request {
                seq,
                ack: 0,
                command,
            };
            self.0.sent(request, false, |cgroup| cgroup == 1);
        }

        fn listen(&mut self, seq: u32, cgroup_id: u64) {
            let listen = Listen {
                mask: mask::SID,
                flags: if cgroup_id == 0 { 0 } else { CGROUP },
                cgroup_id,
            };
            self.send(seq, Command::Listen(listen));
        }

        fn answer(&mut self, seq: u32, err: u32) -> Result<ExpectedAnswer, Failure> {
            self.0.answer(&received(seq, Event::Ack { err }))
        }

        /// Expects an answer to be right, and to answer the request with this number.
        fn answered(&mut self, seq: u32, err: u32, processes: u32) {
            let expected = self.answer(seq, err).unwrap();
            assert_eq!((expected.request.seq, expected.error), (seq, err));
            assert_eq!(expected.processes, processes);
        }

        fn process(&mut self, seq: u32, pid: i32) -> Result<(Request, Listen), Failure> {
            self.0.has_read();
            let task = Task::leader(pid);
            let event = Event::Process {
                task,
                parent: Task::NONE,
                session: 0,
                process_group: 0,
            };
            self.0.process(&received(seq, event), pid == US)
        }

        fn take(&mut self, seq: u32, pids: &[i32]) {
            for pid in pids {
                self.process(seq, *pid).unwrap();
            }
        }
    }

    #[test]
    fn a_state_ends_with_its_answer() {
        let mut scene = Scene::new();
        scene.send(2, Command::State);
        assert!(scene.0.is_dumping() && scene.0.expect_answered().is_err());
        scene.take(2, &[1, US]);
        for wrong in [1, US] {
            assert!(scene.process(2, wrong).is_err(), "{wrong} again");
        }
        assert!(scene.process(3, 20).is_err());
        scene.take(2, &[20]);
        scene.answered(2, 0, 3);
        assert!(scene.0.expect_answered().is_ok());
        assert!(scene.answer(2, 0).is_err() && scene.process(2, 30).is_err());
    }

    #[test]
    fn a_state_has_this_process() {
        let mut scene = Scene::new();
        scene.send(2, Command::State);
        scene.take(2, &[1, 2]);
        assert!(scene.answer(2, 0).is_err());
        scene.0 = Requests::listening(Listen {
            mask: 0,
            flags: 0,
            cgroup_id: 0,
        });
        scene.send(2, Command::State);
        scene.answered(2, 0, 0);
    }

    #[test]
    fn only_listeners_get_a_state() {
        let mut scene = Scene(Requests::new());
        scene.send(1, Command::State);
        scene.answered(1, ENOTCONN, 0);
        scene.listen(2, 0);
        scene.send(3, Command::State);
        scene.send(4, Command::Ignore);
        scene.send(5, Command::State);
        scene.answered(2, 0, 0);
        scene.take(3, &[US]);
        scene.answered(4, 0, 0);
        scene.answered(5, ENOTCONN, 0);
        scene.answered(3, ECANCELED, 1);
        assert!(scene.0.expect_answered().is_ok());
    }

    #[test]
    fn before_anything_was_read_another_state_is_refused() {
        let mut scene = Scene::new();
        scene.send(2, Command::State);
        scene.send(3, Command::State);
        scene.take(2, &[US]);
        scene.answered(3, EBUSY, 0);
        scene.answered(2, 0, 1);
        assert!(scene.0.expect_answered().is_ok());
    }

    #[test]
    fn what_may_have_ended_may_be_followed_by_another_state() {
        for is_refused in [false, true] {
            let mut scene = Scene::new();
            scene.send(2, Command::State);
            scene.take(2, &[US]);
            scene.send(3, Command::State);
            // This one is certainly refused, whichever of the other two is being sent.
            scene.send(4, Command::State);
            if is_refused {
                scene.answered(3, EBUSY, 0);
                scene.answered(4, EBUSY, 0);
                scene.answered(2, 0, 1);
            } else {
                scene.answered(2, 0, 1);
                scene.take(3, &[US]);
                scene.answered(4, EBUSY, 0);
                scene.take(3, &[20]);
                scene.answered(3, 0, 2);
            }
            assert!(scene.0.expect_answered().is_ok());
            scene.send(5, Command::State);
            scene.take(5, &[US]);
            scene.answered(5, 0, 1);
        }
    }

    #[test]
    fn a_state_that_may_be_empty_may_have_ended() {
        let mut scene = Scene::new();
        for cgroup in [1, 2] {
            scene.listen(2, cgroup);
            scene.answered(2, 0, 0);
            scene.send(3, Command::State);
            scene.send(4, Command::State);
            if cgroup == 1 {
                scene.take(3, &[US]);
                scene.answered(4, EBUSY, 0);
                scene.answered(3, 0, 1);
            } else {
                scene.answered(3, 0, 0);
                scene.answered(4, 0, 0);
            }
            assert!(scene.0.expect_answered().is_ok());
        }
    }

    #[test]
    fn the_end_of_a_listener_cuts_its_state_off() {
        for (has_read, ends) in [(false, [ECANCELED; 2]), (true, [0, ECANCELED])] {
            for end in ends {
                let mut scene = Scene::new();
                scene.send(2, Command::State);
                if has_read {
                    scene.take(2, &[US]);
                }
                scene.0.ended();
                if !has_read {
                    let wrong = scene.0.dump.unwrap().check_end(0);
                    assert!(wrong.is_err());
                    scene.take(2, &[US]);
                }
                scene.answered(2, end, 1);
                assert!(scene.0.expect_answered().is_ok());
            }
        }
        let mut scene = Scene::new();
        scene.send(2, Command::State);
        scene.take(2, &[US]);
        assert!(scene.answer(2, ECANCELED).is_err());
    }

    #[test]
    fn what_is_asked_for_before_an_end_may_come() {
        let mut scene = Scene::new();
        scene.listen(2, 1);
        scene.send(3, Command::State);
        scene.listen(4, 2);
        scene.send(5, Command::Ignore);
        scene.listen(6, 3);
        let asked = scene.0.asked().map(|listen| listen.cgroup_id);
        assert_eq!(Vec::from_iter(asked), [1, 2]);
        assert_eq!(scene.0.listens().unwrap().cgroup_id, 3);
    }

    #[test]
    fn numbers_are_changed_where_answers_could_be_confused() {
        let message = Message::request(&[STATE], 7, 0);
        let seq = |message: &Message| {
            let bytes = message.bytes(0);
            u32::from_ne_bytes(bytes[24..28].try_into().unwrap())
        };
        let mut scene = Scene::new();
        assert_eq!(seq(&scene.0.distinct(&message)), 7);
        scene.send(1, Command::State);
        assert_eq!(seq(&scene.0.distinct(&message)), 2);
        assert_eq!(seq(&scene.0.distinct(&message)), 3);
    }
}
