// SPDX-License-Identifier: GPL-2.0
//! Time limits within tests, on kernels that are slow because of debugging checks.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// The factor of all limits. It is set before the first test, and a test's processes inherit it.
static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Sets the factor of all limits.
pub fn set_factor(factor: u32) {
    FACTOR.store(factor, Ordering::Relaxed);
}

/// A limit, scaled for this kernel.
pub fn scaled(limit: Duration) -> Duration {
    limit * FACTOR.load(Ordering::Relaxed)
}

/// A limit in the form for poll(2): in milliseconds, rounded up so that it does not end early. If
/// that is too long for poll(2), it is the longest time that poll(2) can wait.
pub fn for_poll(limit: Duration) -> PollTimeout {
    PollTimeout::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
}

/// The time until a deadline, in the form for poll(2). It is 0 if the deadline is over.
pub fn poll_until(deadline: Instant) -> PollTimeout {
    for_poll(deadline.saturating_duration_since(Instant::now()))
}

/// The time at which a limit ends that begins now. The limit is scaled for this kernel.
pub fn deadline(limit: Duration) -> Instant {
    Instant::now() + scaled(limit)
}
