// SPDX-License-Identifier: GPL-2.0
//! One thread leads several sockets through their lives, and knows at each step what has to be.

use arbitrary::Unstructured;
use fastrand::Rng;
use netlink_sys::SocketAddr;

use super::message::Message;
use super::peer::{Peer, Surroundings};
use super::tally::Tally;
use super::{message, own_namespace};
use crate::harness::{Failure, TestResult, expect_eq};
use crate::listener::Listener;
use crate::tests::container::{self, Handover};
use crate::tests::scenario::{comm, mark, own_task};
use crate::wire::{CN_PROC, Event, mask};

/// Steps of a round.
const STEPS: usize = 200;

/// Sockets at one time.
const SOCKETS: usize = 6;

/// Descriptors of one socket.
const HANDLES: usize = 3;

/// Sockets and those who know what has to be true of them.
struct Life<'a> {
    peers: Vec<Peer>,
    random: Rng,
    net_ns: u64,
    /// How many times this task was renamed.
    names: u32,
    surroundings: &'a Surroundings,
    tally: &'a mut Tally,
}

/// Runs a round.
pub fn run(random: Rng, surroundings: &Surroundings, tally: &mut Tally) -> TestResult {
    let mut life = Life {
        peers: Vec::new(),
        random,
        net_ns: own_namespace("net")?,
        names: 0,
        surroundings,
        tally,
    };
    for _ in 0..STEPS {
        life.step()?;
    }
    life.check_listing()?;
    while !life.peers.is_empty() {
        life.close()?;
    }
    Ok(())
}

impl Life<'_> {
    fn step(&mut self) -> TestResult {
        if self.peers.is_empty() {
            return self.open();
        }
        match self.random.u8(..100) {
            0..4 if self.peers.len() < SOCKETS => self.open(),
            4..6 => self.close(),
            6..8 => self.duplicate(),
            8..10 => self.pass_on(),
            10..12 => self.leave(),
            12..14 => self.join(),
            14..16 => self.bind(),
            16..19 => self.rename(),
            19..21 => self.check_listing(),
            _ => self.send(),
        }
    }

    fn any(&mut self) -> usize {
        self.random.usize(..self.peers.len())
    }

    fn open(&mut self) -> TestResult {
        self.peers.push(if self.random.u8(..4) > 0 {
            Peer::new(container::open()?, true)
        } else {
            Peer::new(Listener::open_unbound()?, false)
        });
        Ok(())
    }

    /// Closes one descriptor, which ends a listener if it is the last one.
    fn close(&mut self) -> TestResult {
        let index = self.any();
        let peer = &mut self.peers[index];
        peer.drain(self.surroundings, self.tally)?;
        let port_id = peer.socket()?.port_id()?;
        peer.handles.pop();
        if peer.handles.is_empty() {
            self.peers.remove(index);
            let lines = self.surroundings.lines(self.net_ns, &[port_id])?;
            expect_eq("lines of a closed socket", lines, vec![])?;
        }
        Ok(())
    }

    fn duplicate(&mut self) -> TestResult {
        let index = self.any();
        let peer = &mut self.peers[index];
        if peer.handles.len() < HANDLES {
            let another = peer.socket()?.duplicate()?;
            peer.handles.push(another);
        }
        Ok(())
    }

    /// Passes one descriptor on, so that for a while only the message holds it, or lets it end in
    /// a message that nobody reads.
    fn pass_on(&mut self) -> TestResult {
        let index = self.any();
        let peer = &mut self.peers[index];
        peer.drain(self.surroundings, self.tally)?;
        let handover = Handover::new()?;
        handover.send(peer.socket()?)?;
        let is_last = peer.handles.len() == 1;
        peer.handles.pop();
        if is_last || self.random.bool() {
            peer.handles.push(handover.receive()?);
        }
        drop(handover);
        self.check_line(index)
    }

    fn leave(&mut self) -> TestResult {
        let index = self.any();
        let peer = &mut self.peers[index];
        peer.socket()?.socket().drop_membership(CN_PROC)?;
        self.left(index)
    }

    fn join(&mut self) -> TestResult {
        let index = self.any();
        let peer = &mut self.peers[index];
        peer.socket()?.socket().add_membership(CN_PROC)?;
        peer.is_member = true;
        self.check_line(index)
    }

    /// Binds a socket to its own address once more, with the group or without.
    fn bind(&mut self) -> TestResult {
        let index = self.any();
        let peer = &mut self.peers[index];
        let socket = peer.socket()?;
        let port_id = socket.port_id()?;
        let group = if self.random.bool() { CN_PROC } else { 0 };
        socket.socket().bind(&SocketAddr::new(port_id, group))?;
        if group == 0 {
            return self.left(index);
        }
        self.peers[index].is_member = true;
        self.check_line(index)
    }

    /// A socket is no member any more; who was one, does not listen any more.
    fn left(&mut self, index: usize) -> TestResult {
        let peer = &mut self.peers[index];
        peer.drain(self.surroundings, self.tally)?;
        if peer.is_member {
            peer.ended();
        }
        peer.is_member = false;
        self.check_line(index)
    }

    /// Renames this task: who asked for it hears it once, and nobody else does.
    fn rename(&mut self) -> TestResult {
        for peer in &mut self.peers {
            let heard = peer.drain(self.surroundings, self.tally)?;
            expect_eq("renames that did not happen", own_names(&heard), vec![])?;
        }
        self.names += 1;
        let name = format!("fuzz {}", self.names);
        mark(&name)?;
        for peer in &mut self.peers {
            let heard = peer.drain(self.surroundings, self.tally)?;
            let expected = match peer.mask() & mask::COMM {
                0 => vec![],
                _ => vec![comm(&name)],
            };
            expect_eq("renames", own_names(&heard), expected)?;
        }
        Ok(())
    }

    fn check_listing(&mut self) -> TestResult {
        (0..self.peers.len()).try_for_each(|index| self.check_line(index))
    }

    fn check_line(&mut self, index: usize) -> TestResult {
        self.peers[index].check_line(self.net_ns, self.surroundings, self.tally)
    }

    fn send(&mut self) -> TestResult {
        let index = self.any();
        let message = any_message(&mut self.random)?;
        self.peers[index].send(&message, self.surroundings, self.tally)
    }
}

/// The names that this task had, as events tell.
fn own_names(events: &[Event]) -> Vec<[u8; 16]> {
    let names = events.iter().filter_map(|event| match event {
        Event::Comm { task, comm } if *task == own_task() => Some(*comm),
        _ => None,
    });
    names.collect()
}

/// The next message that follows from a seed.
pub fn any_message(random: &mut Rng) -> Result<Message, Failure> {
    let mut bytes = [0; message::ENTROPY];
    random.fill(&mut bytes);
    Ok(Unstructured::new(&bytes).arbitrary()?)
}
