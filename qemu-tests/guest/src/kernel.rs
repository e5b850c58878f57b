// SPDX-License-Identifier: GPL-2.0
//! The kernel's messages while the tests run. The framework checks them after each test, so that a
//! warning is a failure of the test during which it was logged.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::iter;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{Pid, getpid};
use protocol::complaints::{DUMP_BEGINS, DUMP_ENDED, LogLine, Reader, TEST_BEGINS, TESTS_ENDED};

use crate::harness::{Complaint, KernelWatch};
use crate::proc_stat::{Stat, processes};
use crate::support::kernel_log::{self, Log};

/// How many warnings and reports there were. Kernels before 6.1 don't count them.
const WARN_COUNT: &str = "/sys/kernel/warn_count";

/// The kernel's taint flags, a bit for each reason.
const TAINTED: &str = "/proc/sys/kernel/tainted";

/// The bits that stand for trouble: a machine check, a bad page, an oops, a warning, and a CPU that
/// was stuck. The other bits describe what was loaded.
const TROUBLE_TAINTS: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14;

/// The file that requests dumps from the kernel.
const SYSRQ_TRIGGER: &str = "/proc/sysrq-trigger";

/// This file exists if lockdep records the locks that each task holds.
const LOCKDEP: &str = "/proc/lockdep";

/// How many lines of the log go with a complaint, and how many of them were there before it.
const LINES: usize = 60;
const LINES_BEFORE: usize = 5;

/// The kernel under test, by its log and its counters.
pub struct Watched {
    log: Log,
    reader: Reader,
    before: Counters,
}

impl Watched {
    /// Watches the kernel from now on.
    pub fn new() -> Result<Self> {
        Ok(Self {
            log: Log::new().context("cannot read the kernel's log")?,
            reader: Reader::default(),
            before: Counters::read()?,
        })
    }

    /// The lines that were logged since the last call.
    fn lines(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        loop {
            match self.log.records() {
                Ok(records) => {
                    let texts = records.iter().flat_map(|record| text(record));
                    lines.extend(texts.flat_map(|text| self.reader.take(&text)));
                    return Ok(lines);
                }
                // The log is a ring buffer, and records were overwritten before they were read.
                // The next read continues with the oldest record.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl KernelWatch for Watched {
    fn test_begins(&mut self, test: &str) -> io::Result<()> {
        // Lines that were logged between the tests belong to no test.
        self.lines()?;
        self.before = Counters::read()?;
        kernel_log::say(&format!("{TEST_BEGINS}{test}"))
    }

    fn test_ended(&mut self) -> io::Result<Option<Complaint>> {
        let lines = self.lines()?;
        if let Some(complaint) = complaint(&lines) {
            return Ok(Some(complaint));
        }
        let now = Counters::read()?;
        // The kernel counts each report of a checker, also one that is not about the series.
        Ok(match self.reader.has_foreign_reports() {
            true => None,
            false => now.complaint_since(self.before),
        })
    }

    fn tests_ended(&mut self) -> io::Result<()> {
        kernel_log::say(TESTS_ENDED)
    }

    fn dump(&mut self, test: &str) -> io::Result<Vec<String>> {
        let stacks = stacks_below(getpid())?;
        kernel_log::say(&format!("{DUMP_BEGINS}: {test} hangs"))?;
        // Blocked tasks, the backtraces of all CPUs, the locks that are held.
        let mut keys = vec!['w', 'l'];
        if Path::new(LOCKDEP).exists() {
            keys.push('d');
        }
        let dumped = keys.into_iter().try_for_each(|key| {
            let mut trigger = OpenOptions::new().write(true).open(SYSRQ_TRIGGER)?;
            trigger.write_all(&[key as u8])
        });
        kernel_log::say(DUMP_ENDED)?;
        dumped.map(|()| stacks)
    }
}

/// The kernel's own counters of trouble.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    warnings: u64,
    taints: u64,
}

impl Counters {
    fn read() -> io::Result<Self> {
        let number = |path: &str| match fs::read_to_string(path) {
            Ok(text) => text.trim().parse().map_err(io::Error::other),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        };
        Ok(Self {
            warnings: number(WARN_COUNT)?,
            taints: number(TAINTED)? & TROUBLE_TAINTS,
        })
    }

    fn complaint_since(self, before: Self) -> Option<Complaint> {
        let new_taints = self.taints & !before.taints;
        if self.warnings == before.warnings && new_taints == 0 {
            return None;
        }
        let reason = format!(
            "the kernel's log shows no warning, but its counters do: {WARN_COUNT} went from {} to {}, \
             and {TAINTED} got {new_taints:#x}",
            before.warnings, self.warnings
        );
        let log = Vec::new();
        Some(Complaint { reason, log })
    }
}

/// The first complaint, and the lines around it.
fn complaint(lines: &[LogLine]) -> Option<Complaint> {
    let first = lines.iter().position(|line| line.complains)?;
    let shown = lines.iter().skip(first.saturating_sub(LINES_BEFORE));
    Some(Complaint {
        reason: format!(
            "the kernel complained during this test: {}",
            lines[first].text
        ),
        log: shown.take(LINES).map(|line| line.text.clone()).collect(),
    })
}

/// The lines in a record of `/dev/kmsg`, which escapes unprintable characters.
fn text(record: &str) -> Vec<String> {
    let text = record.split_once(';').map_or("", |(_, text)| text);
    // The lines after the first one describe the device.
    let text = text.lines().next().unwrap_or_default();
    text.split("\\x0a").map(str::to_owned).collect()
}

/// The kernel stacks of all threads of the processes that descend from this one.
fn stacks_below(ancestor: Pid) -> io::Result<Vec<String>> {
    let mut parents = BTreeMap::new();
    for pid in processes()? {
        // A process that is gone by now does not hang.
        if let Ok(stat) = Stat::of(pid) {
            parents.insert(pid, stat.parent);
        }
    }
    let mut lines = Vec::new();
    for pid in parents.keys() {
        let mut ancestors = iter::successors(parents.get(pid), |pid| parents.get(pid))
            // There is a limit, because pids may have been reused while they were read.
            .take(parents.len());
        if ancestors.any(|pid| *pid == ancestor.as_raw()) {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
            {
                lines.extend(stack_of(&thread?.path()));
            }
        }
    }
    Ok(lines)
}

/// One thread's name, state and stack.
fn stack_of(task: &Path) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    let tid = task.file_name().unwrap_or_default().to_string_lossy();
    let state = Stat::of(task.strip_prefix("/proc").unwrap_or(task).display());
    let state = state.map_or('?', |stat| stat.state);
    let name = read("comm");
    let mut lines = vec![format!("{tid} {} in state {state}", name.trim_end())];
    lines.extend(read("stack").lines().map(|line| format!("  {line}")));
    lines
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_record_is_its_text() {
        let record = "6,1403,5140900,-;usb 1-1: two\\x0alines\n SUBSYSTEM=usb\n DEVICE=c189:3\n";
        assert_eq!(text(record), ["usb 1-1: two", "lines"]);
        assert_eq!(text("no record"), [""]);
    }

    #[test]
    fn a_complaint_shows_what_was_logged_around_it() {
        let mut reader = Reader::default();
        let mut lines: Vec<_> = (0..100)
            .flat_map(|number| reader.take(&format!("line {number}")))
            .collect();
        assert!(complaint(&lines).is_none());
        lines.extend(reader.take("WARNING: first"));
        lines.extend((0..100).flat_map(|number| reader.take(&format!("after {number}"))));
        let complaint = complaint(&lines).unwrap();
        assert!(complaint.reason.ends_with(": WARNING: first"));
        assert_eq!(complaint.log.len(), LINES);
        assert_eq!(complaint.log[LINES_BEFORE], "WARNING: first");
    }

    #[test]
    fn the_kernels_counters_are_trusted() {
        let before = Counters {
            warnings: 1,
            taints: 1 << 9,
        };
        assert!(before.complaint_since(before).is_none());
        for warnings in [2, 3] {
            let now = Counters { warnings, ..before };
            assert!(now.complaint_since(before).is_some());
        }
        let taints = before.taints | 1 << 7;
        let now = Counters { taints, ..before };
        let complaint = now.complaint_since(before).unwrap();
        assert!(
            complaint.reason.ends_with("got 0x80"),
            "{}",
            complaint.reason
        );
    }

    #[test]
    fn a_stack_begins_with_its_thread_id() {
        let mut command = Command::new("cat");
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let lines = stacks_below(getpid()).unwrap();
        let expected = format!("{} ", child.id());
        assert!(lines.iter().any(|line| line.starts_with(&expected)));
        drop(child.stdin.take());
        child.wait().unwrap();
        let lines = stacks_below(getpid()).unwrap();
        assert!(!lines.iter().any(|line| line.starts_with(&expected)));
    }
}
