// SPDX-License-Identifier: GPL-2.0
//! Waiting for what no event, signal or handshake reports.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Failure, TestResult, expect};
use crate::timeouts;

/// Polls until nothing is awaited any more. `awaited` returns what still is, for the failure when the
/// limit is over. The limit is scaled for this kernel.
#[track_caller]
pub fn poll_until_done(
    limit: Duration,
    awaited: impl FnMut() -> Result<Option<String>, Failure>,
) -> TestResult {
    poll_with_pauses(Duration::ZERO, limit, awaited)
}

/// Like [`poll_until_done`], but pauses for this time before each further poll. This is for polls that
/// delay what is awaited.
#[track_caller]
pub fn poll_with_pauses(
    pause: Duration,
    limit: Duration,
    mut awaited: impl FnMut() -> Result<Option<String>, Failure>,
) -> TestResult {
    let deadline = timeouts::deadline(limit);
    while let Some(what) = awaited()? {
        expect(Instant::now() < deadline, what)?;
        match pause {
            Duration::ZERO => thread::yield_now(),
            pause => thread::sleep(pause),
        }
    }
    Ok(())
}
