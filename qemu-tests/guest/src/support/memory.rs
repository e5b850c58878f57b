// SPDX-License-Identifier: GPL-2.0
//! How much memory the kernel uses, and how much is free, by /proc/meminfo.

use std::fs;
use std::time::Duration;

use super::polling::poll_until_done;
use crate::harness::Failure;

/// How long the kernel may take to free what it frees after a grace period, or in a work queue.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);

const MEMINFO: &str = "/proc/meminfo";

/// The sum of these fields, in kilobytes.
fn sum_kb(fields: &[&str]) -> Result<u64, Failure> {
    let text = fs::read_to_string(MEMINFO)?;
    let values = fields.iter().map(|field| {
        let value = |line: &str| {
            let value = line.strip_prefix(field)?.strip_prefix(':')?;
            value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        let missing = || Failure::new(format!("{field} in {MEMINFO}"));
        text.lines().find_map(value).ok_or_else(missing)
    });
    values.sum()
}

/// The memory that the kernel uses and can't reclaim, in kilobytes: slabs that can't be reclaimed,
/// stacks, page tables, and what modules and per-CPU counters take.
pub fn used_kb() -> Result<i64, Failure> {
    const FIELDS: [&str; 5] = [
        "SUnreclaim",
        "KernelStack",
        "PageTables",
        "VmallocUsed",
        "Percpu",
    ];
    Ok(i64::try_from(sum_kb(&FIELDS)?)?)
}

/// Expects the kernel to use less than this much more memory than before, both in kilobytes, as soon as
/// it has freed what it frees later. Returns how much more it uses. `when` tells what was done since.
#[track_caller]
pub fn expect_growth_below(limit: i64, before: i64, when: &str) -> Result<i64, Failure> {
    let mut growth = 0;
    poll_until_done(SETTLE_LIMIT, || {
        growth = used_kb()? - before;
        let grows = growth >= limit;
        Ok(grows.then(|| format!("less than {limit} kB more in use {when}, got {growth}")))
    })?;
    Ok(growth)
}

/// The free memory, in bytes.
pub fn free() -> Result<u64, Failure> {
    Ok(sum_kb(&["MemFree"])? * 1024)
}
