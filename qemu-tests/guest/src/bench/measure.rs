// SPDX-License-Identifier: GPL-2.0
//! The figure of one operation.
//!
//! The clock counts instructions exactly, but the timer's interrupt, and what allocators and RCU
//! do now and then, are among them. So the operation is repeated in batches: a batch's mean has
//! its share of what comes regularly, and the median of the batches leaves out what comes seldom.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Batches of a figure.
const BATCHES: usize = 15;

/// How long a batch is to be, in instructions: a quarter of the time between two ticks, so that
/// most have none.
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
    /// What the cheapest tenth of all times took at most.
    pub low: f64,
}

impl Measured {
    /// The figure of each of so many things that were measured together.
    pub fn of_each(self, many: u64) -> Self {
        Self {
            median: self.median / many as f64,
            spread: self.spread / many as f64,
            low: self.low / many as f64,
        }
    }
}

/// Measures an operation that tells how many instructions it took. What is to happen `between` the
/// batches is told how often the operation was done.
pub fn measure(
    operation: &mut dyn FnMut() -> Result<u64>,
    between: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Measured> {
    // Warms up, and tells how many fit into a batch.
    let mut cost = 0;
    for _ in 0..*REPETITIONS.start() {
        cost = operation()?;
    }
    between(*REPETITIONS.start())?;
    let repetitions =
        (BATCH_INSTRUCTIONS / cost.max(1)).clamp(*REPETITIONS.start(), *REPETITIONS.end());
    let mut means = Vec::with_capacity(BATCHES);
    let mut all = Vec::new();
    for _ in 0..BATCHES {
        let mut sum = 0;
        for _ in 0..repetitions {
            let taken = operation()?;
            sum += taken;
            all.push(taken as f64);
        }
        between(repetitions)?;
        means.push(sum as f64 / repetitions as f64);
    }
    Ok(summarize(&mut means, &mut all))
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

fn median(values: &mut [f64]) -> f64 {
    part(values, 2)
}

/// The smallest value that is above one in so many.
fn part(values: &mut [f64], one_in: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / one_in]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_seldom_is_left_out() {
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
        let measured = measure(&mut || Ok(10_000), &mut between).unwrap();
        assert_eq!((measured.median, measured.spread), (10_000.0, 0.0));
        assert_eq!(batches.len(), BATCHES + 1);
        assert_eq!((batches[0], batches[1]), (4, 100));
        batches.clear();
        let mut between = |times| {
            batches.push(times);
            Ok(())
        };
        measure(&mut || Ok(9_000_000), &mut between).unwrap();
        assert!(batches.iter().all(|times| *times == 4));
    }

    #[test]
    fn errors_end_it() {
        assert!(measure(&mut || Ok(1), &mut |_| anyhow::bail!("lost")).is_err());
        assert!(measure(&mut || anyhow::bail!("failed"), &mut |_| Ok(())).is_err());
    }
}
