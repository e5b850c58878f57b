// SPDX-License-Identifier: GPL-2.0
//! One thread leads several sockets through their lives, and knows at each step what has to be.

use netlink_sys::SocketAddr;

use super::coverage::Following;
use super::message::Message;
use super::own_namespace;
use super::peer::{Peer, Surroundings};
use super::program::{Program, Step};
use super::reading::Reading;
use super::tally::Tally;
use crate::harness::{TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::container::{self, Handover};
use crate::support::scenario::{comm, mark};
use crate::wire::CN_PROC;

/// Sockets at one time.
const SOCKETS: usize = 6;

/// Descriptors of one socket.
const HANDLES: usize = 3;

/// Sockets and those who know what has to be true of them.
struct Life<'a> {
    peers: Vec<Peer>,
    net_ns: u64,
    /// How many times this task was renamed.
    names: u32,
    surroundings: &'a Surroundings,
    tally: &'a mut Tally,
}

/// Runs a program, and notes what it runs through if somebody follows.
pub fn run(
    program: &Program,
    surroundings: &Surroundings,
    tally: &mut Tally,
    mut following: Option<&mut Following<'_, '_>>,
) -> TestResult {
    let mut life = Life {
        peers: Vec::new(),
        net_ns: own_namespace("net")?,
        names: 0,
        surroundings,
        tally,
    };
    for step in program.steps() {
        let step = step?;
        match &mut following {
            Some(following) => following.note(|| life.step(&step))?,
            None => life.step(&step)?,
        }
    }
    life.check_listing()?;
    while !life.peers.is_empty() {
        life.close(0)?;
    }
    Ok(())
}

impl Life<'_> {
    fn step(&mut self, step: &Step) -> TestResult {
        if self.peers.is_empty() {
            return self.open(true);
        }
        let any = |socket: usize| socket % self.peers.len();
        match step {
            Step::Open { bound } => match self.peers.len() {
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
        self.peers.push(if bound {
            Peer::new(container::open()?, true)
        } else {
            let socket = Listener::open_unbound()?;
            // As far as it may: only some have the rights.
            let _ = socket.enlarge_buffer();
            Peer::new(socket, false)
        });
        Ok(())
    }

    fn close(&mut self, index: usize) -> TestResult {
        self.peers[index].drain(self.surroundings, self.tally)?;
        self.abandon(index)
    }

    /// Closes a descriptor, whatever there is to read.
    fn abandon(&mut self, index: usize) -> TestResult {
        let peer = &mut self.peers[index];
        let port_id = peer.socket()?.port_id()?;
        peer.handles.pop();
        if peer.handles.is_empty() {
            self.peers.remove(index);
            let lines = self.surroundings.lines(self.net_ns, &[port_id])?;
            expect_eq("lines of a closed socket", lines, vec![])?;
        }
        Ok(())
    }

    fn filter(&mut self, index: usize) -> TestResult {
        self.peers[index].filter(self.surroundings, self.tally)
    }

    fn duplicate(&mut self, index: usize) -> TestResult {
        let peer = &mut self.peers[index];
        if peer.handles.len() < HANDLES {
            let another = peer.socket()?.duplicate()?;
            peer.handles.push(another);
        }
        Ok(())
    }

    /// The last descriptor is read in any case, so that the socket stays.
    fn pass_on(&mut self, index: usize, is_read: bool) -> TestResult {
        let peer = &mut self.peers[index];
        peer.drain(self.surroundings, self.tally)?;
        let handover = Handover::new()?;
        handover.send(peer.socket()?)?;
        let is_last = peer.handles.len() == 1;
        peer.handles.pop();
        if is_last || is_read {
            peer.handles.push(handover.receive()?);
        }
        drop(handover);
        self.check_line(index)
    }

    fn leave(&mut self, index: usize) -> TestResult {
        let peer = &mut self.peers[index];
        peer.socket()?.socket().drop_membership(CN_PROC)?;
        self.left(index)
    }

    fn join(&mut self, index: usize) -> TestResult {
        let peer = &mut self.peers[index];
        peer.socket()?.socket().add_membership(CN_PROC)?;
        peer.is_member = true;
        self.check_line(index)
    }

    fn bind(&mut self, index: usize, in_group: bool) -> TestResult {
        let peer = &mut self.peers[index];
        let socket = peer.socket()?;
        let port_id = socket.port_id()?;
        let group = u32::from(in_group) * CN_PROC;
        socket.socket().bind(&SocketAddr::new(port_id, group))?;
        if !in_group {
            return self.left(index);
        }
        self.peers[index].is_member = true;
        self.check_line(index)
    }

    /// A socket is no member any more; who was one, does not listen any more.
    fn left(&mut self, index: usize) -> TestResult {
        self.peers[index].left(self.surroundings, self.tally)?;
        self.check_line(index)
    }

    /// Renames this task: who asked for it hears it, and nobody else does.
    fn rename(&mut self, times: usize) -> TestResult {
        for _ in 0..times {
            self.names += 1;
            let name = format!("fuzz {}", self.names);
            mark(&name)?;
            let name = comm(&name);
            let peers = self.peers.iter_mut();
            peers.for_each(|peer| peer.renamed(name, self.surroundings));
        }
        for peer in self.peers.iter_mut().filter(|peer| peer.is_late()) {
            peer.drain(self.surroundings, self.tally)?;
        }
        Ok(())
    }

    fn peek(&mut self, index: usize, reading: Reading) -> TestResult {
        self.peers[index].peek(reading, self.tally)
    }

    fn read(&mut self, index: usize, reading: Reading) -> TestResult {
        self.peers[index].read(reading, self.surroundings, self.tally)
    }

    fn check_listing(&mut self) -> TestResult {
        (0..self.peers.len()).try_for_each(|index| self.check_line(index))
    }

    fn check_line(&mut self, index: usize) -> TestResult {
        self.peers[index].check_line(self.net_ns, self.surroundings, self.tally)
    }

    fn send(&mut self, index: usize, message: &Message) -> TestResult {
        self.peers[index].send(message, self.surroundings, self.tally)
    }

    fn post(&mut self, index: usize, message: &Message) -> TestResult {
        self.peers[index].post(message, self.surroundings, self.tally)
    }
}
