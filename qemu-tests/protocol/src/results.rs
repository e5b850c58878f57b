// SPDX-License-Identifier: GPL-2.0
//! Results, on their way from a test to the pages that show them.
//!
//! A program in the guest writes [`Record`]s into a pipe, a line of JSON each, and the agent passes
//! them on to the runner. The runner judges them, and writes [`Entry`]s into a file, a line of JSON
//! each, too. Counts and pages are made from such files. Text is for people: no program parses it.

use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::iter::Sum;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bench;
use crate::json::json;

/// How a test, a load or a check ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything was as it has to be.
    Passed,
    /// Something was not, for this reason.
    Failed(String),
    /// It could not be run, for this reason.
    Skipped(String),
}

/// A value that was counted or measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: String,
    /// How much, or how many.
    pub value: f64,
}

/// What went wrong around a test, independent of the test's own result. No test can declare it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The test was killed at this time limit.
    TimedOut(Duration),
    /// Its process ended with this status, before it could report how the test ended.
    Died(String),
    /// It left something in the kernel.
    Leak(String),
    /// The kernel complained while it ran.
    Kernel(String),
    /// It hung, and the kernel made no dump, for this reason.
    NoDump(String),
}

impl Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(limit) => write!(formatter, "timed out after {limit:?}"),
            Self::Died(status) => write!(formatter, "the test's process ended early: {status}"),
            Self::Leak(left) => formatter.write_str(left),
            Self::Kernel(complaint) => formatter.write_str(complaint),
            Self::NoDump(reason) => write!(formatter, "the kernel made no dump: {reason}"),
        }
    }
}

/// The result of a test, as the guest reports it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TestRecord {
    /// The test's full name.
    pub name: String,
    /// How the test ended, as it reported itself; none if it was killed or died.
    pub outcome: Option<Outcome>,
    /// What went wrong around it.
    #[serde(default)]
    pub trouble: Vec<Trouble>,
    /// What it measured or counted.
    pub figures: Vec<Figure>,
    /// What it wrote, line by line.
    pub output: Vec<String>,
    /// The kernel's messages that belong to a failure.
    pub kernel: Vec<String>,
    /// Whether the kernel was asked for a dump, because the test hung. The dump is in the
    /// kernel's log.
    #[serde(default)]
    pub dumped: bool,
    /// How long it took.
    pub seconds: f64,
}

impl TestRecord {
    /// How it ended, with everything counted: trouble is a failure, too.
    pub fn overall(&self) -> Outcome {
        let mut reasons = Vec::new();
        match &self.outcome {
            Some(outcome) if self.trouble.is_empty() => return outcome.clone(),
            None if self.trouble.is_empty() => reasons.push("it has no outcome".to_owned()),
            Some(Outcome::Failed(reason)) => reasons.push(reason.clone()),
            _ => {}
        }
        reasons.extend(self.trouble.iter().map(Trouble::to_string));
        Outcome::Failed(reasons.join("\n"))
    }
}

/// A message of a program in the guest to the runner.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// This many tests will be run.
    Plan(usize),
    /// A test ended.
    Test(TestRecord),
    /// A load, or a running test, has a figure.
    Figure(Figure),
    /// A test's process reports how the test ended.
    Outcome(Outcome),
    /// The benchmark has a record.
    Bench(bench::BenchRecord),
}

impl Record {
    /// As a line of JSON, with the newline.
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }
}

/// Extracts records from bytes that arrive in pieces.
#[derive(Default)]
pub struct RecordReader(Vec<u8>);

impl RecordReader {
    /// Adds a piece.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }
}

/// The records that are complete.
impl Iterator for RecordReader {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.0.drain(..=end).collect();
        Some(parse(&String::from_utf8_lossy(&line)))
    }
}

/// The kernel that a result is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelUnderTest {
    /// The patched one with the module.
    Ours,
    /// The unpatched one.
    Stock,
}

impl KernelUnderTest {
    /// The name in trials and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Stock => "stock",
        }
    }
}

/// Something that was tried, and its result: a test on one kernel, a load, or a check on the host.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The name of the test, the load or the check.
    pub name: String,
    /// The kernel, if one was run for it.
    #[serde(default)]
    pub kernel: Option<KernelUnderTest>,
    /// How it ended, compared with what was expected: a test that fails on the unpatched kernel, as
    /// declared, has passed.
    pub verdict: Outcome,
    /// The guest's report, if there is one.
    #[serde(default)]
    pub result: Option<TestRecord>,
}

/// What results were made from.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Provenance {
    /// The project's commit.
    pub commit: String,
    /// The series: the version of Linux that it is for.
    pub series: String,
    /// The day.
    pub date: String,
    /// The command.
    pub command: String,
    /// The releases of the kernels.
    pub kernels: Vec<String>,
}

impl Display for Provenance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            commit,
            series,
            date,
            command,
            kernels,
        } = self;
        let kernels = kernels.join(" and ");
        write!(
            formatter,
            "Made on {date} by `{command}` from commit {commit}, series {series}: Linux {kernels}."
        )
    }
}

/// A line of a file of results.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// What the trials after it are made from.
    Provenance(Provenance),
    /// How the virtual machines of the trials after it are run.
    Machine {
        /// With hardware virtualization or emulation, as QEMU calls it.
        accelerator: String,
    },
    /// One trial.
    Trial(Trial),
    /// The run ended before all trials had, for this reason. scripts/lib.sh writes it.
    EndedEarly(String),
}

impl Entry {
    /// As a line of JSON, with the newline.
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }

    /// All entries of a file.
    pub fn read(file: &Path) -> io::Result<Vec<Self>> {
        fs::read_to_string(file)?.lines().map(parse).collect()
    }
}

/// How many trials ended in which way. This is the only place where trials are counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// Trials that passed.
    pub passed: usize,
    /// Trials that failed.
    pub failed: usize,
    /// Trials that could not be run.
    pub skipped: usize,
}

impl Count {
    /// Counts outcomes.
    pub fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Self {
        let mut count = Self::default();
        for outcome in outcomes {
            count.add(outcome);
        }
        count
    }

    /// Counts one more outcome.
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
        }
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            passed: sum.passed + count.passed,
            failed: sum.failed + count.failed,
            skipped: sum.skipped + count.skipped,
        })
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = json(value);
    line.push(b'\n');
    line
}

fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> io::Result<T> {
    serde_json::from_str(line).map_err(|error| {
        let what = format!("{line:?} is no result: {error}");
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_come_in_pieces() {
        let mut lines = RecordReader::default();
        lines.add(b"{\"plan\":2}\n{\"outcome\":");
        assert_eq!(lines.next().unwrap().unwrap(), Record::Plan(2));
        assert!(lines.next().is_none());
        lines.add(b"\"passed\"}\n\n");
        let passed = Record::Outcome(Outcome::Passed);
        assert_eq!(lines.next().unwrap().unwrap(), passed);
        assert!(lines.next().unwrap().is_err());
    }

    #[test]
    fn scripts_write_entries() {
        let line = "{\"trial\":{\"name\":\"a b\",\"verdict\":{\"failed\":\"see above\"}}}";
        let Entry::Trial(trial) = parse(line).unwrap() else {
            panic!("no trial")
        };
        assert_eq!(trial.verdict, Outcome::Failed("see above".into()));
        let (kernel, result) = (None, None);
        let same = Trial {
            name: "a b".into(),
            kernel,
            result,
            ..trial
        };
        let written = String::from_utf8(Entry::Trial(same.clone()).line()).unwrap();
        assert_eq!(parse::<Entry>(&written).unwrap(), Entry::Trial(same));
    }

    #[test]
    fn scripts_write_an_early_end() {
        let line = "{\"ended_early\":\"with status 3\"}";
        let ended = Entry::EndedEarly("with status 3".into());
        assert_eq!(parse::<Entry>(line).unwrap(), ended);
    }

    #[test]
    fn outcomes_are_counted() {
        let (failed, skipped) = (Outcome::Failed("a".into()), Outcome::Skipped("b".into()));
        let outcomes = [&Outcome::Passed, &failed, &skipped, &failed];
        let expected = Count {
            passed: 1,
            failed: 2,
            skipped: 1,
        };
        assert_eq!(Count::of(outcomes), expected);
    }
}
