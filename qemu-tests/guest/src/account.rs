// SPDX-License-Identifier: GPL-2.0
//! A listener's own account: how many events it read, and how many its numbers miss.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use crate::listener::Listener;
use crate::results;
use protocol::results::names;

/// A listener, and what it has read.
pub struct Account {
    listener: Listener,
    /// By which the listing knows it.
    pub port_id: u32,
    /// What it listens for.
    pub mask: u32,
    /// Events read.
    pub events: u64,
    /// How often it read ENOBUFS.
    pub overruns: u64,
    /// Numbers that were left out.
    pub missing: u64,
    /// The number that the next message of each CPU is to have.
    next: BTreeMap<u32, u32>,
}

impl Account {
    /// Begins with the answer to the request that made it a listener.
    pub fn new(mut listener: Listener, mask: u32) -> Result<Self> {
        let answer = listener.wait_for("the answer", |received| received.event.bit() == 0)?;
        let cpu = answer.message.body.cpu;
        let seq = answer.message.connector.seq;
        Ok(Self {
            port_id: listener.port_id()?,
            listener,
            mask,
            events: 0,
            overruns: 0,
            missing: 0,
            next: BTreeMap::from([(cpu, seq.wrapping_add(1))]),
        })
    }

    /// Reads what is there.
    pub fn read(&mut self) -> Result<()> {
        self.read_at_most(usize::MAX)
    }

    /// Reads what is there, but so many events at most: they may come as fast as they are read.
    pub fn read_at_most(&mut self, limit: usize) -> Result<()> {
        for _ in 0..limit {
            match self.listener.receive(Instant::now()) {
                Ok(None) => return Ok(()),
                Ok(Some(received)) => {
                    let (cpu, seq) = (received.message.body.cpu, received.message.connector.seq);
                    let next = self.next.entry(cpu).or_insert(0);
                    // A number from the past would be a huge gap, and so unbalance the account.
                    self.missing += u64::from(seq.wrapping_sub(*next));
                    *next = seq.wrapping_add(1);
                    self.events += 1;
                }
                Err(error) if error.is_overrun() => self.overruns += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// What the kernel's accounts of several listeners add up to.
#[derive(Default)]
pub struct Sum {
    /// Events that they were to get.
    pub generated: u64,
    /// Those that they got.
    pub delivered: u64,
    /// Those that they lost.
    pub lost: u64,
}

impl Sum {
    /// Tells it as figures.
    pub fn tell(&self) {
        for (name, value) in [
            (names::GENERATED, self.generated),
            (names::DELIVERED, self.delivered),
            (names::LOST, self.lost),
        ] {
            results::figure(name, value as f64);
        }
    }
}

/// Reads what is there for each.
pub fn read(accounts: &mut [Account]) -> Result<()> {
    accounts.iter_mut().try_for_each(Account::read)
}
