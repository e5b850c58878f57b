// SPDX-License-Identifier: GPL-2.0
//! The lines of the benchmark, for the runner or for a person.

use anyhow::Result;
use protocol::bench::{BenchRecord, Measurement, Operation, Situation};
use protocol::results::Record;

use super::measure::Measured;
use crate::results;

pub fn report_figure(
    operation: Operation,
    situation: Situation,
    listeners: u32,
    measured: Measured,
) -> Result<()> {
    report_line(&BenchRecord::Measurement(Measurement {
        operation,
        situation,
        listeners,
        instructions: measured.median,
        spread: measured.spread,
        low: measured.low,
        cost: None,
        added: None,
    }))
}

pub fn missing(figures: usize, situation: Situation, reason: String) -> Result<()> {
    let figures = u32::try_from(figures)?;
    report_line(&BenchRecord::Missing {
        figures,
        situation,
        reason,
    })
}

/// Writes a line for the runner, or for a person who runs the benchmark by hand.
pub fn report_line(line: &BenchRecord) -> Result<()> {
    if results::are_wanted() {
        results::write(&Record::Bench(line.clone()))?;
    } else {
        println!("{}", serde_json::to_string(line)?);
    }
    Ok(())
}
