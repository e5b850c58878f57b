// SPDX-License-Identifier: GPL-2.0
//! The cost of events for their reader, by the number of events when it reads.

use anyhow::{Result, ensure};
use protocol::bench::{BenchRecord, Reading, Situation, UNREAD};

use super::clock::instructions;
use super::listener_set::ListenerSet;
use super::measure::{measure, repeated};
use super::operations::rename;
use super::reader::Reader;
use super::report::report_line;
use crate::wire::mask;

/// How many figures there are.
pub const FIGURES: usize = UNREAD.len();

/// Measures one listener that gets events in the form of the situation.
pub fn run(situation: Situation) -> Result<()> {
    let set = ListenerSet::silent(1)?;
    set.change_form(situation, mask::COMM)?;
    for unread in UNREAD {
        report_line(&BenchRecord::Reading(read(&set, situation, unread)?))?;
    }
    set.ignore()
}

/// Raises this many events, and then counts the instructions that it takes to read all of them. That
/// includes the last system call, which finds nothing.
fn read(set: &ListenerSet, situation: Situation, unread: u32) -> Result<Reading> {
    let [listener] = set.listeners() else {
        unreachable!("there is one listener");
    };
    let mut reader = Reader::default();
    let mut datagrams = 0;
    let measured = measure(
        &mut repeated(|| {
            for _ in 0..unread {
                rename()?;
            }
            let started = instructions();
            let count = reader.read_all(listener, mask::COMM)?;
            let taken = instructions() - started;
            let events = count.events;
            ensure!(
                events == u64::from(unread),
                "a listener got {events} of {unread} events"
            );
            datagrams = count.datagrams;
            Ok(taken)
        }),
        &mut |_| Ok(()),
    )?
    .of_each(u64::from(unread));
    Ok(Reading {
        situation,
        unread,
        datagrams: u32::try_from(datagrams)?,
        instructions: measured.median,
        spread: measured.spread,
    })
}
