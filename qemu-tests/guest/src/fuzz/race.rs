// SPDX-License-Identifier: GPL-2.0
//! Several threads use the same sockets at the same time, in random ways.
//!
//! The model does not know the state of a socket then, but it knows the reaction to a message: each
//! gets an answer of its own. Each event matches one of the messages that asked for events. A state
//! has as many processes as its answer says, whichever threads read them. When the last descriptor is
//! closed, by any thread, no listener is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use fastrand::Rng;
use netlink_sys::SocketAddr;
use nix::errno::Errno;

use super::checked_socket::{check_sent, check_wanted};
use super::environment::Environment;
use super::message::{Command, Listen, Reaction, Request};
use super::program::any_message;
use super::requests::ExpectedAnswer;
use super::tally::Tally;
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{self, Handover};
use crate::support::procfs::own_namespace;
use crate::wire::{CGROUP, CN_PROC, Event, IDENTITY, Received};

const THREADS: usize = 4;

const SOCKETS: usize = 3;

/// Steps of a thread.
const STEPS: usize = 60;

/// A socket by its index, with something that was sent through it or read from it.
type Of<T> = (usize, T);

/// One thread, with its descriptors of the sockets, which it closes one after the other.
struct Racer<'a> {
    handles: Vec<Option<Listener>>,
    random: Rng,
    /// The number of the next message, which differs from those of all other threads.
    seq: u32,
    requests: Vec<Of<Request>>,
    answers: Vec<Of<Received>>,
    events: Vec<Of<Received>>,
    processes: Vec<Of<Received>>,
    environment: &'a Environment,
    tally: Tally,
}

/// Runs a round.
pub fn run(mut random: Rng, environment: &Environment, tally: &mut Tally) -> TestResult {
    let sockets = (0..SOCKETS)
        .map(|_| container::open())
        .collect::<Result<Vec<_>, _>>()?;
    let port_ids = sockets
        .iter()
        .map(Listener::port_id)
        .collect::<Result<Vec<_>, _>>()?;
    let mut racers = Vec::new();
    for index in 0..THREADS {
        let handles = sockets.iter().map(|socket| socket.duplicate().map(Some));
        racers.push(Racer {
            handles: handles.collect::<nix::Result<_>>()?,
            random: random.fork(),
            seq: (index as u32) << 24,
            requests: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            processes: Vec::new(),
            environment,
            tally: Tally::default(),
        });
    }
    // From here on, only the threads have descriptors.
    drop(sockets);
    let start = Barrier::new(THREADS);
    let racers = thread::scope(|scope| {
        let threads: Vec<_> = racers
            .into_iter()
            .map(|racer| scope.spawn(|| racer.run(&start)))
            .collect();
        let ends = threads.into_iter().map(|thread| thread.join());
        ends.map(|end| end.unwrap_or_else(|_| Err(Failure::new("a thread panicked"))))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let (mut requests, mut answers) = (Vec::new(), Vec::new());
    let (mut events, mut processes) = (Vec::new(), Vec::new());
    for racer in racers {
        requests.extend(racer.requests);
        answers.extend(racer.answers);
        events.extend(racer.events);
        processes.extend(racer.processes);
        *tally += racer.tally;
    }
    check_events(&requests, &events, environment)?;
    let states = states(&requests, &processes, environment)?;
    check_answers(requests, answers, states, environment, tally)?;
    let lines = environment.lines(own_namespace("net")?, &port_ids)?;
    expect_eq("lines of closed sockets", lines, vec![])
}

/// Expects each event to match some LISTEN of its socket. Which LISTEN came last is not known.
fn check_events(
    requests: &[Of<Request>],
    events: &[Of<Received>],
    environment: &Environment,
) -> TestResult {
    for (socket, event) in events {
        let listens = listens_at(requests, *socket);
        check_wanted(event, listens.into_iter(), environment)?;
    }
    Ok(())
}

/// What threads read of a state.
#[derive(Debug, Default)]
struct State {
    /// The pids of its processes, and whether each had an identity.
    processes: BTreeMap<i32, bool>,
    has_us: bool,
}

/// The states, each by its socket and the number of the request that asked for it.
type States = BTreeMap<Of<u32>, State>;

/// Combines what the threads read of states. Each state was asked for, and has each process once. The
/// order in which the threads read the processes is not known.
fn states(
    requests: &[Of<Request>],
    processes: &[Of<Received>],
    environment: &Environment,
) -> Result<States, Failure> {
    let mut states = States::new();
    for (socket, received) in processes {
        let seq = received.message.connector.seq;
        let asked = requests.iter().find(|(asked, request)| {
            asked == socket && request.seq == seq && request.command == Ok(Command::State)
        });
        let Some((_, request)) = asked else {
            return Err(Failure::new(format!("no request asked for {received:?}")));
        };
        environment.check_process(received, request)?;
        let state = states.entry((*socket, seq)).or_default();
        state.has_us |= environment.is_own(received);
        let (pid, has_identity) = (received.event.subject().pid, received.identity.is_some());
        let again = state.processes.insert(pid, has_identity);
        expect_eq("an earlier message about the same process", again, None)?;
    }
    Ok(states)
}

impl State {
    /// Expects a state that was sent to its end or was cut off, to a socket that sent these requests.
    fn check(&self, error: u32, listens: &[Listen]) -> TestResult {
        let has = |flag| move |listen: &Listen| listen.flags & flag != 0;
        let forms: BTreeSet<bool> = self.processes.values().copied().collect();
        let asked: BTreeSet<bool> = listens.iter().map(has(IDENTITY)).collect();
        expect(
            forms.len() <= 1 && forms.is_subset(&asked),
            format!("processes in one form that was asked for, got {self:?}"),
        )?;
        let is_whole = error == 0 && !listens.iter().any(has(CGROUP));
        expect(
            self.has_us || !is_whole,
            format!("this process, got {self:?}"),
        )
    }
}

/// What the answer to a request for the state has to contain.
fn expected_of_state(
    request: &Request,
    answer: &Received,
    state: Option<State>,
    listens: &[Listen],
) -> Result<ExpectedAnswer, Failure> {
    let Event::Ack { err } = answer.event else {
        return Err(Failure::new(format!("an answer, got {answer:?}")));
    };
    let (is_sent, is_known) = match Errno::from_raw(err as i32) {
        Errno::ENOTCONN | Errno::EBUSY => (false, true),
        Errno::ECANCELED => (true, true),
        _ => (true, err == 0),
    };
    expect(is_known, format!("another error than {err}"))?;
    let processes = state.as_ref().map_or(0, |state| state.processes.len());
    expect(
        is_sent || state.is_none(),
        format!("no processes after error {err}, got {processes}"),
    )?;
    if is_sent {
        state.unwrap_or_default().check(err, listens)?;
    }
    Ok(ExpectedAnswer {
        request: *request,
        error: err,
        processes: u32::try_from(processes)?,
    })
}

/// What the LISTEN requests of a socket ask for.
fn listens_at(requests: &[Of<Request>], socket: usize) -> Vec<Listen> {
    let asked = requests.iter().filter(|(asked, _)| *asked == socket);
    asked
        .filter_map(|(_, request)| match request.command {
            Ok(Command::Listen(listen)) => Some(listen),
            _ => None,
        })
        .collect()
}

/// Expects one answer to each request, at its socket.
fn check_answers(
    mut requests: Vec<Of<Request>>,
    mut answers: Vec<Of<Received>>,
    mut states: States,
    environment: &Environment,
    tally: &mut Tally,
) -> TestResult {
    requests.sort_by_key(|(socket, request)| (*socket, request.seq));
    answers.sort_by_key(|(socket, answer)| (*socket, answer.message.connector.seq));
    expect_eq("number of answers", answers.len(), requests.len())?;
    for ((socket, request), (answered, answer)) in requests.iter().zip(&answers) {
        expect_eq("socket of an answer", answered, socket)?;
        let expected = match request.command {
            Ok(Command::State) => {
                let state = states.remove(&(*socket, request.seq));
                let listens = listens_at(&requests, *socket);
                expected_of_state(request, answer, state, &listens)?
            }
            _ => ExpectedAnswer {
                request: *request,
                error: request.error(),
                processes: 0,
            },
        };
        environment.check_answer(answer, &expected)?;
        tally.answer(request, expected.error);
        // Only LISTEN may begin a subscription, whose numbers begin on a CPU.
        let cpu = answer.message.body.cpu;
        match request.command {
            Ok(Command::Listen(_)) if cpu != u32::MAX => environment.check_cpu(cpu)?,
            _ => expect_eq("CPU of an answer", cpu, u32::MAX)?,
        }
    }
    Ok(())
}

impl Racer<'_> {
    fn run(mut self, start: &Barrier) -> Result<Self, Failure> {
        let handover = Handover::new()?;
        start.wait();
        for _ in 0..STEPS {
            let socket = self.random.usize(..SOCKETS);
            self.step(socket, &handover)?;
        }
        (0..SOCKETS).try_for_each(|socket| self.close(socket))?;
        Ok(self)
    }

    fn step(&mut self, socket: usize, handover: &Handover) -> TestResult {
        let choice = self.random.u8(..100);
        let Some(handle) = &mut self.handles[socket] else {
            return Ok(());
        };
        match choice {
            0 => self.close(socket),
            1..5 => Ok(handle.socket().drop_membership(CN_PROC)?),
            5..9 => Ok(handle.socket().add_membership(CN_PROC)?),
            9..13 => {
                let group = u32::from(choice % 2 == 0) * CN_PROC;
                let address = SocketAddr::new(handle.port_id()?, group);
                Ok(handle.socket().bind(&address)?)
            }
            13..16 => {
                *handle = handle.duplicate()?;
                Ok(())
            }
            16..19 => {
                handover.send(handle)?;
                *handle = handover.receive()?;
                Ok(())
            }
            19..25 => self.drain(socket),
            _ => self.send(socket),
        }
    }

    fn send(&mut self, socket: usize) -> TestResult {
        self.seq += 1;
        let message = any_message(&mut self.random)?.numbered(self.seq);
        let cgroups = &self.environment.cgroups;
        let datagram = message.bytes(cgroups.made());
        let reaction = Reaction::of(&datagram, cgroups);
        if let Some(handle) = &self.handles[socket] {
            check_sent(&reaction, handle.send_datagram(&datagram))
                .map_err(|failure| failure.about(format!("{message:?}")))?;
            self.tally.messages += 1;
            self.tally.count(&reaction);
            if let Reaction::Answered(request) = reaction {
                self.requests.push((socket, request));
            }
        }
        Ok(())
    }

    /// Reads what is queued, for this thread or for another one.
    fn drain(&mut self, socket: usize) -> TestResult {
        let Some(handle) = &mut self.handles[socket] else {
            return Ok(());
        };
        loop {
            let Some(received) = handle.receive(Instant::now())? else {
                return Ok(());
            };
            match received.event {
                Event::Ack { .. } => self.answers.push((socket, received)),
                Event::Process { .. } => {
                    self.tally.process(false);
                    self.processes.push((socket, received));
                }
                _ => {
                    self.environment.check_event(&received)?;
                    self.tally.event(&received);
                    self.events.push((socket, received));
                }
            }
        }
    }

    fn close(&mut self, socket: usize) -> TestResult {
        self.drain(socket)?;
        self.handles[socket] = None;
        Ok(())
    }
}
