// SPDX-License-Identifier: GPL-2.0
//! Several threads do whatever they want with the same sockets at once.
//!
//! What becomes of a socket is open then, but not what becomes of a message: each is answered by
//! itself. Events come as one of the messages asked for them. And when the last descriptor is
//! closed, by whichever thread, nobody listens.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use fastrand::Rng;
use netlink_sys::SocketAddr;

use super::message::{Command, Fate, Request};
use super::own_namespace;
use super::peer::{Surroundings, check_sent, check_wanted};
use super::program::any_message;
use super::tally::Tally;
use crate::harness::{Failure, TestResult, expect_eq};
use crate::listener::Listener;
use crate::tests::container::{self, Handover};
use crate::wire::{CN_PROC, Received};

const THREADS: usize = 4;

const SOCKETS: usize = 3;

/// Steps of a thread.
const STEPS: usize = 60;

/// A socket by its index, what was sent through it, or what was read from it.
type Of<T> = (usize, T);

/// One thread's descriptors of the sockets, of which it closes one after the other.
struct Racer<'a> {
    handles: Vec<Option<Listener>>,
    random: Rng,
    /// The number of the next message, unlike all other threads'.
    seq: u32,
    requests: Vec<Of<Request>>,
    answers: Vec<Of<Received>>,
    events: Vec<Of<Received>>,
    surroundings: &'a Surroundings,
    tally: Tally,
}

/// Runs a round.
pub fn run(mut random: Rng, surroundings: &Surroundings, tally: &mut Tally) -> TestResult {
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
            surroundings,
            tally: Tally::default(),
        });
    }
    // From here on only threads have descriptors.
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
    let (mut requests, mut answers, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for racer in racers {
        requests.extend(racer.requests);
        answers.extend(racer.answers);
        events.extend(racer.events);
        *tally += racer.tally;
    }
    check_events(&requests, &events, surroundings)?;
    check_answers(requests, answers, surroundings)?;
    let lines = surroundings.lines(own_namespace("net")?, &port_ids)?;
    expect_eq("lines of closed sockets", lines, vec![])
}

/// Expects each event to be as some LISTEN for its socket asked: which one came last is open.
fn check_events(
    requests: &[Of<Request>],
    events: &[Of<Received>],
    surroundings: &Surroundings,
) -> TestResult {
    for (socket, event) in events {
        let asked = requests.iter().filter(|(asked, _)| asked == socket);
        let listens = asked.filter_map(|(_, request)| match request.command {
            Ok(Command::Listen(listen)) => Some(listen),
            _ => None,
        });
        check_wanted(event, listens, surroundings)?;
    }
    Ok(())
}

/// Expects one answer to each request, at its socket.
fn check_answers(
    mut requests: Vec<Of<Request>>,
    mut answers: Vec<Of<Received>>,
    surroundings: &Surroundings,
) -> TestResult {
    requests.sort_by_key(|(socket, request)| (*socket, request.seq));
    answers.sort_by_key(|(socket, answer)| (*socket, answer.message.connector.seq));
    expect_eq("number of answers", answers.len(), requests.len())?;
    for ((socket, request), (answered, answer)) in requests.iter().zip(&answers) {
        expect_eq("socket of an answer", answered, socket)?;
        surroundings.check_answer(answer, request, request.error())?;
        // LISTEN alone may begin a subscription, whose numbers begin on a CPU.
        let cpu = answer.message.body.cpu;
        match request.command {
            Ok(Command::Listen(_)) if cpu != u32::MAX => surroundings.check_cpu(cpu)?,
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
        let cgroups = &self.surroundings.cgroups;
        let datagram = message.bytes(cgroups.made());
        let fate = Fate::of(&datagram, cgroups);
        if let Some(handle) = &self.handles[socket] {
            check_sent(&fate, handle.send_datagram(&datagram))
                .map_err(|failure| failure.about(format!("{message:?}")))?;
            self.tally.messages += 1;
            self.tally.count(&fate, Request::error);
            if let Fate::Answered(request) = fate {
                self.requests.push((socket, request));
            }
        }
        Ok(())
    }

    /// Reads what there is, be it for this thread or for another one.
    fn drain(&mut self, socket: usize) -> TestResult {
        let Some(handle) = &mut self.handles[socket] else {
            return Ok(());
        };
        while let Some(received) = handle.receive(Instant::now())? {
            if received.event.bit() == 0 {
                self.answers.push((socket, received));
            } else {
                self.surroundings.check_event(&received)?;
                self.tally.event(&received);
                self.events.push((socket, received));
            }
        }
        Ok(())
    }

    fn close(&mut self, socket: usize) -> TestResult {
        self.drain(socket)?;
        self.handles[socket] = None;
        Ok(())
    }
}
