// SPDX-License-Identifier: GPL-2.0
//! What a run has done so far.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::AddAssign;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::message::{Fate, Request};
use crate::wire::{NLMSG_EVENT, Received};

/// Numbers that add up.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Tally {
    /// Datagrams sent.
    pub messages: u64,
    /// Those that sendto(2) refused.
    refused: u64,
    /// Those that nobody answered.
    unanswered: u64,
    /// Answers, by their errno.
    answers: BTreeMap<u32, u64>,
    /// How often a socket became a listener.
    pub listeners: u64,
    /// Events read.
    events: u64,
    /// Those of the type that may share a datagram.
    batched: u64,
    /// Those that told which process it is.
    identified: u64,
    /// Datagrams that were looked at.
    pub peeks: u64,
    /// Datagrams that did not fit when they were read.
    pub cut: u64,
    /// Rounds, by their kind.
    pub rounds: BTreeMap<String, u64>,
    /// Programs that were kept for what they ran through.
    pub kept: u64,
    /// Blocks of our code in the kernel that they ran through.
    pub blocks: BTreeSet<u64>,
}

impl Tally {
    /// Counts what became of a datagram.
    pub fn count(&mut self, fate: &Fate, error: impl Fn(&Request) -> u32) {
        match fate {
            Fate::Refused(_) => self.refused += 1,
            Fate::Unanswered => self.unanswered += 1,
            Fate::Answered(request) => *self.answers.entry(error(request)).or_default() += 1,
        }
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
            " {} peeks, {} datagrams cut; rounds:",
            self.peeks, self.cut
        )?;
        for (kind, count) in &self.rounds {
            write!(formatter, " {count} {kind}")?;
        }
        if self.kept > 0 {
            let (kept, blocks) = (self.kept, self.blocks.len());
            write!(
                formatter,
                "; {kept} programs kept, {blocks} blocks of our code"
            )?;
        }
        Ok(())
    }
}
