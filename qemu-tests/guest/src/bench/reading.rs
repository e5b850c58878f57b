// SPDX-License-Identifier: GPL-2.0
//! What events cost their reader, by how many there are when it reads.

use anyhow::{Result, ensure};
use protocol::bench::{Line, Reading, Situation, UNREAD};

use crate::bench::clock::instructions;
use crate::bench::crowd::Crowd;
use crate::bench::measure::{measure, repeated};
use crate::bench::operations::rename;
use crate::bench::reader::Reader;
use crate::bench::say;
use crate::wire::mask;

/// How many figures there are.
pub const FIGURES: usize = UNREAD.len();

/// Measures one listener that gets events in that form.
pub fn run(situation: Situation) -> Result<()> {
    let crowd = Crowd::silent(1)?;
    crowd.change_form(situation, mask::COMM)?;
    for unread in UNREAD {
        say(&Line::Reading(read(&crowd, situation, unread)?))?;
    }
    crowd.ignore()
}

/// Raises so many events, and then counts what it takes to read all of them, with the last system
/// call, which finds nothing.
fn read(crowd: &Crowd, situation: Situation, unread: u32) -> Result<Reading> {
    let [listener] = crowd.listeners() else {
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
            let tally = reader.read_all(listener, mask::COMM)?;
            let taken = instructions() - started;
            let events = tally.events;
            ensure!(
                events == u64::from(unread),
                "a listener got {events} of {unread} events"
            );
            datagrams = tally.datagrams;
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
