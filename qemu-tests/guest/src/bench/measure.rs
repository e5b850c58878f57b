// SPDX-License-Identifier: GPL-2.0
//! The figure of one operation.
//!
//! The clock counts instructions exactly, but it includes the timer's interrupt, and the occasional
//! work of allocators and RCU. So the operation is repeated in batches. A batch's mean has its share
//! of regular work, and the median of the batches leaves out rare work.

use std::io::Write;
use std::os::unix::net::UnixStream;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The number of batches of a figure.
const BATCHES: usize = 15;

/// The length of a batch, in instructions: a quarter of the time between two ticks, so that most
/// batches have no tick.
const BATCH_INSTRUCTIONS: u64 = 1_000_000;

/// How often an operation is repeated in a batch.
const REPETITIONS: std::ops::RangeInclusive<u64> = 4..=512;

/// A figure, in instructions.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Measured {
    /// The median of the batches' means.
    pub median: f64,
    /// The median of their distances from it.
    pub spread: f64,
    /// The upper limit of the cheapest tenth of all times.
    pub low: f64,
}

impl Measured {
    /// The figure of several rounds.
    pub fn of_rounds(rounds: &[Self]) -> Self {
        let middle =
            |part: fn(&Self) -> f64| median(&mut rounds.iter().map(part).collect::<Vec<_>>());
        Self {
            median: middle(|round| round.median),
            spread: middle(|round| round.spread),
            low: middle(|round| round.low),
        }
    }

    /// The figure of each of this many operations that were measured together.
    pub fn of_each(self, many: u64) -> Self {
        Self {
            median: self.median / many as f64,
            spread: self.spread / many as f64,
            low: self.low / many as f64,
        }
    }
}

/// Returns a function that does an operation as often as its argument says.
pub fn repeated(mut operation: impl FnMut() -> Result<u64>) -> impl FnMut(u64) -> Result<Vec<u64>> {
    move |times| (0..times).map(|_| operation()).collect()
}

/// How many instructions an operation took, each time that it was done.
#[derive(Default)]
pub struct Times {
    means: Vec<f64>,
    all: Vec<f64>,
}

impl Times {
    /// Does the operation in this many batches. `operation` gets the number of repetitions, and
    /// returns the number of instructions of each. `between` is called after each batch, with the
    /// number of repetitions.
    pub fn take(
        &mut self,
        batches: usize,
        operation: &mut dyn FnMut(u64) -> Result<Vec<u64>>,
        between: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        // Warms up, and shows how many repetitions fit into a batch.
        let few = *REPETITIONS.start();
        let cost = operation(few)?.pop().unwrap_or(0);
        between(few)?;
        let repetitions = (BATCH_INSTRUCTIONS / cost.max(1)).clamp(few, *REPETITIONS.end());
        self.take_of(batches, repetitions, operation, between)
    }

    /// The same without a warm-up, in batches of this many repetitions, however long these take.
    pub fn take_of(
        &mut self,
        batches: usize,
        repetitions: u64,
        operation: &mut dyn FnMut(u64) -> Result<Vec<u64>>,
        between: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let mut held = HeldBuffers::new()?;
        for _ in 0..batches {
            held.hold_one_more()?;
            let taken = operation(repetitions)?;
            between(repetitions)?;
            self.means
                .push(taken.iter().sum::<u64>() as f64 / repetitions as f64);
            self.all.extend(taken.into_iter().map(|taken| taken as f64));
        }
        Ok(())
    }

    /// The figure.
    pub fn measured(mut self) -> Measured {
        summarize(&mut self.means, &mut self.all)
    }
}

/// Small socket buffers that are in use, so that each batch gets other ones. memcpy() of x86-64 copies
/// backwards if the last byte of the source's address is the smaller one, which takes four instructions
/// more. With one buffer that is used again and again, a figure would depend on its address.
struct HeldBuffers {
    writer: UnixStream,
    _reader: UnixStream,
}

impl HeldBuffers {
    fn new() -> Result<Self> {
        let (writer, _reader) = UnixStream::pair()?;
        Ok(Self { writer, _reader })
    }

    /// Each write(2) takes a buffer, until it is read.
    fn hold_one_more(&mut self) -> Result<()> {
        Ok(self.writer.write_all(&[0])?)
    }
}

/// Measures an operation in all its batches, without rounds.
pub fn measure(
    operation: &mut dyn FnMut(u64) -> Result<Vec<u64>>,
    between: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Measured> {
    let mut times = Times::default();
    times.take(BATCHES, operation, between)?;
    Ok(times.measured())
}

fn summarize(means: &mut [f64], all: &mut [f64]) -> Measured {
    let center = median(means);
    let mut distances: Vec<_> = means.iter().map(|mean| (mean - center).abs()).collect();
    Measured {
        median: center,
        spread: median(&mut distances),
        low: part(all, 10),
    }
}

/// The value in the middle.
pub fn median(values: &mut [f64]) -> f64 {
    part(values, 2)
}

/// The smallest value after the lowest 1/`one_in` of all values.
fn part(values: &mut [f64], one_in: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / one_in]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_outliers_are_left_out() {
        let mut means = vec![100.0; 15];
        means[3] = 5000.0;
        means[9] = 90.0;
        let mut all = vec![100.0; 20];
        all[7] = 30.0;
        all[8] = 40.0;
        all[9] = 70.0;
        let expected = Measured {
            median: 100.0,
            spread: 0.0,
            low: 70.0,
        };
        assert_eq!(summarize(&mut means, &mut all), expected);
        assert_eq!(summarize(&mut [1.0, 9.0, 4.0], &mut [1.0]).median, 4.0);
        assert_eq!(summarize(&mut [1.0, 9.0, 4.0], &mut [1.0]).spread, 3.0);
    }

    #[test]
    fn batches_are_as_long_as_they_may_be() {
        let mut batches = Vec::new();
        let mut between = |times| {
            batches.push(times);
            Ok(())
        };
        let measured = measure(&mut repeated(|| Ok(10_000)), &mut between).unwrap();
        assert_eq!((measured.median, measured.spread), (10_000.0, 0.0));
        assert_eq!(batches.len(), BATCHES + 1);
        assert_eq!((batches[0], batches[1]), (4, 100));
        batches.clear();
        let mut between = |times| {
            batches.push(times);
            Ok(())
        };
        measure(&mut repeated(|| Ok(9_000_000)), &mut between).unwrap();
        assert!(batches.iter().all(|times| *times == 4));
    }

    #[test]
    fn batches_may_have_a_given_length() {
        let mut batches = Vec::new();
        let mut between = |times| {
            batches.push(times);
            Ok(())
        };
        let mut times = Times::default();
        times
            .take_of(3, 512, &mut repeated(|| Ok(9_000_000)), &mut between)
            .unwrap();
        assert_eq!(batches, [512; 3]);
        assert_eq!(times.measured().median, 9_000_000.0);
    }

    #[test]
    fn errors_end_a_measurement() {
        assert!(measure(&mut repeated(|| Ok(1)), &mut |_| anyhow::bail!("lost")).is_err());
        assert!(measure(&mut |_| anyhow::bail!("failed"), &mut |_| Ok(())).is_err());
    }
}
