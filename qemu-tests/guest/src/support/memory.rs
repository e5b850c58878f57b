// SPDX-License-Identifier: GPL-2.0
//! How much memory the kernel uses, and how much is free, by /proc/meminfo.

use std::fs;

use crate::harness::Failure;

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

/// The free memory, in bytes.
pub fn free() -> Result<u64, Failure> {
    Ok(sum_kb(&["MemFree"])? * 1024)
}
