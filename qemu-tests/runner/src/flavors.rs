// SPDX-License-Identifier: GPL-2.0
//! The table of the flavors: what the tests said on each kernel, made of the runs' reports.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use serde::Deserialize;

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

/// Writes the table of these flavors, in Markdown.
pub fn write(sources: &[Source], file: &Path) -> Result<()> {
    let reports = sources
        .iter()
        .map(|source| Ok((source.name.as_str(), read(&source.file)?)))
        .collect::<Result<Vec<_>>>()?;
    fs::write(file, table(&reports)?).with_context(|| format!("cannot write {}", file.display()))
}

fn read(file: &Path) -> Result<Report> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no report", file.display()))
}

fn suite(test: &Test) -> &str {
    test.name.split("::").next().unwrap_or_default()
}

fn table(reports: &[(&str, Report)]) -> Result<String> {
    let mut text = String::from(
        "# The flavors\n\nWritten by test runs (`make test-all`), on the patched kernel with the \
         module: how many tests passed,\nby suite and by how the kernel was built.\n\n",
    );
    let row = |first: &str, cells: Vec<String>| format!("| {first} | {} |\n", cells.join(" | "));
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
    text += &row("suite", names);
    text += &row("---", each(&|_| "---".to_owned()));
    for suite_name in suites(reports) {
        let of_suite = |test: &Test| suite(test) == suite_name;
        text += &row(suite_name, each(&|report| count(report, &of_suite)));
    }
    text += &row("**all**", each(&|report| count(report, &|_| true)));
    text += &row(
        "messages of the kernel",
        each(&|report| match report.kernel_log_is_clean.get("ours") {
            Some(true) => "0".to_owned(),
            _ => "**some**".to_owned(),
        }),
    );
    text += &row(
        "minutes",
        each(&|report| {
            let seconds: f64 = report.tests.iter().filter_map(|test| test.seconds).sum();
            format!("{:.1}, {}", seconds / 60.0, report.accelerator)
        }),
    );

    text += "\n## Figures\n\nWhat tests that passed have to tell.\n";
    for (name, report) in reports {
        write!(text, "\n### {name}\n")?;
        let passed = |test: &&Test| test.ours.as_deref() == Some("passed");
        for test in report.tests.iter().filter(passed) {
            if !test.diagnostics.is_empty() {
                write!(text, "\n`{}`:\n\n", test.name)?;
                for line in &test.diagnostics {
                    writeln!(text, "    {line}")?;
                }
            }
        }
    }
    Ok(text)
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
            test("fork::a", "passed", &["lost 7"]),
            test("fork::b", "passed", &[]),
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
        let text = table(&reports).unwrap();

        for line in [
            "| suite | release | small |",
            "| fork | 2 | 0, 1 skipped, 1 **failed** |",
            "| sid | 1 | 0 |",
            "| **all** | 3 | 0, 1 skipped, 1 **failed** |",
            "| messages of the kernel | 0 | **some** |",
            "| minutes | 1.5, tcg | 1.0, tcg |",
            "    lost 7",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
        assert!(!text.contains("lost 8"));
    }

    #[test]
    fn a_source_is_a_name_and_a_file() {
        assert_eq!("rt=a=b".parse::<Source>().unwrap().file, Path::new("a=b"));
        for wrong in ["rt", "=a", "rt="] {
            assert!(wrong.parse::<Source>().is_err());
        }
    }
}
