// SPDX-License-Identifier: GPL-2.0
//! The rounds of a load, and how far it is.

use std::time::{Duration, Instant};

use crate::harness::{Failure, TestResult};

/// For loads that take as long as they take.
pub const NO_LIMIT: Duration = Duration::MAX;

/// How many rounds there are on any kernel.
const AT_LEAST: usize = 3;

/// How often to say how far it is.
const REPORTS: usize = 10;

/// Does so many rounds, but begins none after this time, unless there were hardly any. Tells how many
/// there were. `what` is the load, and what a round is.
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
            let seconds = started.elapsed().as_secs_f64();
            println!("{load}: {count} of {most} {what} ({seconds:.1} s)");
        }
    }
    Ok(count)
}
