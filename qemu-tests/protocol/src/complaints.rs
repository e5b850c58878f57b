// SPDX-License-Identifier: GPL-2.0
//! Finds the lines of the kernel's log that show that something is wrong with the kernel, and the
//! test that was running then.
//!
//! Two programs read that log. The guest program reads `/dev/kmsg` during each test, and fails the
//! test. The runner reads the console, which also has messages that the guest program could no
//! longer read.

/// Marks the line of the log at the start of a test. The test's name follows.
pub const TEST_BEGINS: &str = "proc-events: test ";

/// The line after the last test.
pub const TESTS_ENDED: &str = "proc-events: the tests ended";

/// The line before a dump that was requested. A dump has backtraces, but is no complaint.
pub const DUMP_BEGINS: &str = "proc-events: dump begins";

/// The line after it.
pub const DUMP_ENDED: &str = "proc-events: dump ended";

/// The line before complaints that a test provokes and checks itself.
pub const PROVOKED_BEGINS: &str = "proc-events: complaints are provoked";

/// The line after them.
pub const PROVOKED_ENDED: &str = "proc-events: no more complaints are provoked";

/// Messages of a kernel when something is wrong with it.
const COMPLAINTS: [&str; 34] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "Kernel panic",
    "Call Trace:",
    "Call trace:",
    "cut here",
    "general protection fault",
    "unable to handle",
    "Unable to handle",
    "Internal error:",
    "kernel NULL pointer dereference",
    "blocked for more than",
    "blocked in I/O wait for more than",
    "detected stall",
    "detected expedited stall",
    "soft lockup",
    "hard LOCKUP",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "bad unlock balance",
    "suspicious RCU usage",
    "trying to register non-static key",
    "scheduling while atomic",
    "KASAN:",
    "KCSAN:",
    "KMSAN:",
    "KFENCE:",
    "UBSAN:",
    "new suspected memory leaks",
    "refcount_t:",
    "unregister_netdevice:",
    "panicked at",
];

/// Checkers of the whole kernel, for data races and uninitialized values. Reports have a frame.
const CHECKERS: [&str; 2] = ["KCSAN:", "KMSAN:"];

/// The frame.
const FRAME: &str = "==================================";

/// Parts of the names of our code in a stack trace. Reports of these checkers about other code are
/// ignored.
const OURS: [&str; 4] = ["proc_event", "connector", " cn_", "netlink_deliver"];

/// The part of a line of the log that shows that the kernel is in trouble.
pub fn complaint(line: &str) -> Option<&'static str> {
    COMPLAINTS
        .into_iter()
        .find(|complaint| line.contains(complaint))
}

/// A line of the log, and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// The line itself.
    pub text: String,
    /// Whether the kernel complains in it.
    pub complains: bool,
    /// The test that was running, if any.
    pub test: Option<String>,
}

/// Interprets a log, line by line.
#[derive(Debug, Default)]
pub struct Reader {
    test: Option<String>,
    in_dump: bool,
    /// Whether a test provokes complaints.
    is_provoked: bool,
    /// The report of one of [`CHECKERS`] that is being read.
    report: Option<Vec<String>>,
    /// Whether a checker reported something during this test, and during the one before it.
    has_reports: [bool; 2],
}

impl Reader {
    /// Takes a line. Returns the lines that can be judged by now: this line, no line while a report
    /// of a checker is being read, or all lines of such a report at its end.
    pub fn take(&mut self, text: &str) -> Vec<LogLine> {
        if let Some((_, test)) = text.split_once(TEST_BEGINS) {
            self.test = Some(test.to_owned());
            // A test that was killed did not write PROVOKED_ENDED.
            self.is_provoked = false;
            self.has_reports = [false, self.has_reports[0]];
        } else if text.contains(TESTS_ENDED) {
            self.test = None;
        } else if text.contains(DUMP_BEGINS) {
            self.in_dump = true;
        } else if text.contains(DUMP_ENDED) {
            self.in_dump = false;
        } else if text.contains(PROVOKED_BEGINS) {
            self.is_provoked = true;
        } else if text.contains(PROVOKED_ENDED) {
            self.is_provoked = false;
        } else if !self.in_dump && !self.is_provoked {
            return self.take_of_kernel(text);
        }
        vec![self.line(text, false)]
    }

    /// Treats all lines that follow as a dump, which the kernel was asked for in another way.
    pub fn dump_begins(&mut self) {
        self.in_dump = true;
    }

    /// Whether the last line was of a dump.
    pub fn is_in_dump(&self) -> bool {
        self.in_dump
    }

    /// Whether there was a report of a checker, which may have been about other code, during this
    /// test or the one before it. The kernel counts such a report as a warning, after it wrote the
    /// report, so that the next test may find the higher count.
    pub fn has_foreign_reports(&self) -> bool {
        self.has_reports.contains(&true)
    }

    fn take_of_kernel(&mut self, text: &str) -> Vec<LogLine> {
        if CHECKERS.iter().any(|checker| text.contains(checker)) {
            self.has_reports[0] = true;
            self.report = Some(vec![text.to_owned()]);
            return Vec::new();
        }
        let mut lines = Vec::new();
        if let Some(mut report) = self.report.take() {
            if !text.contains(FRAME) {
                report.push(text.to_owned());
                self.report = Some(report);
                return Vec::new();
            }
            let names_us = |line: &String| OURS.iter().any(|name| line.contains(name));
            if report.iter().any(names_us) {
                lines.extend(report.iter().map(|line| self.judged(line)));
            }
        }
        lines.push(self.judged(text));
        lines
    }

    fn judged(&self, text: &str) -> LogLine {
        self.line(text, complaint(text).is_some())
    }

    fn line(&self, text: &str, complains: bool) -> LogLine {
        LogLine {
            text: text.to_owned(),
            complains,
            test: self.test.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(reader: &mut Reader, lines: &[&str]) -> Vec<LogLine> {
        let lines = lines.iter().flat_map(|line| reader.take(line));
        lines.filter(|line| line.complains).collect()
    }

    #[test]
    fn a_complaint_is_reported_with_its_test() {
        let mut reader = Reader::default();
        let lines = complaints(
            &mut reader,
            &[
                "BUG: before all",
                "[    1.5] proc-events: test a::b",
                "BUG: first",
                "proc-events: test c::d",
                "all is well",
                "BUG: second",
                "proc-events: the tests ended",
                "BUG: after all",
            ],
        );
        let tests = lines.iter().map(|line| line.test.as_deref());
        assert_eq!(
            tests.collect::<Vec<_>>(),
            [None, Some("a::b"), Some("c::d"), None]
        );
    }

    #[test]
    fn a_requested_dump_is_no_complaint() {
        let mut reader = Reader::default();
        let dump = [DUMP_BEGINS, "Call Trace:", DUMP_ENDED, "Call Trace:"];
        assert_eq!(complaints(&mut reader, &dump).len(), 1);
        reader.dump_begins();
        assert_eq!(complaints(&mut reader, &dump[1..2]).len(), 0);
    }

    #[test]
    fn what_a_test_provokes_is_no_complaint_and_no_dump() {
        let next_test = format!("{TEST_BEGINS}a::b");
        for end in [PROVOKED_ENDED, &next_test] {
            let mut reader = Reader::default();
            assert_eq!(
                complaints(&mut reader, &[PROVOKED_BEGINS, "Call Trace:"]),
                []
            );
            assert!(!reader.is_in_dump());
            assert_eq!(complaints(&mut reader, &[end, "Call Trace:"]).len(), 1);
        }
    }

    #[test]
    fn a_test_that_begins_during_a_report_is_seen() {
        let mut reader = Reader::default();
        let frame = "=".repeat(66);
        let lines = complaints(
            &mut reader,
            &[
                "BUG: KCSAN: data-race in a / proc_event_b",
                "proc-events: test a::b",
                &frame,
                "BUG: another",
            ],
        );
        assert_eq!(lines.len(), 2);
        assert!(
            lines
                .iter()
                .all(|line| line.test.as_deref() == Some("a::b"))
        );
        assert!(reader.has_foreign_reports());
    }

    #[test]
    fn a_report_is_known_until_the_next_test_has_ended() {
        let mut reader = Reader::default();
        let mut known_in = |line: &str| {
            reader.take(&format!("{TEST_BEGINS}a::b"));
            reader.take(line);
            reader.has_foreign_reports()
        };
        assert!(known_in("BUG: KCSAN: data-race in vfs_read / vfs_write"));
        assert!(known_in(FRAME));
        assert!(!known_in("all is well"));
    }

    #[test]
    fn trouble_is_recognised() {
        for line in [
            "[    1.2] BUG: unable to handle page fault for address: ffff",
            "WARNING: kernel/fork.c:12 at copy_process+0x1/0x2, CPU#0: sh/12",
            "Oops: general protection fault, probably for non-canonical address",
            "Kernel panic - not syncing: Fatal exception",
            "INFO: task sh:12 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_sched self-detected stall on CPU",
            "BUG: KASAN: slab-use-after-free in cn_send+0x1/0x2",
            "kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "unregister_netdevice: waiting for lo to become free. Usage count = 2",
            "rust_kernel: panicked at proc_events.rs:3:5:",
            "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010",
            "Internal error: Oops: 0000000096000004 [#1]  SMP",
        ] {
            assert!(complaint(line).is_some(), "{line}");
        }
    }

    #[test]
    fn ordinary_lines_are_not_trouble() {
        for line in [
            "PCI: Using host bridge windows from ACPI; if necessary, use \"pci=nocrs\" and report a bug",
            "kasan: KernelAddressSanitizer initialized (generic)",
            "kmemleak: Kernel memory leak detector initialized (mem pool available: 15679)",
            "proc_events: loading out-of-tree module taints kernel.",
            "reboot: Power down",
            "debugfs on /sys/kernel/debug type debugfs (rw,relatime)",
        ] {
            assert_eq!(complaint(line), None, "{line}");
        }
    }
}
