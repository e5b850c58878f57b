// SPDX-License-Identifier: GPL-2.0
//! The kernel's objects, as slabinfo(5) counts them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::harness::{Failure, TestResult};

const SLABINFO: &str = "/proc/slabinfo";

/// Caches of objects that belong to namespaces. A kernel may merge a cache with another one of the same
/// object size. It never merges that of sockets, whose objects have a constructor.
const OF_NAMESPACES: [&str; 4] = [
    "sock_inode_cache",
    "net_namespace",
    "pid_namespace",
    "user_namespace",
];

/// Objects in use, by their cache.
pub struct Objects(BTreeMap<String, u64>);

impl Objects {
    /// The cache that grew most, and by how many objects.
    pub fn most_more_than(self, before: &Self) -> (String, u64) {
        let more = self.0.into_iter().map(|(name, count)| {
            let before = before.0.get(&name).copied().unwrap_or(0);
            (name, count.saturating_sub(before))
        });
        more.max_by_key(|(_, more)| *more).unwrap_or_default()
    }
}

/// Skips a test where objects cannot be counted.
pub fn require() -> TestResult {
    if !Path::new(SLABINFO).exists() {
        return Err(Failure::skip("the kernel has no /proc/slabinfo"));
    }
    // What is freed waits in KASAN's quarantine before it may be used again, and counts as in use.
    if fs::read_to_string("/proc/kallsyms")?.contains(" kasan_quarantine_put") {
        return Err(Failure::skip("KASAN keeps what was freed"));
    }
    Ok(())
}

/// How many objects of namespaces are in use.
pub fn of_namespaces() -> Result<Objects, Failure> {
    objects(|cache| OF_NAMESPACES.contains(&cache))
}

/// How many objects that kmalloc() allocated are in use, by their size. They are those that can't be
/// reclaimed: the others come and go with files and directories.
pub fn of_kmalloc() -> Result<Objects, Failure> {
    objects(|cache| cache.starts_with("kmalloc-") && !cache.starts_with("kmalloc-rcl-"))
}

/// How many objects of these caches are in use.
fn objects(is_counted: impl Fn(&str) -> bool) -> Result<Objects, Failure> {
    let text = fs::read_to_string(SLABINFO)?;
    let objects = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| is_counted(name))?;
        Some((name.to_owned(), words.next()?.parse().ok()?))
    });
    Ok(Objects(objects.collect()))
}
