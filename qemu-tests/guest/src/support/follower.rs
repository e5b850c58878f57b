// SPDX-License-Identifier: GPL-2.0
//! A listener with its table, and what /proc and pidfds show of the same processes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use super::procfs::living_in_proc;
use super::state_dump::listen;
use crate::harness::{Failure, TestResult, expect};
use crate::identities;
use crate::listener::Listener;
use crate::process_table::{FLAGS, MASK, ProcessTable};
use crate::timeouts;
use crate::wire::{IGNORE, LISTEN, proc_listen};

/// How long a table may take to be exact, beside any load.
pub const EXACT_LIMIT: Duration = Duration::from_secs(20);

/// The living processes: the number in pidfs, the pid, and whether it leads a session.
pub type Living = BTreeSet<(u64, i32, bool)>;

/// A listener and its table.
pub struct Follower {
    /// The listener.
    pub listener: Listener,
    /// What the listener knows from the state and the events.
    pub table: ProcessTable,
    /// Flags of the listener, beside those that the table needs.
    flags: u32,
}

impl Follower {
    /// Begins to listen, with an empty table.
    pub fn new(flags: u32) -> Result<Self, Failure> {
        Ok(Self {
            listener: listen(MASK, FLAGS | flags)?,
            table: ProcessTable::default(),
            flags,
        })
    }

    /// The same with a small receive buffer, of this many bytes.
    pub fn with_little_room(flags: u32, room: usize) -> Result<Self, Failure> {
        let follower = Self::new(flags)?;
        setsockopt(&follower.listener, sockopt::RcvBuf, &room)?;
        Ok(follower)
    }

    /// Ends the listener and makes it one again, with an empty table.
    pub fn begin_anew(&mut self) -> TestResult {
        self.listener.request(&[IGNORE])?;
        self.listener.take_queued()?;
        self.listener
            .request(&proc_listen(LISTEN, MASK, FLAGS | self.flags))?;
        self.table = ProcessTable::default();
        Ok(())
    }

    /// Reads until the table is exact.
    #[track_caller]
    pub fn complete(&mut self) -> TestResult {
        let limit = timeouts::deadline(EXACT_LIMIT);
        let is_exact = self.table.complete(&mut self.listener, limit)?;
        expect(is_exact, "an exact table")
    }

    /// Reads this many messages.
    #[track_caller]
    pub fn read(&mut self, count: usize) -> TestResult {
        let limit = timeouts::deadline(EXACT_LIMIT);
        for _ in 0..count {
            let received = self.table.read(&mut self.listener, limit)?;
            expect(received.is_some(), "events of the load")?;
        }
        Ok(())
    }

    /// Expects the table to be the kernel's own, while nothing happens.
    ///
    /// The end of a process may be reported a moment after it was waited for, and /proc may show the
    /// process until then. A table that is wrong stays wrong.
    #[track_caller]
    pub fn expect_exact(&mut self) -> TestResult {
        let limit = timeouts::deadline(EXACT_LIMIT);
        loop {
            let is_exact = self.table.catch_up(&mut self.listener, limit)?;
            expect(is_exact, "an exact table")?;
            let (living, by_proc) = (self.living(), living_by_proc()?);
            if living == by_proc {
                return Ok(());
            }
            let (too_many, missing) = (&living - &by_proc, &by_proc - &living);
            expect(
                Instant::now() < limit,
                format!("0 differences, got {too_many:?} too many, and {missing:?} missing"),
            )?;
        }
    }

    /// The processes that live in the table.
    pub fn living(&self) -> Living {
        let living = self.table.living().iter();
        living
            .map(|(number, process)| (*number, process.pid, process.leads))
            .collect()
    }
}

/// The processes that live according to /proc and pidfds.
fn living_by_proc() -> Result<Living, Failure> {
    let mut living = Living::new();
    for (pid, stat) in living_in_proc()? {
        // A process that is gone in between has ended.
        if let Ok(number) = identities::number_of(Pid::from_raw(pid)) {
            living.insert((number, pid, stat.session == pid));
        }
    }
    Ok(living)
}
