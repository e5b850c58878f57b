// SPDX-License-Identifier: GPL-2.0
//! Summaries of the tests on a flavor, and of loads: what the page of the flavors shows of them. They are
//! kept in a file beside the page, so that one run does not have to make all of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use protocol::results::{Count, Entry, Figure, KernelUnderTest, Outcome, Provenance, Trial};
use serde::{Deserialize, Serialize};

use crate::results_file::KERNEL_LOG;

/// What a summary is about.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The tests on a flavor.
    Flavor,
    /// A load on the release flavor.
    Load,
}

/// The tests of a suite, or a load.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub name: String,
    pub count: Count,
}

/// What a test that passed measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    pub test: String,
    pub figure: Figure,
}

/// The results of the tests on one kernel, or of a load.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    pub kind: Kind,
    /// The name of the flavor or the load.
    pub name: String,
    /// What each file of results was made from.
    pub provenance: Vec<Provenance>,
    pub accelerator: String,
    /// The suites, in the order in which they ran.
    pub suites: Vec<Suite>,
    /// How long all tests took.
    pub seconds: f64,
    pub figures: Vec<Measured>,
    /// How many tests have no result: their machine failed.
    pub missing: usize,
    /// Whether the kernel did not complain; none if its machine did not get that far.
    pub is_clean: Option<bool>,
    /// Whether the run ended before all tests had.
    pub ended_early: bool,
}

impl Summary {
    /// Summarizes a file of results.
    pub fn of_file(kind: Kind, name: &str, file: &Path) -> Result<Self> {
        let entries =
            Entry::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self::new(kind, name, entries))
    }

    /// Summarizes results.
    pub fn new(kind: Kind, name: &str, entries: Vec<Entry>) -> Self {
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
        let mut summary = Self {
            kind,
            name: name.to_owned(),
            provenance: Vec::new(),
            accelerator: "-".to_owned(),
            suites: Vec::new(),
            seconds: 0.0,
            figures: Vec::new(),
            missing: 0,
            is_clean: None,
            ended_early: false,
        };
        for entry in entries {
            match entry {
                Entry::Provenance(provenance) => summary.provenance.push(provenance),
                Entry::Machine { accelerator } => summary.accelerator = accelerator,
                Entry::EndedEarly(_) => summary.ended_early = true,
                Entry::Trial(trial) if trial.kernel == Some(kernel) => summary.add(trial),
                Entry::Trial(_) => {}
            }
        }
        summary
    }

    fn add(&mut self, trial: Trial) {
        if trial.name == KERNEL_LOG {
            let is_clean = trial.verdict == Outcome::Passed;
            self.is_clean = Some(is_clean && self.is_clean != Some(false));
            return;
        }
        let Some(record) = trial.result else {
            self.missing += 1;
            return;
        };
        let name = record.name.split("::").next().unwrap_or_default();
        let known = self.suites.iter().position(|suite| suite.name == name);
        let index = known.unwrap_or_else(|| {
            self.suites.push(Suite {
                name: name.to_owned(),
                count: Count::default(),
            });
            self.suites.len() - 1
        });
        self.suites[index].count.add(&trial.verdict);
        self.seconds += record.seconds;
        if trial.verdict == Outcome::Passed {
            let measured = |figure| Measured {
                test: record.name.clone(),
                figure,
            };
            self.figures
                .extend(record.figures.into_iter().map(measured));
        }
    }

    /// How the tests of a suite ended.
    pub fn count(&self, suite: &str) -> Count {
        let found = self.suites.iter().find(|own| own.name == suite);
        found.map_or_else(Count::default, |suite| suite.count)
    }

    /// How all tests ended.
    pub fn total(&self) -> Count {
        self.suites.iter().map(|suite| suite.count).sum()
    }
}

/// The summaries that are kept in a file: none if there is no file.
pub fn read(file: &Path) -> Result<Vec<Summary>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    parse(&text).with_context(|| {
        format!(
            "{} has a line that is no summary: remove it",
            file.display()
        )
    })
}

fn parse(text: &str) -> serde_json::Result<Vec<Summary>> {
    text.lines().map(serde_json::from_str).collect()
}

/// Keeps summaries in a file, a line of JSON each.
pub fn write(summaries: &[Summary], file: &Path) -> Result<()> {
    fs::write(file, lines(summaries)?).with_context(|| format!("cannot write {}", file.display()))
}

fn lines(summaries: &[Summary]) -> serde_json::Result<String> {
    let line = |summary| Ok(serde_json::to_string(summary)? + "\n");
    summaries.iter().map(line).collect()
}

/// Replaces the summaries that are about the same as one of the new ones. The others stay.
pub fn merge(kept: Vec<Summary>, new: Vec<Summary>) -> Vec<Summary> {
    let mut merged = kept;
    for summary in new {
        let same = |own: &&mut Summary| own.kind == summary.kind && own.name == summary.name;
        match merged.iter_mut().find(same) {
            Some(own) => *own = summary,
            None => merged.push(summary),
        }
    }
    merged
}

/// What summaries measured: a row for each figure of a test, with a value for each summary that has it.
pub fn figures(summaries: &[&Summary]) -> BTreeMap<(String, String), Vec<Option<f64>>> {
    let mut rows = BTreeMap::new();
    for (index, summary) in summaries.iter().enumerate() {
        for Measured { test, figure } in &summary.figures {
            let row = rows.entry((test.clone(), figure.name.clone()));
            row.or_insert_with(|| vec![None; summaries.len()])[index] = Some(figure.value);
        }
    }
    rows
}

#[cfg(test)]
pub mod tests {
    use protocol::results::TestRecord;

    use super::*;

    /// A test on our kernel that took half a minute.
    pub fn test(name: &str, outcome: Outcome, figures: &[(&str, f64)]) -> Entry {
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

    /// Whether the kernel complained.
    pub fn log(verdict: Outcome) -> Entry {
        Entry::Trial(Trial {
            name: KERNEL_LOG.to_owned(),
            kernel: Some(KernelUnderTest::Ours),
            verdict,
            result: None,
        })
    }

    fn flavor(name: &str, entries: Vec<Entry>) -> Summary {
        Summary::new(Kind::Flavor, name, entries)
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
        let summary = flavor("mainline", entries.into());
        assert_eq!((summary.total().passed, summary.total().failed), (2, 0));
    }

    #[test]
    fn figures_of_a_failed_test_are_left_out() {
        let failed = Outcome::Failed("a".into());
        let summary = flavor("small", vec![test("fork::a", failed, &[("seconds", 1.5)])]);
        assert_eq!(summary.count("fork").failed, 1);
        assert!(summary.figures.is_empty());
    }

    #[test]
    fn a_new_summary_replaces_that_of_the_same_flavor_only() {
        let one = |name| vec![test(name, Outcome::Passed, &[])];
        let kept = vec![
            flavor("release", one("old::a")),
            flavor("debug", one("old::a")),
        ];
        let load = Summary::new(Kind::Load, "debug", one("debug"));
        let new = vec![flavor("debug", one("new::a")), load.clone()];
        let expected = vec![kept[0].clone(), new[0].clone(), load];
        assert_eq!(merge(kept, new), expected);
    }

    #[test]
    fn what_is_written_is_read() {
        let entries = vec![
            test("fork::a", Outcome::Passed, &[("seconds", 1.5)]),
            log(Outcome::Passed),
        ];
        let summaries = vec![flavor("release", entries.clone()), flavor("debug", entries)];
        let text = lines(&summaries).unwrap();
        assert_eq!(parse(&text).unwrap(), summaries);
        assert!(parse("{}").is_err());
    }
}
