// SPDX-License-Identifier: GPL-2.0
//! How much memory the kernel uses.

use std::fs;

use crate::harness::Failure;

/// The memory that the kernel uses and can't reclaim: slabs that can't be reclaimed, stacks, page
/// tables, and what modules and per-CPU counters take.
pub fn used_kb() -> Result<i64, Failure> {
    const FIELDS: [&str; 5] = [
        "SUnreclaim:",
        "KernelStack:",
        "PageTables:",
        "VmallocUsed:",
        "Percpu:",
    ];
    let text = fs::read_to_string("/proc/meminfo")?;
    let mut used = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(number)) = (words.next(), words.next()) {
            if FIELDS.contains(&name) {
                used += number.parse::<i64>()?;
            }
        }
    }
    Ok(used)
}
