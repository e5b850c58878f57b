// SPDX-License-Identifier: GPL-2.0
//! The page of the flavors: the results of the tests on each kernel, and those of loads beside them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use protocol::results::{
    Count, Entry, KernelUnderTest, Outcome, Provenance, TestRecord, Trial, names,
};

use super::number::shown;
use crate::results_file::KERNEL_LOG;

/// A flavor's results, as `NAME=FILE`.
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

/// The results of the tests on one kernel.
struct Flavor {
    /// What each file of results was made from.
    provenance: Vec<Provenance>,
    accelerator: String,
    tests: Vec<TestRecord>,
    /// How many tests have no result: their machine failed.
    missing: usize,
    /// Whether the kernel did not complain; none if its machine did not get that far.
    is_clean: Option<bool>,
    /// Whether the run ended before all tests had.
    ended_early: bool,
}

impl Flavor {
    fn new(entries: Vec<Entry>) -> Self {
        let mut flavor = Self {
            provenance: Vec::new(),
            accelerator: "-".to_owned(),
            tests: Vec::new(),
            missing: 0,
            is_clean: None,
            ended_early: false,
        };
        for entry in entries {
            match entry {
                Entry::Provenance(provenance) => flavor.provenance.push(provenance),
                Entry::Machine { accelerator } => flavor.accelerator = accelerator,
                Entry::EndedEarly(_) => flavor.ended_early = true,
                Entry::Trial(trial) if trial.kernel != Some(KernelUnderTest::Ours) => {}
                Entry::Trial(trial) if trial.name == KERNEL_LOG => {
                    let is_clean = trial.verdict == Outcome::Passed;
                    flavor.is_clean = Some(is_clean && flavor.is_clean != Some(false));
                }
                Entry::Trial(Trial { result, .. }) => match result {
                    Some(record) => flavor.tests.push(record),
                    None => flavor.missing += 1,
                },
            }
        }
        flavor
    }

    fn passed(&self) -> impl Iterator<Item = &TestRecord> {
        let passed = |test: &&TestRecord| test.overall() == Outcome::Passed;
        self.tests.iter().filter(passed)
    }

    /// A figure of all tests together; none if no test reported it.
    fn sum(&self, name: &str) -> Option<f64> {
        let figures = self.passed().flat_map(|test| &test.figures);
        let wanted = figures.filter(|figure| figure.name == name);
        wanted
            .map(|figure| figure.value)
            .reduce(|sum, value| sum + value)
    }

    /// The results of the tests of one suite, or of all tests, as a cell of the table.
    fn counted(&self, wanted: &dyn Fn(&TestRecord) -> bool) -> String {
        let tests = self.tests.iter().filter(|test| wanted(test));
        let outcomes: Vec<_> = tests.map(TestRecord::overall).collect();
        let count = Count::of(&outcomes);
        let mut text = count.passed.to_string();
        for (count, what) in [(count.skipped, "skipped"), (count.failed, "**failed**")] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text
    }
}

/// Writes the page of these flavors, in Markdown, with the results of loads.
pub fn write(sources: &[Source], loads: &[PathBuf], file: &Path) -> Result<()> {
    let flavors = sources
        .iter()
        .map(|source| Ok((source.name.as_str(), Flavor::new(read(&source.file)?))))
        .collect::<Result<Vec<_>>>()?;
    let loads = loads.iter().map(|file| read(file));
    let loads = Flavor::new(loads.collect::<Result<Vec<_>>>()?.concat());
    fs::write(file, page(&flavors, &loads))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn read(file: &Path) -> Result<Vec<Entry>> {
    Entry::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn suite(test: &TestRecord) -> &str {
    test.name.split("::").next().unwrap_or_default()
}

fn page(flavors: &[(&str, Flavor)], loads: &Flavor) -> String {
    let mut text = String::from(
        "# The flavors\n\nWritten by test runs (`make test-all TABLE=FILE`) on the patched kernel \
         with the module. The tables show how many\ntests of each suite passed on each flavor, and \
         what the tests did. An event counts once for each listener that it\nwas for.\n",
    );
    let has_loads = !loads.tests.is_empty();
    if has_loads {
        let of_load = |load: &TestRecord| {
            let how = match load.overall() {
                Outcome::Passed => format!("{} s", shown(load.seconds.round())),
                _ => "**failed**".to_owned(),
            };
            format!("`make {}` ({how})", load.name)
        };
        let names: Vec<_> = loads.tests.iter().map(of_load).collect();
        text += &format!(
            "The last column is what {} did on the release flavor.\n",
            names.join(", ")
        );
    }
    text.push('\n');
    let row = |first: &str, cell: &dyn Fn(&Flavor) -> String, last: String| {
        let mut cells: Vec<_> = flavors.iter().map(|(_, flavor)| cell(flavor)).collect();
        if has_loads {
            cells.push(last);
        }
        format!("| {first} | {} |\n", cells.join(" | "))
    };

    let mut names: Vec<_> = flavors.iter().map(|(name, _)| *name).collect();
    names.extend(has_loads.then_some("loads"));
    text += &format!("| suite | {} |\n", names.join(" | "));
    text += &format!("|---|{}\n", "---|".repeat(names.len()));
    for name in suites(flavors) {
        let of_suite = |test: &TestRecord| suite(test) == name;
        text += &row(name, &|flavor| flavor.counted(&of_suite), String::new());
    }
    text += &row(
        "**all**",
        &|flavor| flavor.counted(&|_| true),
        String::new(),
    );
    if loads.missing > 0 || flavors.iter().any(|(_, flavor)| flavor.missing > 0) {
        let missing = |flavor: &Flavor| flavor.missing.to_string();
        text += &row("without a result", &missing, missing(loads));
    }
    for name in names::ADDED_UP {
        let cell = |flavor: &Flavor| flavor.sum(name).map_or_else(|| "-".to_owned(), shown);
        text += &row(name, &cell, cell(loads));
    }
    if flavors.iter().any(|(_, flavor)| flavor.ended_early) {
        let ended = |flavor: &Flavor| if flavor.ended_early { "**yes**" } else { "no" }.to_owned();
        text += &row("ended early", &ended, String::new());
    }
    let messages = |flavor: &Flavor| match flavor.is_clean {
        Some(true) => "none".to_owned(),
        Some(false) => "**some**".to_owned(),
        None => "-".to_owned(),
    };
    text += &row("messages of the kernel", &messages, messages(loads));
    let minutes = |flavor: &Flavor| {
        let seconds: f64 = flavor.tests.iter().map(|test| test.seconds).sum();
        format!("{:.1}, {}", seconds / 60.0, flavor.accelerator)
    };
    text += &row("minutes", &minutes, String::new());
    let mut all: Vec<(&str, &Flavor)> = flavors.iter().map(|(name, own)| (*name, own)).collect();
    all.extend(has_loads.then_some(("loads", loads)));
    text + &figures(&all) + &origins(&all)
}

/// What the results were made from.
fn origins(flavors: &[(&str, &Flavor)]) -> String {
    let mut text = String::from("\n## What this was made from\n\n");
    for (name, flavor) in flavors {
        for provenance in &flavor.provenance {
            text += &format!("- {name}: {provenance}\n");
        }
        if flavor.provenance.is_empty() {
            text += &format!("- {name}: not known\n");
        }
    }
    text
}

/// The figures of single tests and loads, whose sums would mean nothing.
fn figures(flavors: &[(&str, &Flavor)]) -> String {
    let mut rows = BTreeMap::<(&str, &str), Vec<String>>::new();
    for (index, (_, flavor)) in flavors.iter().enumerate() {
        for test in flavor.passed() {
            let own = test.figures.iter();
            for figure in own.filter(|figure| !names::ADDED_UP.contains(&figure.name.as_str())) {
                let row = rows.entry((&test.name, &figure.name));
                row.or_insert_with(|| vec!["-".to_owned(); flavors.len()])[index] =
                    shown(figure.value);
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let names: Vec<_> = flavors.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "\n## Figures\n\nWhat tests and loads that passed measured.\n\n| test | figure | {} |\n|---|---|{}\n",
        names.join(" | "),
        "---:|".repeat(names.len())
    );
    for ((test, figure), cells) in rows {
        text += &format!("| `{test}` | {figure} | {} |\n", cells.join(" | "));
    }
    text
}

/// The suites of all flavors, in the order in which they ran.
fn suites<'a>(flavors: &'a [(&str, Flavor)]) -> Vec<&'a str> {
    let mut suites = Vec::new();
    for test in flavors.iter().flat_map(|(_, flavor)| &flavor.tests) {
        if !suites.contains(&suite(test)) {
            suites.push(suite(test));
        }
    }
    suites
}

#[cfg(test)]
mod tests {
    use protocol::results::Figure;

    use super::*;

    fn test(name: &str, outcome: Outcome, figures: &[(&str, f64)]) -> Entry {
        let figures = figures.iter().map(|(name, value)| Figure {
            name: (*name).to_owned(),
            value: *value,
        });
        Entry::Trial(Trial {
            name: name.to_owned(),
            kernel: Some(KernelUnderTest::Ours),
            verdict: outcome.clone(),
            result: Some(TestRecord {
                name: name.to_owned(),
                outcome: Some(outcome),
                trouble: Vec::new(),
                figures: figures.collect(),
                output: Vec::new(),
                kernel: Vec::new(),
                dumped: false,
                seconds: 30.0,
            }),
        })
    }

    fn flavor(clean: Outcome, mut entries: Vec<Entry>) -> Flavor {
        let accelerator = "tcg".to_owned();
        entries.push(Entry::Machine { accelerator });
        entries.push(Entry::Trial(Trial {
            name: KERNEL_LOG.to_owned(),
            kernel: Some(KernelUnderTest::Ours),
            verdict: clean,
            result: None,
        }));
        Flavor::new(entries)
    }

    #[test]
    fn counts_by_suite_and_flavor() {
        let (failed, skipped) = (Outcome::Failed("a".into()), Outcome::Skipped("b".into()));
        let figures = [(names::FAULTS, 7.0), ("seconds", 1.5)];
        let release = vec![
            test("fork::a", Outcome::Passed, &figures),
            test("fork::b", Outcome::Passed, &[(names::FAULTS, 2.0)]),
            test("sid::a", Outcome::Passed, &[]),
            Entry::Provenance(Provenance {
                commit: "abc".to_owned(),
                series: "7.3".to_owned(),
                date: "2026-11-30".to_owned(),
                command: "make test".to_owned(),
                kernels: vec!["7.3.4".to_owned()],
            }),
        ];
        let small = vec![
            test("fork::a", failed.clone(), &[("seconds", 8.0)]),
            test("fork::b", skipped, &[]),
            Entry::EndedEarly("with status 3".to_owned()),
        ];
        let flavors = [
            ("release", flavor(Outcome::Passed, release)),
            ("small", flavor(failed.clone(), small)),
        ];
        let measured = [(names::MESSAGES, 1_234_567.0), ("inputs kept", 9.0)];
        let fuzz = test("fuzz", Outcome::Passed, &measured);
        let log = |verdict| {
            let name = KERNEL_LOG.to_owned();
            let (kernel, result) = (Some(KernelUnderTest::Ours), None);
            Entry::Trial(Trial {
                name,
                kernel,
                verdict,
                result,
            })
        };
        // Of two loads.
        let logs = [failed, Outcome::Passed].map(log);
        let loads = [fuzz].into_iter().chain(logs).collect();
        let text = page(&flavors, &Flavor::new(loads));

        for line in [
            "The last column is what `make fuzz` (30 s) did on the release flavor.",
            "| suite | release | small | loads |",
            "| fork | 2 | 0, 1 skipped, 1 **failed** |  |",
            "| sid | 1 | 0 |  |",
            "| **all** | 3 | 0, 1 skipped, 1 **failed** |  |",
            "| faults injected | 9 | - | - |",
            "| messages fuzzed | - | - | 1,234,567 |",
            "| ended early | no | **yes** |  |",
            "| messages of the kernel | none | **some** | **some** |",
            "| minutes | 1.5, tcg | 1.0, tcg |  |",
            "| `fork::a` | seconds | 1.50 | - | - |",
            "| `fuzz` | inputs kept | - | - | 9 |",
            "- release: Made on 2026-11-30 by `make test` from commit abc, series 7.3: Linux 7.3.4.",
            "- small: not known",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
        let without_loads = page(&flavors, &Flavor::new(Vec::new()));
        let expected = "| sid | 1 | 0 |";
        assert!(
            without_loads.lines().any(|own| own == expected),
            "{without_loads}"
        );
    }

    #[test]
    fn a_source_is_a_name_and_a_file() {
        assert_eq!("rt=a=b".parse::<Source>().unwrap().file, Path::new("a=b"));
        for wrong in ["rt", "=a", "rt="] {
            assert!(wrong.parse::<Source>().is_err());
        }
    }
}
