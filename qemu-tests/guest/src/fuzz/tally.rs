// SPDX-License-Identifier: GPL-2.0
//! What a run has done so far.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::AddAssign;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::message::{Command, Reaction, Request};
use crate::wire::{NLMSG_EVENT, Received};

/// Counts that can be added up.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Tally {
    /// Datagrams sent.
    pub messages: u64,
    /// Datagrams that sendto(2) refused.
    refused: u64,
    /// Datagrams that got no answer.
    unanswered: u64,
    /// Answers read, by their errno.
    answers: BTreeMap<u32, u64>,
    /// How often a socket became a listener.
    pub listeners: u64,
    /// Events read.
    events: u64,
    /// Events of the type that may share a datagram.
    batched: u64,
    /// Events with an identity.
    identified: u64,
    /// Processes read that were a part of the state.
    processes: u64,
    /// Processes that sockets with a filter read.
    filtered: u64,
    /// States that were sent to the end.
    states: u64,
    /// States that were cut off.
    cut_off: u64,
    /// Datagrams that were peeked at.
    pub peeks: u64,
    /// Datagrams that did not fit when they were read.
    pub cut: u64,
    /// Rounds, by their kind.
    pub rounds: BTreeMap<String, u64>,
    /// Programs that were kept because they covered something new.
    pub kept: u64,
    /// Blocks of the code under test that they covered.
    pub blocks: BTreeSet<u64>,
}

impl Tally {
    /// Counts the reaction to a datagram, unless it is answered.
    pub fn count(&mut self, reaction: &Reaction) {
        match reaction {
            Reaction::Refused(_) => self.refused += 1,
            Reaction::Unanswered => self.unanswered += 1,
            Reaction::Answered(_) => {}
        }
    }

    /// Counts the answer to a request.
    pub fn answer(&mut self, request: &Request, error: u32) {
        *self.answers.entry(error).or_default() += 1;
        if request.command == Ok(Command::State) {
            self.states += u64::from(error == 0);
            self.cut_off += u64::from(error == Errno::ECANCELED as u32);
        }
    }

    /// Counts a process that is a part of the state.
    pub fn process(&mut self, has_filter: bool) {
        self.processes += 1;
        self.filtered += u64::from(has_filter);
    }

    /// Counts an event.
    pub fn event(&mut self, received: &Received) {
        self.events += 1;
        self.batched += u64::from(received.message.netlink.kind == NLMSG_EVENT);
        self.identified += u64::from(received.identity.is_some());
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.listeners += other.listeners;
        self.events += other.events;
        self.batched += other.batched;
        self.identified += other.identified;
        self.processes += other.processes;
        self.filtered += other.filtered;
        self.states += other.states;
        self.cut_off += other.cut_off;
        self.peeks += other.peeks;
        self.cut += other.cut;
        self.kept += other.kept;
        self.blocks.extend(other.blocks);
        for (errno, count) in other.answers {
            *self.answers.entry(errno).or_default() += count;
        }
        for (kind, count) in other.rounds {
            *self.rounds.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} messages:", self.messages)?;
        for (errno, count) in &self.answers {
            match errno {
                0 => write!(formatter, " {count} answered 0,")?,
                errno => {
                    let errno = Errno::from_raw(*errno as i32);
                    write!(formatter, " {count} {errno:?},")?;
                }
            }
        }
        write!(
            formatter,
            " {} unanswered, {} refused; {} listeners, {} events",
            self.unanswered, self.refused, self.listeners, self.events
        )?;
        write!(
            formatter,
            " ({} for batches, {} with an identity),",
            self.batched, self.identified
        )?;
        write!(
            formatter,
            " {} states and {} cut off, {} processes in them ({} through a filter),",
            self.states, self.cut_off, self.processes, self.filtered
        )?;
        write!(
            formatter,
            " {} peeks, {} datagrams cut; rounds:",
            self.peeks, self.cut
        )?;
        for (kind, count) in &self.rounds {
            write!(formatter, " {count} {kind}")?;
        }
        if self.kept > 0 {
            let (kept, blocks) = (self.kept, self.blocks.len());
            write!(formatter, "; {kept} programs kept, {blocks} blocks covered")?;
        }
        Ok(())
    }
}
