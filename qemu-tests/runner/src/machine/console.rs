// SPDX-License-Identifier: GPL-2.0
//! The guest's console: kept in a log file and watched for the kernel's complaints.
//!
//! Results are never read from the console. Its lines are shown only if something failed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use protocol::complaints::{LogLine, Reader};

/// Lines of the console that a failure shows.
const TAIL_LINES: usize = 40;

/// How many of them came before the kernel's first complaint.
const LINES_BEFORE: usize = 5;

/// The console of a running guest.
pub struct Console {
    state: Arc<Mutex<State>>,
    /// Signals that the state has grown.
    grown: Arc<Condvar>,
    reader: JoinHandle<()>,
    log: PathBuf,
}

#[derive(Default)]
struct State {
    reader: Reader,
    /// The last lines until the first complaint, and the lines after it.
    excerpt: VecDeque<String>,
    complaints: Vec<LogLine>,
    /// The lines of dumps that the kernel was asked for.
    dump: Vec<String>,
}

impl State {
    fn take(&mut self, text: &str) {
        for line in self.reader.take(text) {
            self.keep(line);
        }
        if self.reader.is_in_dump() {
            self.dump.push(text.to_owned());
        }
    }

    /// The kernel's first complaint, and the names of all tests during which it complained.
    fn verdict(&self) -> Option<String> {
        let first = self.complaints.first()?;
        let mut tests: Vec<&str> = Vec::new();
        let tests_of_lines = self.complaints.iter().map(|line| line.test.as_deref());
        for test in tests_of_lines.flatten() {
            if !tests.contains(&test) {
                tests.push(test);
            }
        }
        let place = match tests.as_slice() {
            [] => String::new(),
            tests => format!(" in {}", tests.join(", ")),
        };
        Some(format!("the kernel complained{place}: {}", first.text))
    }

    /// The line in which QEMU reported that it aborted, if it is among those that are kept.
    fn assertion(&self) -> Option<String> {
        let is_assertion =
            |line: &&String| line.starts_with("qemu-system-") && line.contains(": Assertion `");
        self.excerpt.iter().find(is_assertion).cloned()
    }

    fn keep(&mut self, line: LogLine) {
        if line.complains {
            if self.complaints.is_empty() {
                let superfluous = self.excerpt.len().saturating_sub(LINES_BEFORE);
                self.excerpt.drain(..superfluous);
            }
            self.complaints.push(line.clone());
        }
        if self.excerpt.len() == TAIL_LINES {
            if !self.complaints.is_empty() {
                return;
            }
            self.excerpt.pop_front();
        }
        self.excerpt.push_back(line.text);
    }
}

impl Console {
    /// Follows a console until its end.
    pub fn follow(stream: impl Read + Send + 'static, log: PathBuf) -> Result<Self> {
        let mut file =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let grown = Arc::new(Condvar::new());
        let grows = Arc::clone(&grown);
        let reader = thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut bytes = Vec::new();
            while stream
                .read_until(b'\n', &mut bytes)
                .is_ok_and(|length| length > 0)
            {
                // A log that cannot be written (no space) must not stop the guest.
                let _ = file.write_all(&bytes);
                lock(&shared).take(String::from_utf8_lossy(&bytes).trim_end());
                bytes.clear();
                grows.notify_all();
            }
        });
        Ok(Self {
            state,
            grown,
            reader,
            log,
        })
    }

    /// The path of the complete log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Treats all lines from now on as a dump that the kernel was asked for.
    pub fn dump_begins(&self) {
        let mut state = lock(&self.state);
        state.reader.dump_begins();
        state.dump.clear();
    }

    /// Waits until a dump's lines are as wanted. Returns false if they are not in time.
    pub fn dump_has(&self, wanted: impl Fn(&[String]) -> bool, limit: Duration) -> bool {
        let state = lock(&self.state);
        let missing = |state: &mut State| !wanted(&state.dump);
        let (_state, result) = self
            .grown
            .wait_timeout_while(state, limit, missing)
            .expect("no thread panics while it holds the console's state");
        !result.timed_out()
    }

    /// Waits for the end of the console, when QEMU ends. Only then is the console complete.
    pub fn end(self) -> Transcript {
        // A panic of the reader would have been reported when it happened.
        let _ = self.reader.join();
        Transcript {
            state: self.state,
            log: self.log,
        }
    }
}

/// The console of a guest that has ended.
pub struct Transcript {
    state: Arc<Mutex<State>>,
    log: PathBuf,
}

impl Transcript {
    /// The kernel's first complaint, and the names of all tests during which it complained.
    pub fn verdict(&self) -> Option<String> {
        lock(&self.state).verdict()
    }

    /// The line in which QEMU reported that it aborted, if it did.
    pub fn assertion(&self) -> Option<String> {
        lock(&self.state).assertion()
    }

    /// Whether the kernel was asked for a dump.
    pub fn has_dump(&self) -> bool {
        !lock(&self.state).dump.is_empty()
    }

    /// Adds to the log.
    pub fn add(&self, text: &str) {
        let file = File::options().append(true).open(&self.log);
        if let Err(error) = file.and_then(|mut file| file.write_all(text.as_bytes())) {
            eprintln!(
                "proc-events-vm: cannot add to {}: {error}",
                self.log.display()
            );
        }
    }

    /// The lines around the first complaint, or the last ones, and the path of the complete log.
    pub fn excerpt(&self) -> String {
        let state = lock(&self.state);
        let lines = match state.complaints.is_empty() {
            false => "the console when the kernel complained first",
            true => "the last lines of the console",
        };
        let mut text = format!("{lines} (all of it: {}):\n", self.log.display());
        for line in &state.excerpt {
            text += &format!("  | {line}\n");
        }
        text
    }

    /// Removes the log, which is not needed.
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

    use protocol::complaints::TEST_BEGINS;

    use super::*;

    #[test]
    fn the_last_line_is_known_at_the_end() {
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
        let verdict = "the kernel complained: BUG: the last word";
        assert_eq!(transcript.verdict().as_deref(), Some(verdict));
        assert!(transcript.excerpt().ends_with("BUG: the last word\n"));
        transcript.remove_log();
        assert!(!log.exists());
    }

    #[test]
    fn the_excerpt_shows_the_first_complaint_or_the_end() {
        let mut state = State::default();
        (0..100).for_each(|number| state.take(&format!("line {number}")));
        assert_eq!(state.excerpt.len(), TAIL_LINES);
        assert_eq!(state.excerpt.back().unwrap(), "line 99");
        state.take("BUG: first");
        (0..100).for_each(|number| state.take(&format!("after {number}")));
        state.take("BUG: second");
        assert_eq!(state.excerpt.front().unwrap(), "line 95");
        assert_eq!(state.excerpt[LINES_BEFORE], "BUG: first");
        assert_eq!(state.excerpt.len(), TAIL_LINES);
        let complaints = state.complaints.iter().map(|line| line.text.as_str());
        assert_eq!(
            complaints.collect::<Vec<_>>(),
            ["BUG: first", "BUG: second"]
        );
    }

    #[test]
    fn an_abort_of_qemu_is_no_failure_of_the_kernel() {
        let abort =
            "qemu-system-x86_64: hw/pci/msix.c:228: msix_table_mmio_write: Assertion `a' failed.";
        let mut state = State::default();
        for other in [
            "Kernel panic - not syncing: Oops",
            "a: Assertion `b' failed.",
            "qemu-system-x86_64: cannot open the disk",
        ] {
            state.take(other);
            assert_eq!(state.assertion(), None, "{other}");
        }
        state.take(abort);
        assert_eq!(state.assertion().as_deref(), Some(abort));
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
                state.take(line);
            }
        };
        for what in ["KCSAN: data-race in a / b", "KMSAN: uninit-value in a"] {
            let mut state = State::default();
            report(&mut state, what, "schedule");
            assert!(state.complaints.is_empty());
            report(&mut state, what, "__proc_event_exit");
            assert_eq!(state.complaints.len(), 1);
            assert!(state.excerpt.iter().any(|line| line.contains("proc_event")));
            state.take("BUG: after it");
            assert_eq!(state.complaints.len(), 2);
        }
    }

    /// A log in the directory beside this file: a whole report, either recorded, or written by hand
    /// from the kernel's source.
    macro_rules! log {
        ($name:literal) => {
            include_str!(concat!("console/", $name, ".txt"))
        };
    }

    fn state_after(log: &str) -> State {
        let mut state = State::default();
        log.lines().for_each(|line| state.take(line));
        state
    }

    #[test]
    fn reports_are_trouble_of_their_tests() {
        for (log, words) in [
            (log!("warn"), "cut here"),
            (log!("oops"), "BUG: kernel NULL pointer"),
            (log!("kasan"), "BUG: KASAN: slab-use-after-free"),
            (log!("kcsan"), "BUG: KCSAN: data-race"),
            (log!("kmsan"), "BUG: KMSAN: kernel-infoleak"),
            (log!("kmemleak"), "3 new suspected memory leaks"),
            (log!("ubsan"), "cut here"),
            (log!("lockdep"), "WARNING: possible circular locking"),
            (log!("rcu-usage"), "WARNING: suspicious RCU usage"),
            (log!("rcu-stall"), "self-detected stall on CPU"),
            (log!("rcu-expedited"), "detected expedited stalls"),
            (log!("soft-lockup"), "soft lockup - CPU#1 stuck"),
            (log!("hung-task"), "blocked for more than 122 seconds"),
            (log!("hung-task-io"), "blocked in I/O wait for more"),
            (log!("refcount"), "cut here"),
        ] {
            let (first, _) = log.split_once('\n').unwrap();
            let test = first.strip_prefix(TEST_BEGINS).expect(first);
            let verdict = state_after(log).verdict().expect(first);
            let expected = format!("the kernel complained in {test}: ");
            assert!(verdict.starts_with(&expected), "{verdict}");
            assert!(verdict.contains(words), "{words:?} is not in {verdict}");
        }
    }

    #[test]
    fn ordinary_logs_are_no_trouble() {
        for log in [log!("clean"), log!("kcsan-of-others"), log!("dump")] {
            assert_eq!(state_after(log).verdict(), None);
        }
    }

    #[test]
    fn all_tests_during_which_the_kernel_complained_are_named() {
        let logs = [log!("ubsan"), log!("clean"), log!("kmemleak")];
        let verdict = state_after(&logs.concat()).verdict().unwrap();
        let tests = "filters::a_mask_selects, leaks::nothing_leaks";
        let expected = format!("the kernel complained in {tests}: ");
        assert!(verdict.starts_with(&expected), "{verdict}");
    }
}
