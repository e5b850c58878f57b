// SPDX-License-Identifier: GPL-2.0
//! A sequence of steps that one thread takes with several sockets. After each step it is known what has to
//! be true of each socket.

use netlink_sys::SocketAddr;

use super::checked_socket::CheckedSocket;
use super::coverage::Following;
use super::environment::Environment;
use super::message::Message;
use super::program::{Program, Step};
use super::reading::Reading;
use super::tally::Tally;
use crate::harness::{TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::container::{self, Handover};
use crate::support::procfs::own_namespace;
use crate::support::scenario::{comm, mark};
use crate::wire::CN_PROC;

/// How many sockets are open at one time at most.
const SOCKETS: usize = 6;

/// How many descriptors one socket has at most.
const HANDLES: usize = 3;

/// The sockets, each with its model.
struct Sequence<'a> {
    sockets: Vec<CheckedSocket>,
    net_ns: u64,
    /// How many times this task was renamed.
    names: u32,
    environment: &'a Environment,
    tally: &'a mut Tally,
}

/// Runs a program. With `following`, notes which code of the kernel each step covers.
pub fn run(
    program: &Program,
    environment: &Environment,
    tally: &mut Tally,
    mut following: Option<&mut Following<'_, '_>>,
) -> TestResult {
    let mut sequence = Sequence {
        sockets: Vec::new(),
        net_ns: own_namespace("net")?,
        names: 0,
        environment,
        tally,
    };
    for step in program.steps() {
        let step = step?;
        match &mut following {
            Some(following) => following.note(|| sequence.step(&step))?,
            None => sequence.step(&step)?,
        }
    }
    sequence.check_listing()?;
    while !sequence.sockets.is_empty() {
        sequence.close(0)?;
    }
    Ok(())
}

impl Sequence<'_> {
    fn step(&mut self, step: &Step) -> TestResult {
        if self.sockets.is_empty() {
            return self.open(true);
        }
        let any = |socket: usize| socket % self.sockets.len();
        match step {
            Step::Open { bound } => match self.sockets.len() {
                SOCKETS => Ok(()),
                _ => self.open(*bound),
            },
            Step::Close { socket } => self.close(any(*socket)),
            Step::Abandon { socket } => self.abandon(any(*socket)),
            Step::Filter { socket } => self.filter(any(*socket)),
            Step::Duplicate { socket } => self.duplicate(any(*socket)),
            Step::PassOn { socket, is_read } => self.pass_on(any(*socket), *is_read),
            Step::Leave { socket } => self.leave(any(*socket)),
            Step::Join { socket } => self.join(any(*socket)),
            Step::Bind { socket, in_group } => self.bind(any(*socket), *in_group),
            Step::Rename { times } => self.rename(*times),
            Step::Peek { socket, reading } => self.peek(any(*socket), *reading),
            Step::Read { socket, reading } => self.read(any(*socket), *reading),
            Step::CheckListing => self.check_listing(),
            Step::Send { socket, message } => self.send(any(*socket), message),
            Step::Post { socket, message } => self.post(any(*socket), message),
        }
    }

    fn open(&mut self, bound: bool) -> TestResult {
        self.sockets.push(if bound {
            CheckedSocket::new(container::open()?, true)
        } else {
            let socket = Listener::open_unbound()?;
            // As far as possible: only some processes have the rights.
            let _ = socket.enlarge_buffer();
            CheckedSocket::new(socket, false)
        });
        Ok(())
    }

    fn close(&mut self, index: usize) -> TestResult {
        self.sockets[index].drain(self.environment, self.tally)?;
        self.abandon(index)
    }

    /// Closes a descriptor, whatever is queued.
    fn abandon(&mut self, index: usize) -> TestResult {
        let socket = &mut self.sockets[index];
        let port_id = socket.handle()?.port_id()?;
        socket.handles.pop();
        if socket.handles.is_empty() {
            self.sockets.remove(index);
            let lines = self.environment.lines(self.net_ns, &[port_id])?;
            expect_eq("lines of a closed socket", lines, vec![])?;
        }
        Ok(())
    }

    fn filter(&mut self, index: usize) -> TestResult {
        self.sockets[index].filter(self.environment, self.tally)
    }

    fn duplicate(&mut self, index: usize) -> TestResult {
        let socket = &mut self.sockets[index];
        if socket.handles.len() < HANDLES {
            let another = socket.handle()?.duplicate()?;
            socket.handles.push(another);
        }
        Ok(())
    }

    /// Passes a descriptor on. The last one is received in any case, so that the socket stays.
    fn pass_on(&mut self, index: usize, is_read: bool) -> TestResult {
        let socket = &mut self.sockets[index];
        socket.drain(self.environment, self.tally)?;
        let handover = Handover::new()?;
        handover.send(socket.handle()?)?;
        let is_last = socket.handles.len() == 1;
        socket.handles.pop();
        if is_last || is_read {
            socket.handles.push(handover.receive()?);
        }
        drop(handover);
        self.check_line(index)
    }

    fn leave(&mut self, index: usize) -> TestResult {
        let socket = &mut self.sockets[index];
        socket.handle()?.socket().drop_membership(CN_PROC)?;
        self.left(index)
    }

    fn join(&mut self, index: usize) -> TestResult {
        let socket = &mut self.sockets[index];
        socket.handle()?.socket().add_membership(CN_PROC)?;
        socket.is_member = true;
        self.check_line(index)
    }

    fn bind(&mut self, index: usize, in_group: bool) -> TestResult {
        let socket = &mut self.sockets[index];
        let socket = socket.handle()?;
        let port_id = socket.port_id()?;
        let group = u32::from(in_group) * CN_PROC;
        socket.socket().bind(&SocketAddr::new(port_id, group))?;
        if !in_group {
            return self.left(index);
        }
        self.sockets[index].is_member = true;
        self.check_line(index)
    }

    /// Notes that a socket is no longer a member. If it was one, it no longer listens.
    fn left(&mut self, index: usize) -> TestResult {
        self.sockets[index].left(self.environment, self.tally)?;
        self.check_line(index)
    }

    /// Renames this task. Sockets that asked for it get the event, and no others do.
    fn rename(&mut self, times: usize) -> TestResult {
        for _ in 0..times {
            self.names += 1;
            let name = format!("fuzz {}", self.names);
            mark(&name)?;
            let name = comm(&name);
            let sockets = self.sockets.iter_mut();
            sockets.for_each(|socket| socket.renamed(name, self.environment));
        }
        for socket in self.sockets.iter_mut().filter(|socket| socket.is_late()) {
            socket.drain(self.environment, self.tally)?;
        }
        Ok(())
    }

    fn peek(&mut self, index: usize, reading: Reading) -> TestResult {
        self.sockets[index].peek(reading, self.tally)
    }

    fn read(&mut self, index: usize, reading: Reading) -> TestResult {
        self.sockets[index].read(reading, self.environment, self.tally)
    }

    fn check_listing(&mut self) -> TestResult {
        (0..self.sockets.len()).try_for_each(|index| self.check_line(index))
    }

    fn check_line(&mut self, index: usize) -> TestResult {
        self.sockets[index].check_line(self.net_ns, self.environment, self.tally)
    }

    fn send(&mut self, index: usize, message: &Message) -> TestResult {
        self.sockets[index].send(message, self.environment, self.tally)
    }

    fn post(&mut self, index: usize, message: &Message) -> TestResult {
        self.sockets[index].post(message, self.environment, self.tally)
    }
}
