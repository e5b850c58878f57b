// SPDX-License-Identifier: GPL-2.0
//! A listener that counts the events that it reads, and those that are missing by their numbers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, ensure};

use crate::harness::Failure;
use crate::listener::Listener;
use crate::results;
use crate::support::sequence_numbers::SequenceNumbers;
use crate::timeouts;

/// A listener, and what it has read.
pub struct CountedListener {
    listener: Listener,
    /// The port id, by which the listing in debugfs knows the listener.
    pub port_id: u32,
    /// Events read.
    pub events: u64,
    /// How often it read ENOBUFS.
    pub overruns: u64,
    /// Numbers that are missing.
    pub missing: u64,
    numbers: SequenceNumbers,
}

impl CountedListener {
    /// Begins with the answer to the request that made it a listener.
    pub fn new(mut listener: Listener) -> Result<Self> {
        Ok(Self {
            numbers: SequenceNumbers::first(&mut listener).map_err(into_error)?,
            port_id: listener.port_id()?,
            listener,
            events: 0,
            overruns: 0,
            missing: 0,
        })
    }

    /// Reads what is queued.
    pub fn read(&mut self) -> Result<()> {
        self.read_at_most(usize::MAX)
    }

    /// Reads what is queued, but at most this many events: they may come as fast as they are read.
    pub fn read_at_most(&mut self, limit: usize) -> Result<()> {
        for _ in 0..limit {
            match self.listener.receive(Instant::now()) {
                Ok(None) => return Ok(()),
                Ok(Some(received)) => {
                    let missing = self.numbers.advance_to(&received).map_err(into_error)?;
                    self.missing += u64::from(missing);
                    self.events += 1;
                }
                Err(error) if error.is_overrun() => self.overruns += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn into_error(failure: Failure) -> Error {
    anyhow!("{failure}")
}

/// What the kernel's accounts of several listeners add up to.
pub struct Totals {
    /// Events that the listeners were to get. None if that is not known of each listener.
    pub generated: Option<u64>,
    /// Events that they got.
    pub delivered: u64,
    /// Events that they lost.
    pub lost: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            generated: Some(0),
            delivered: 0,
            lost: 0,
        }
    }
}

/// What a load found when it compared the kernel's accounts with what the listeners read.
#[derive(Default)]
pub struct Comparison {
    /// A line for each listener.
    pub lines: Vec<String>,
    pub totals: Totals,
    /// What does not balance.
    pub wrong: Vec<String>,
}

impl Comparison {
    /// Prints the lines and reports the totals as figures. Fails unless all accounts balance.
    pub fn report(&self, load: &str) -> Result<()> {
        for line in &self.lines {
            println!("{load}: {line}");
        }
        let Totals {
            generated,
            delivered,
            lost,
        } = self.totals;
        for (name, value) in [
            ("events generated", generated),
            ("events delivered", Some(delivered)),
            ("events lost", Some(lost)),
        ] {
            if let Some(value) = value {
                results::figure(name, value as f64);
            }
        }
        ensure!(
            self.wrong.is_empty(),
            "accounts do not balance: {}",
            self.wrong.join("; ")
        );
        Ok(())
    }
}

/// Reads what is queued for each listener.
pub fn read(listeners: &mut [CountedListener]) -> Result<()> {
    listeners.iter_mut().try_for_each(CountedListener::read)
}

/// Reads and compares until the accounts balance, or until the limit is over.
///
/// The EXIT of a child may come a moment after its parent has waited for it. Until then an account may
/// not balance. An account that is wrong never does.
pub fn settle(
    listeners: &mut [CountedListener],
    limit: Duration,
    compare: impl Fn(&[CountedListener]) -> Result<Comparison>,
) -> Result<Comparison> {
    let deadline = timeouts::deadline(limit);
    loop {
        read(listeners)?;
        let comparison = compare(listeners)?;
        if comparison.wrong.is_empty() || Instant::now() > deadline {
            return Ok(comparison);
        }
        thread::yield_now();
    }
}
