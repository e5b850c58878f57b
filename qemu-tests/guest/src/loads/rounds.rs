// SPDX-License-Identifier: GPL-2.0
//! The rounds of a load, and its progress.

use std::time::{Duration, Instant};

use crate::harness::{Failure, TestResult};

/// For loads without a time limit.
pub const NO_LIMIT: Duration = Duration::MAX;

/// How many rounds run at least, even on a slow kernel.
const AT_LEAST: usize = 3;

/// How many times to print the progress.
const REPORTS: usize = 10;

/// Runs up to `most` rounds, but begins none after this time once there were [`AT_LEAST`]. Returns how
/// many there were. `load` names the load, and `what` names its rounds.
pub fn rounds(
    (load, what): (&str, &str),
    most: usize,
    time: Duration,
    mut round: impl FnMut(usize) -> TestResult,
) -> Result<usize, Failure> {
    let started = Instant::now();
    let mut count = 0;
    while count < most && (count < AT_LEAST || started.elapsed() < time) {
        round(count).map_err(|failure| failure.about(format!("in round {count}")))?;
        count += 1;
        if count % most.div_ceil(REPORTS) == 0 || count == most {
            let elapsed = started.elapsed();
            let seconds = elapsed.as_secs_f64();
            let rest = rest(elapsed, count, most).min(time.saturating_sub(elapsed));
            let left = match rest.is_zero() {
                true => String::new(),
                false => format!(", about {:.0} s left", rest.as_secs_f64()),
            };
            println!("{load}: {count} of {most} {what} ({seconds:.1} s{left})");
        }
    }
    Ok(count)
}

/// Estimates how long the remaining rounds take, if `count` rounds have taken this time.
fn rest(elapsed: Duration, count: usize, most: usize) -> Duration {
    elapsed.mul_f64((most - count) as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_per_round() {
        let elapsed = Duration::from_secs(30);
        assert_eq!(rest(elapsed, 100, 1000), Duration::from_secs(270));
        assert_eq!(rest(elapsed, 1000, 1000), Duration::ZERO);
    }
}
