// SPDX-License-Identifier: GPL-2.0
//! Time limits within tests, on kernels that are slow because they check themselves.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What limits are multiplied with. Set before the first test; a test's processes inherit it.
static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Sets what limits are multiplied with.
pub fn set(factor: u32) {
    FACTOR.store(factor, Ordering::Relaxed);
}

/// How long something may take on this kernel that may take so long on others.
pub fn stretched(limit: Duration) -> Duration {
    limit * FACTOR.load(Ordering::Relaxed)
}

/// The end of a limit that begins now.
pub fn deadline(limit: Duration) -> Instant {
    Instant::now() + stretched(limit)
}
