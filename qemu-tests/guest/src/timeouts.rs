// SPDX-License-Identifier: GPL-2.0
//! Time limits within tests, on kernels that are slow because they check themselves.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// What limits are multiplied with. Set before the first test; a test's processes inherit it.
static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Sets what limits are multiplied with.
pub fn set_factor(factor: u32) {
    FACTOR.store(factor, Ordering::Relaxed);
}

/// A limit, scaled for this kernel.
pub fn scaled(limit: Duration) -> Duration {
    limit * FACTOR.load(Ordering::Relaxed)
}

/// A limit in the form for poll(2): in milliseconds, rounded up so that it does not end early, or as long as
/// poll(2) can wait.
pub fn for_poll(limit: Duration) -> PollTimeout {
    PollTimeout::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
}

/// The time until a deadline, in the form for poll(2). It is 0 if the deadline is over.
pub fn poll_until(deadline: Instant) -> PollTimeout {
    for_poll(deadline.saturating_duration_since(Instant::now()))
}

/// The time at which a limit ends that begins now and is scaled for this kernel.
pub fn deadline(limit: Duration) -> Instant {
    Instant::now() + scaled(limit)
}
