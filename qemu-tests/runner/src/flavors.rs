// SPDX-License-Identifier: GPL-2.0
//! The table of the flavors: what the tests said on each kernel, made of the runs' reports, and what
//! the runs at length said beside them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use serde::Deserialize;

use crate::number::grouped;

/// A flavor's report, as `NAME=FILE`.
#[derive(Clone)]
pub struct Source {
    name: String,
    file: PathBuf,
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, file) = text.split_once('=').context("not NAME=FILE")?;
        ensure!(!name.is_empty() && !file.is_empty(), "not NAME=FILE");
        Ok(Self {
            name: name.to_owned(),
            file: file.into(),
        })
    }
}

/// What the table needs of a report, see [`crate::report::Report::write_json`].
#[derive(Deserialize)]
struct Report {
    accelerator: String,
    kernel_log_is_clean: BTreeMap<String, bool>,
    tests: Vec<Test>,
}

impl Report {
    fn passed(&self) -> impl Iterator<Item = &Test> {
        let passed = |test: &&Test| test.ours.as_deref() == Some("passed");
        self.tests.iter().filter(passed)
    }

    fn figures(&self) -> Figures {
        let lines = self.passed().flat_map(|test| &test.diagnostics);
        Figures::of(lines.map(String::as_str))
    }
}

#[derive(Deserialize)]
struct Test {
    name: String,
    ours: Option<String>,
    seconds: Option<f64>,
    diagnostics: Vec<String>,
}

/// How the tests of one suite, or of all, ended on one kernel.
#[derive(Default)]
struct Count {
    passed: u32,
    skipped: u32,
    failed: u32,
}

impl Count {
    fn add(&mut self, test: &Test) {
        match test.ours.as_deref() {
            Some("passed") => self.passed += 1,
            Some(outcome) if outcome.starts_with("skipped") => self.skipped += 1,
            _ => self.failed += 1,
        }
    }

    /// As a cell of the table.
    fn text(&self) -> String {
        let mut text = self.passed.to_string();
        for (count, what) in [(self.skipped, "skipped"), (self.failed, "**failed**")] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
    }
}

/// What tests and runs at length count, as they write it line by line.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    faults: u64,
    messages: u64,
    /// Events, each as often as there was a listener to get it.
    generated: u64,
    delivered: u64,
    lost: u64,
    /// Too few as well as too many.
    unaccounted: u64,
    kills: u64,
    loads: u64,
}

impl Figures {
    fn of<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut figures = Self::default();
        lines.into_iter().for_each(|line| figures.add(line));
        figures
    }

    fn add(&mut self, line: &str) {
        let Some((who, rest)) = line.split_once(": ") else {
            return;
        };
        match who {
            "faults" => self.faults += before(rest, " allocations failed"),
            "fuzz" => self.messages += before(rest, " messages: "),
            "cycles" => {
                self.kills += before(rest, " kills ");
                self.loads += before(rest, " loads and unloads ");
            }
            "storm" | "stress" => {
                self.generated += behind(rest, "generated ").unwrap_or(0);
                self.delivered += behind(rest, "delivered ").unwrap_or(0);
                self.lost += behind(rest, ", lost ").unwrap_or(0);
                self.unaccounted +=
                    behind::<i64>(rest, "unaccounted ").map_or(0, i64::unsigned_abs);
            }
            _ => {}
        }
    }

    /// What each is called, and how many there are.
    fn rows(&self) -> [(&'static str, String); 8] {
        [
            ("faults injected", self.faults),
            ("messages fuzzed", self.messages),
            ("events generated", self.generated),
            ("events delivered", self.delivered),
            ("events lost", self.lost),
            ("events unaccounted", self.unaccounted),
            ("listeners killed", self.kills),
            ("loads and unloads", self.loads),
        ]
        .map(|(what, many)| (what, grouped(many as f64, 0)))
    }
}

/// The number that a line begins with, if this follows it.
fn before(line: &str, what: &str) -> u64 {
    let number = line.split_once(what).map(|(number, _)| number);
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The number that follows a word in a line.
fn behind<T: FromStr>(line: &str, what: &str) -> Option<T> {
    let (_, rest) = line.split_once(what)?;
    let end = rest.find([',', ' ']).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Writes the table of these flavors, in Markdown, with what the runs at length wrote.
pub fn write(sources: &[Source], at_length: &[PathBuf], file: &Path) -> Result<()> {
    let reports = sources
        .iter()
        .map(|source| Ok((source.name.as_str(), read(&source.file)?)))
        .collect::<Result<Vec<_>>>()?;
    let at_length = at_length
        .iter()
        .map(|file| {
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
        })
        .collect::<Result<Vec<_>>>()?
        .concat();
    fs::write(file, table(&reports, &at_length))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn read(file: &Path) -> Result<Report> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no report", file.display()))
}

fn suite(test: &Test) -> &str {
    test.name.split("::").next().unwrap_or_default()
}

/// How the column of the runs at length is called.
const AT_LENGTH: &str = "at length";

fn table(reports: &[(&str, Report)], at_length: &str) -> String {
    let mut text = String::from(
        "# The flavors\n\nWritten by test runs (`make test-all`), on the patched kernel with the \
         module: how many tests passed,\nby suite and by how the kernel was built, and what they \
         did. Events are counted once for each listener\nthat they were for.\n",
    );
    if !at_length.is_empty() {
        text += "*At length* is what `make fuzz`, `make storm` and `make cycles` did on the release \
                 flavor.\n";
    }
    text.push('\n');
    let row = |first: &str, mut cells: Vec<String>, last: &str| {
        if !at_length.is_empty() {
            cells.push(last.to_owned());
        }
        format!("| {first} | {} |\n", cells.join(" | "))
    };
    let each = |cell: &dyn Fn(&Report) -> String| -> Vec<String> {
        reports.iter().map(|(_, report)| cell(report)).collect()
    };
    let count = |report: &Report, wanted: &dyn Fn(&Test) -> bool| {
        let mut count = Count::default();
        let tests = report.tests.iter().filter(|test| wanted(test));
        tests.for_each(|test| count.add(test));
        count.text()
    };

    let names = reports.iter().map(|(name, _)| (*name).to_owned()).collect();
    text += &row("suite", names, AT_LENGTH);
    text += &row("---", each(&|_| "---".to_owned()), "---");
    for suite_name in suites(reports) {
        let of_suite = |test: &Test| suite(test) == suite_name;
        text += &row(suite_name, each(&|report| count(report, &of_suite)), "");
    }
    text += &row("**all**", each(&|report| count(report, &|_| true)), "");
    let figures = reports.iter().map(|(_, report)| report.figures().rows());
    let figures = Vec::from_iter(figures);
    for (index, (name, last)) in Figures::of(at_length.lines()).rows().iter().enumerate() {
        let cells = figures.iter().map(|rows| rows[index].1.clone()).collect();
        text += &row(name, cells, last);
    }
    text += &row(
        "messages of the kernel",
        each(&|report| match report.kernel_log_is_clean.get("ours") {
            Some(true) => "0".to_owned(),
            _ => "**some**".to_owned(),
        }),
        // A run that the kernel complained in fails, and writes nothing for this table.
        "0",
    );
    text += &row(
        "minutes",
        each(&|report| {
            let seconds: f64 = report.tests.iter().filter_map(|test| test.seconds).sum();
            format!("{:.1}, {}", seconds / 60.0, report.accelerator)
        }),
        "",
    );

    text += "\n## Figures\n\nWhat tests that passed have to tell.\n";
    for (name, report) in reports {
        let mut said = String::new();
        for test in report.passed() {
            if !test.diagnostics.is_empty() {
                let lines = indented(test.diagnostics.iter().map(String::as_str));
                said += &format!("\n`{}`:\n\n{lines}", test.name);
            }
        }
        text += &folded(name, &said);
    }
    if !at_length.is_empty() {
        text += &folded(AT_LENGTH, &format!("\n{}", indented(at_length.lines())));
    }
    text
}

/// A part that the reader has to open: a thousand lines would bury the table.
fn folded(title: &str, text: &str) -> String {
    format!("\n<details>\n<summary>{title}</summary>\n{text}\n</details>\n")
}

/// Lines that Markdown shows as they are.
fn indented<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(|line| format!("    {line}\n")).collect()
}

/// The suites of all reports, in the order in which they ran.
fn suites<'a>(reports: &'a [(&str, Report)]) -> Vec<&'a str> {
    let mut suites = Vec::new();
    for test in reports.iter().flat_map(|(_, report)| &report.tests) {
        if !suites.contains(&suite(test)) {
            suites.push(suite(test));
        }
    }
    suites
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str, ours: &str, diagnostics: &[&str]) -> Test {
        Test {
            name: name.to_owned(),
            ours: Some(ours.to_owned()),
            seconds: Some(30.0),
            diagnostics: diagnostics.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    fn report(clean: bool, tests: Vec<Test>) -> Report {
        Report {
            accelerator: "tcg".to_owned(),
            kernel_log_is_clean: BTreeMap::from([("ours".to_owned(), clean)]),
            tests,
        }
    }

    #[test]
    fn counts_by_suite_and_flavor() {
        let release = vec![
            test(
                "fork::a",
                "passed",
                &["faults: 7 allocations failed", "lost 7"],
            ),
            test("fork::b", "passed", &["faults: 2 allocations failed"]),
            test("sid::a", "passed", &[]),
        ];
        let small = vec![
            test("fork::a", "failed", &["lost 8"]),
            test("fork::b", "skipped: no namespaces", &[]),
        ];
        let reports = [
            ("release", report(true, release)),
            ("small", report(false, small)),
        ];
        let at_length =
            "fuzz: 10 s: 12 messages: 12 refused\nfuzz: 1234567 messages: all refused\n";
        let text = table(&reports, at_length);

        for line in [
            "| suite | release | small | at length |",
            "| fork | 2 | 0, 1 skipped, 1 **failed** |  |",
            "| sid | 1 | 0 |  |",
            "| **all** | 3 | 0, 1 skipped, 1 **failed** |  |",
            "| faults injected | 9 | 0 | 0 |",
            "| messages fuzzed | 0 | 0 | 1,234,567 |",
            "| messages of the kernel | 0 | **some** | 0 |",
            "| minutes | 1.5, tcg | 1.0, tcg |  |",
            "<summary>release</summary>",
            "    lost 7",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
        assert!(!text.contains("lost 8"));

        let alone = table(&reports, "");
        assert!(alone.lines().any(|own| own == "| sid | 1 | 0 |"), "{alone}");
    }

    #[test]
    fn figures_are_added_up() {
        let lines = [
            "faults: 3 allocations failed",
            "fuzz: seed 1, 8 workers",
            "fuzz: 10 s: 5 messages: 5 unanswered",
            "fuzz: 20 messages: 5 answered 0, 15 unanswered, 0 refused; 0 listeners",
            "storm: 7 events raised in 5s, 1 a second",
            "storm: Fast 0xe00003c7: generated 70, delivered 60, lost 9, unaccounted 1, ENOBUFS 4",
            "stress: mask 0x1: generated 5, delivered 6, lost 0, unaccounted -1, ENOBUFS 0",
            "cycles: 100 kills (1.0 s), 5 kB more in use, nobody listens",
            "cycles: 10 loads and unloads (1.0 s), 5 kB more in use, nobody listens",
            "cycles",
        ];
        let expected = Figures {
            faults: 3,
            messages: 20,
            generated: 75,
            delivered: 66,
            lost: 9,
            unaccounted: 2,
            kills: 100,
            loads: 10,
        };
        assert_eq!(Figures::of(lines), expected);
    }

    #[test]
    fn a_source_is_a_name_and_a_file() {
        assert_eq!("rt=a=b".parse::<Source>().unwrap().file, Path::new("a=b"));
        for wrong in ["rt", "=a", "rt="] {
            assert!(wrong.parse::<Source>().is_err());
        }
    }
}
