// SPDX-License-Identifier: GPL-2.0
//! The page of the flavors: the results of the tests on each kernel, and those of loads beside them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use protocol::results::{
    Count, Entry, Figure, KernelUnderTest, Outcome, Provenance, TestRecord, Trial,
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

/// The result of a test, compared with what was expected.
struct Test {
    verdict: Outcome,
    record: TestRecord,
}

/// The results of the tests on one kernel.
struct Flavor {
    /// What each file of results was made from.
    provenance: Vec<Provenance>,
    accelerator: String,
    tests: Vec<Test>,
    /// How many tests have no result: their machine failed.
    missing: usize,
    /// Whether the kernel did not complain; none if its machine did not get that far.
    is_clean: Option<bool>,
    /// Whether the run ended before all tests had.
    ended_early: bool,
}

impl Flavor {
    fn new(entries: Vec<Entry>) -> Self {
        // A flavor without the handler takes the place of the stock kernel. Each other flavor has
        // results for our kernel.
        let is_ours = |entry: &Entry| match entry {
            Entry::Trial(trial) => trial.kernel == Some(KernelUnderTest::Ours),
            _ => false,
        };
        let kernel = match entries.iter().any(is_ours) {
            true => KernelUnderTest::Ours,
            false => KernelUnderTest::Stock,
        };
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
                Entry::Trial(trial) if trial.kernel != Some(kernel) => {}
                Entry::Trial(trial) if trial.name == KERNEL_LOG => {
                    let is_clean = trial.verdict == Outcome::Passed;
                    flavor.is_clean = Some(is_clean && flavor.is_clean != Some(false));
                }
                Entry::Trial(Trial {
                    verdict, result, ..
                }) => match result {
                    Some(record) => flavor.tests.push(Test { verdict, record }),
                    None => flavor.missing += 1,
                },
            }
        }
        flavor
    }

    /// The results of the tests of one suite, or of all tests, as a cell of the table.
    fn counted(&self, wanted: &dyn Fn(&Test) -> bool) -> String {
        let tests = self.tests.iter().filter(|test| wanted(test));
        let count = Count::of(tests.map(|test| &test.verdict));
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

fn suite(test: &Test) -> &str {
    test.record.name.split("::").next().unwrap_or_default()
}

fn page(flavors: &[(&str, Flavor)], loads: &Flavor) -> String {
    let mut text = String::from(
        "# The flavors\n\nWritten by test runs (`make test-all TABLE=FILE`) on the patched kernel. The table shows \
         how many tests of each\nsuite passed on each flavor. The flavor mainline has no handler: a test passes there \
         if it ends as it does on the\nstock kernel.\n\n",
    );
    let row = |first: &str, cell: &dyn Fn(&Flavor) -> String| {
        let cells: Vec<_> = flavors.iter().map(|(_, flavor)| cell(flavor)).collect();
        format!("| {first} | {} |\n", cells.join(" | "))
    };

    let names: Vec<_> = flavors.iter().map(|(name, _)| *name).collect();
    text += &format!("| suite | {} |\n", names.join(" | "));
    text += &format!("|---|{}\n", "---|".repeat(names.len()));
    for name in suites(flavors) {
        let of_suite = |test: &Test| suite(test) == name;
        text += &row(name, &|flavor| flavor.counted(&of_suite));
    }
    text += &row("**all**", &|flavor| flavor.counted(&|_| true));
    if flavors.iter().any(|(_, flavor)| flavor.missing > 0) {
        text += &row("without a result", &|flavor| flavor.missing.to_string());
    }
    if flavors.iter().any(|(_, flavor)| flavor.ended_early) {
        let ended = |flavor: &Flavor| if flavor.ended_early { "**yes**" } else { "no" }.to_owned();
        text += &row("ended early", &ended);
    }
    text += &row("messages of the kernel", &messages);
    text += &row("minutes", &|flavor| {
        let seconds: f64 = flavor.tests.iter().map(|test| test.record.seconds).sum();
        format!("{:.1}, {}", seconds / 60.0, flavor.accelerator)
    });
    let mut all: Vec<(&str, &Flavor)> = flavors.iter().map(|(name, own)| (*name, own)).collect();
    text += &figures(&all);
    if !loads.tests.is_empty() {
        text += &loads_section(loads);
        all.push(("loads", loads));
    }
    text + &origins(&all)
}

fn messages(flavor: &Flavor) -> String {
    match flavor.is_clean {
        Some(true) => "none".to_owned(),
        Some(false) => "**some**".to_owned(),
        None => "-".to_owned(),
    }
}

/// The loads on the release flavor, with what they measured.
fn loads_section(loads: &Flavor) -> String {
    let mut text = format!(
        "\n## Loads\n\nWhat loads did on the release flavor. Messages of the kernel: {}.\n\n\
         | load | result | seconds | figures |\n|---|---|---:|---|\n",
        messages(loads)
    );
    for Test { verdict, record } in &loads.tests {
        let result = match verdict {
            Outcome::Passed => "passed",
            Outcome::Failed(_) => "**failed**",
            Outcome::Skipped(_) => "skipped",
        };
        let figure = |figure: &Figure| format!("{} {}", shown(figure.value), figure.name);
        let figures: Vec<_> = record.figures.iter().map(figure).collect();
        let seconds = shown(record.seconds.round());
        let figures = figures.join(", ");
        text += &format!(
            "| `make {}` | {result} | {seconds} | {figures} |\n",
            record.name
        );
    }
    if loads.missing > 0 {
        text += &format!("\nLoads without a result: {}.\n", loads.missing);
    }
    text
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

/// What the tests of the patched kernel with the handler measured.
fn figures(flavors: &[(&str, &Flavor)]) -> String {
    let mut rows = BTreeMap::<(&str, &str), Vec<String>>::new();
    for (index, (_, flavor)) in flavors.iter().enumerate() {
        let passed = |test: &&Test| test.verdict == Outcome::Passed;
        for Test { record, .. } in flavor.tests.iter().filter(passed) {
            for figure in &record.figures {
                let row = rows.entry((&record.name, &figure.name));
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
        "\n## Figures\n\nWhat tests that passed counted or measured.\n\n| test | figure | {} |\n|---|---|{}\n",
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
        let figures = [("seconds", 1.5)];
        let release = vec![
            test("fork::a", Outcome::Passed, &figures),
            test("fork::b", Outcome::Passed, &[("processes", 2.0)]),
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
        let measured = [("messages", 1_234_567.0), ("inputs kept", 9.0)];
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
            "| suite | release | small |",
            "| fork | 2 | 0, 1 skipped, 1 **failed** |",
            "| sid | 1 | 0 |",
            "| **all** | 3 | 0, 1 skipped, 1 **failed** |",
            "| ended early | no | **yes** |",
            "| messages of the kernel | none | **some** |",
            "| minutes | 1.5, tcg | 1.0, tcg |",
            "| `fork::a` | seconds | 1.50 | - |",
            "| `fork::b` | processes | 2 | - |",
            "What loads did on the release flavor. Messages of the kernel: **some**.",
            "| `make fuzz` | passed | 30 | 1,234,567 messages, 9 inputs kept |",
            "- release: Made on 2026-11-30 by `make test` from commit abc, series 7.3: Linux 7.3.4.",
            "- small: not known",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
        let without_loads = page(&flavors, &Flavor::new(Vec::new()));
        assert!(!without_loads.contains("## Loads"), "{without_loads}");
    }

    #[test]
    fn a_flavor_without_the_handler_is_judged_as_stock() {
        let entries = ["passes as declared", "fails as declared"].map(|name| {
            let Entry::Trial(mut trial) = test(name, Outcome::Passed, &[]) else {
                panic!("no trial")
            };
            trial.kernel = Some(KernelUnderTest::Stock);
            let record = trial.result.as_mut().unwrap();
            record.outcome = Some(Outcome::Failed("as declared".into()));
            Entry::Trial(trial)
        });
        assert_eq!(Flavor::new(entries.into()).counted(&|_| true), "2");
    }

    #[test]
    fn a_source_is_a_name_and_a_file() {
        assert_eq!("rt=a=b".parse::<Source>().unwrap().file, Path::new("a=b"));
        for wrong in ["rt", "=a", "rt="] {
            assert!(wrong.parse::<Source>().is_err());
        }
    }
}
