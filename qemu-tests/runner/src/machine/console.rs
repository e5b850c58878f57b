// SPDX-License-Identifier: GPL-2.0
//! The guest's console: kept in a log file and watched for the kernel's complaints.
//!
//! Results never come from here. What the kernel says shows only when something failed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

/// Lines of the console that a failure shows.
const TAIL_LINES: usize = 40;

/// How many of them were there before the kernel's first complaint.
const LINES_BEFORE: usize = 5;

/// What a kernel says when something is wrong with it.
const COMPLAINTS: [&str; 32] = [
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
    "detected stall",
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

/// Checkers of all the kernel, whose reports are framed: data races, and values that were never set.
const CHECKERS: [&str; 2] = ["KCSAN:", "KMSAN:"];

/// The frame.
const FRAME: &str = "==================================";

/// What names our code in a stack trace. Reports of these checkers that are not ours are nobody's
/// trouble here.
const OURS: [&str; 4] = ["proc_event", "connector", " cn_", "netlink_deliver"];

/// What in a console line shows that the kernel is in trouble.
pub fn complaint(line: &str) -> Option<&'static str> {
    COMPLAINTS
        .into_iter()
        .find(|complaint| line.contains(complaint))
}

/// The console of a running guest.
pub struct Console {
    state: Arc<Mutex<State>>,
    reader: JoinHandle<()>,
    log: PathBuf,
}

#[derive(Default)]
struct State {
    /// The last lines until the first complaint, and what follows that.
    excerpt: VecDeque<String>,
    /// Whether that complaint came.
    has_complaint: bool,
    complaints: Vec<String>,
    /// The report of such a checker that is being read.
    report: Option<Vec<String>>,
}

impl State {
    fn take(&mut self, line: String) {
        if CHECKERS.iter().any(|checker| line.contains(checker)) {
            self.report = Some(vec![line]);
            return;
        }
        if let Some(mut report) = self.report.take() {
            if !line.contains(FRAME) {
                report.push(line);
                self.report = Some(report);
                return;
            }
            let names_us = |line: &String| OURS.iter().any(|name| line.contains(name));
            if report.iter().any(names_us) {
                report.into_iter().for_each(|line| self.keep(line));
            }
        }
        self.keep(line);
    }

    fn keep(&mut self, line: String) {
        if complaint(&line).is_some() {
            if !self.has_complaint {
                let superfluous = self.excerpt.len().saturating_sub(LINES_BEFORE);
                self.excerpt.drain(..superfluous);
                self.has_complaint = true;
            }
            self.complaints.push(line.clone());
        }
        if self.excerpt.len() == TAIL_LINES {
            if self.has_complaint {
                return;
            }
            self.excerpt.pop_front();
        }
        self.excerpt.push_back(line);
    }
}

impl Console {
    /// Follows a console until its end.
    pub fn follow(stream: impl Read + Send + 'static, log: PathBuf) -> Result<Self> {
        let mut file =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let reader = thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut bytes = Vec::new();
            while stream
                .read_until(b'\n', &mut bytes)
                .is_ok_and(|length| length > 0)
            {
                // A log that cannot be written (no space) must not stop the guest.
                let _ = file.write_all(&bytes);
                let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                lock(&shared).take(line);
            }
        });
        Ok(Self { state, reader, log })
    }

    /// Waits for the console's end, which comes with QEMU's. Only then is all of it known.
    pub fn end(self) -> Transcript {
        // A panic of the reader would have been reported when it happened.
        let _ = self.reader.join();
        Transcript {
            state: self.state,
            log: self.log,
        }
    }
}

/// What was said on the console of a guest that is no more.
pub struct Transcript {
    state: Arc<Mutex<State>>,
    log: PathBuf,
}

impl Transcript {
    /// What the kernel complained about.
    pub fn complaints(&self) -> Vec<String> {
        lock(&self.state).complaints.clone()
    }

    /// The lines around the first complaint, or the last ones; and where all of them are.
    pub fn excerpt(&self) -> String {
        let state = lock(&self.state);
        let lines = match state.has_complaint {
            true => "the console when the kernel complained first",
            false => "the last lines of the console",
        };
        let mut text = format!("{lines} (all of it: {}):\n", self.log.display());
        for line in &state.excerpt {
            text += &format!("  | {line}\n");
        }
        text
    }

    /// Removes the log, which is of no interest.
    pub fn remove_log(self) {
        remove(&self.log);
    }
}

fn remove(log: &Path) {
    if let Err(error) = std::fs::remove_file(log) {
        eprintln!("proc-events-vm: cannot remove {}: {error}", log.display());
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .expect("no thread panics while it holds the console's state")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_said_last_is_known_at_the_end() {
        let (reader, mut writer) = UnixStream::pair().unwrap();
        let log = std::env::temp_dir().join(format!("console-test-{}.log", std::process::id()));
        let console = Console::follow(reader, log.clone()).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(console.end()));
        let early = receiver.recv_timeout(Duration::from_millis(100));
        assert!(early.is_err(), "it did not wait");
        writer.write_all(b"BUG: the last word\n").unwrap();
        drop(writer);
        let transcript = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(transcript.complaints(), ["BUG: the last word"]);
        assert!(transcript.excerpt().ends_with("BUG: the last word\n"));
        transcript.remove_log();
        assert!(!log.exists());
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
    fn the_excerpt_shows_the_first_complaint_or_the_end() {
        let mut state = State::default();
        (0..100).for_each(|number| state.take(format!("line {number}")));
        assert_eq!(state.excerpt.len(), TAIL_LINES);
        assert_eq!(state.excerpt.back().unwrap(), "line 99");
        state.take("BUG: first".into());
        (0..100).for_each(|number| state.take(format!("after {number}")));
        state.take("BUG: second".into());
        assert_eq!(state.excerpt.front().unwrap(), "line 95");
        assert_eq!(state.excerpt[LINES_BEFORE], "BUG: first");
        assert_eq!(state.excerpt.len(), TAIL_LINES);
        assert_eq!(state.complaints, ["BUG: first", "BUG: second"]);
    }

    #[test]
    fn only_reports_that_name_our_code_are_trouble() {
        let report = |state: &mut State, what: &str, function: &str| {
            let frame = "=".repeat(66);
            for line in [
                frame.as_str(),
                &format!("BUG: {what}"),
                &format!(" {function}+0x1/0x2"),
                &frame,
            ] {
                state.take(line.to_owned());
            }
        };
        for what in ["KCSAN: data-race in a / b", "KMSAN: uninit-value in a"] {
            let mut state = State::default();
            report(&mut state, what, "schedule");
            assert!(state.complaints.is_empty());
            report(&mut state, what, "__proc_event_exit");
            assert_eq!(state.complaints.len(), 1);
            assert!(state.excerpt.iter().any(|line| line.contains("proc_event")));
            state.take("BUG: after it".into());
            assert_eq!(state.complaints.len(), 2);
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
