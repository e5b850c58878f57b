// SPDX-License-Identifier: GPL-2.0
//! Time limits within tests, on kernels that are slow because they check themselves.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

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

/// The time at which a limit ends that begins now and is scaled for this kernel.
pub fn deadline(limit: Duration) -> Instant {
    Instant::now() + scaled(limit)
}
