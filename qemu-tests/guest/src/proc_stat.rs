// SPDX-License-Identifier: GPL-2.0
//! A task's entry in /proc, see proc_pid_stat(5).

use std::fmt::Display;
use std::fs::{self, DirEntry};
use std::io;

/// A tick of the times in an entry, in nanoseconds. There are 100 ticks in a second.
pub const TICK: u64 = 10_000_000;

/// The pids of all processes, in the reader's pid namespace.
pub fn processes() -> io::Result<Vec<i32>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        processes.extend(number(&entry?));
    }
    Ok(processes)
}

/// The ids of the threads of a process. There are none if the process is gone.
pub fn threads_of(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let entries = entries.into_iter().flatten().flatten();
    entries.filter_map(|entry| number(&entry)).collect()
}

/// The number that is the name of an entry of a directory in /proc.
fn number(entry: &DirEntry) -> Option<i32> {
    entry.file_name().to_str()?.parse().ok()
}

/// A task's entry in /proc.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stat {
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    pub parent: i32,
    pub process_group: i32,
    /// Negative if the task was released while its entry was read.
    pub session: i32,
    /// In ticks, in the reader's time namespace.
    pub start: u64,
}

impl Stat {
    /// Reads the entry with this name in /proc: a process, or `PID/task/TID`.
    pub fn of(task: impl Display) -> io::Result<Self> {
        let path = format!("/proc/{task}/stat");
        // A name may contain any bytes.
        let stat = fs::read(&path)?;
        let stat = String::from_utf8_lossy(&stat);
        Self::parse(&stat).ok_or_else(|| io::Error::other(format!("{path}: {stat}")))
    }

    fn parse(stat: &str) -> Option<Self> {
        // The second field is a name, which may contain anything. Fields are counted from 1.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3);
        Some(Self {
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            process_group: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            start: field(22)?.parse().ok()?,
        })
    }
}

/// Whether a task has ended: it is gone, or waits to be reaped.
pub fn has_ended(task: impl Display) -> bool {
    Stat::of(task).map_or(true, |stat| matches!(stat.state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fields_follow_a_name_with_any_characters() {
        // The tests of the test framework leave this function out.
        use super::Stat;

        let fields: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("1 (a) S 2 (b) S {}\n", fields.join(" "));
        let expected = Stat {
            state: 'S',
            parent: 4,
            process_group: 5,
            session: 6,
            start: 22,
        };
        assert_eq!(Stat::parse(&stat), Some(expected));
        assert_eq!(Stat::parse("1 (a) S 4 5"), None);
    }
}
