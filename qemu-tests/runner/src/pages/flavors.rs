// SPDX-License-Identifier: GPL-2.0
//! The page of the flavors: the results of the tests on each kernel, and those of loads beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use protocol::results::Count;

use super::number::shown;
use super::summary::{self, Kind, Measured, Summary};

/// The results of a flavor or a load, as `NAME=FILE`.
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

/// Writes the page of flavors, in Markdown, with the results of loads. What the page has of others stays,
/// from a file beside it with the ending `.json`.
pub fn write(flavors: &[Source], loads: &[Source], page_file: &Path) -> Result<()> {
    let kept_file = page_file.with_extension("json");
    let mut new = Vec::new();
    for (kind, sources) in [(Kind::Flavor, flavors), (Kind::Load, loads)] {
        for Source { name, file } in sources {
            new.push(Summary::of_file(kind, name, file)?);
        }
    }
    let summaries = summary::merge(summary::read(&kept_file)?, new);
    summary::write(&summaries, &kept_file)?;
    fs::write(page_file, page(&summaries))
        .with_context(|| format!("cannot write {}", page_file.display()))
}

/// How tests ended, as a cell of the table.
fn cell(count: Count) -> String {
    let mut text = count.passed.to_string();
    for (count, what) in [(count.skipped, "skipped"), (count.failed, "**failed**")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

fn page(summaries: &[Summary]) -> String {
    let of = |kind| summaries.iter().filter(move |summary| summary.kind == kind);
    let (flavors, loads): (Vec<_>, Vec<_>) = (of(Kind::Flavor).collect(), of(Kind::Load).collect());
    let mut text = String::from(
        "# The flavors\n\nWritten by test runs (`make test-all TABLE=FILE`) on the patched kernel. The table shows \
         how many tests of each\nsuite passed on each flavor. The flavor mainline has no handler: a test passes there \
         if it ends as it does on the\nstock kernel. A run replaces the columns of its flavors, and the others stay. \
         The last section says what each\nwas made from.\n\n",
    );
    let row = |first: &str, cell: &dyn Fn(&Summary) -> String| {
        let cells: Vec<_> = flavors.iter().map(|flavor| cell(flavor)).collect();
        format!("| {first} | {} |\n", cells.join(" | "))
    };

    text += &row("suite", &|flavor| flavor.name.clone());
    text += &format!("|---|{}\n", "---|".repeat(flavors.len()));
    for name in suites(&flavors) {
        text += &row(name, &|flavor| cell(flavor.count(name)));
    }
    text += &row("**all**", &|flavor| cell(flavor.total()));
    if flavors.iter().any(|flavor| flavor.missing > 0) {
        text += &row("without a result", &|flavor| flavor.missing.to_string());
    }
    if flavors.iter().any(|flavor| flavor.ended_early) {
        let ended = |flavor: &Summary| if flavor.ended_early { "**yes**" } else { "no" }.to_owned();
        text += &row("ended early", &ended);
    }
    text += &row("messages of the kernel", &|flavor| {
        messages(flavor).to_owned()
    });
    text += &row("minutes", &|flavor| {
        format!("{:.1}, {}", flavor.seconds / 60.0, flavor.accelerator)
    });
    text += &figures(&flavors);
    if !loads.is_empty() {
        text += &loads_section(&loads);
    }
    text + &origins(summaries)
}

fn messages(summary: &Summary) -> &'static str {
    match summary.is_clean {
        Some(true) => "none",
        Some(false) => "**some**",
        None => "-",
    }
}

/// The loads on the release flavor, with what they measured.
fn loads_section(loads: &[&Summary]) -> String {
    let mut text = String::from(
        "\n## Loads\n\nWhat loads did on the release flavor.\n\n\
         | load | result | seconds | messages of the kernel | figures |\n|---|---|---:|---|---|\n",
    );
    for load in loads {
        let figures: Vec<_> = load
            .figures
            .iter()
            .map(|Measured { figure, .. }| format!("{} {}", shown(figure.value), figure.name))
            .collect();
        text += &format!(
            "| `make {}` | {} | {} | {} | {} |\n",
            load.name,
            load_result(load),
            shown(load.seconds.round()),
            messages(load),
            figures.join(", ")
        );
    }
    text
}

/// How a load ended. It is a single test.
fn load_result(load: &Summary) -> &'static str {
    match load.total() {
        Count { failed: 1.., .. } => "**failed**",
        Count { passed: 1.., .. } => "passed",
        Count { skipped: 1.., .. } => "skipped",
        _ => "**none**",
    }
}

/// What the results were made from.
fn origins(summaries: &[Summary]) -> String {
    let mut text = String::from("\n## What this was made from\n\n");
    for summary in summaries {
        let name = match summary.kind {
            Kind::Flavor => summary.name.clone(),
            Kind::Load => format!("`make {}`", summary.name),
        };
        for provenance in &summary.provenance {
            text += &format!("- {name}: {provenance}\n");
        }
        if summary.provenance.is_empty() {
            text += &format!("- {name}: not known\n");
        }
    }
    text
}

/// What the tests of the patched kernel with the handler measured.
fn figures(flavors: &[&Summary]) -> String {
    let rows = summary::figures(flavors);
    if rows.is_empty() {
        return String::new();
    }
    let names: Vec<_> = flavors.iter().map(|flavor| flavor.name.as_str()).collect();
    let mut text = format!(
        "\n## Figures\n\nWhat tests that passed counted or measured.\n\n| test | figure | {} |\n|---|---|{}\n",
        names.join(" | "),
        "---:|".repeat(names.len())
    );
    for ((test, figure), values) in rows {
        let cells: Vec<_> = values
            .into_iter()
            .map(|value| value.map_or_else(|| "-".to_owned(), shown))
            .collect();
        text += &format!("| `{test}` | {figure} | {} |\n", cells.join(" | "));
    }
    text
}

/// The suites of all flavors, in the order in which they ran.
fn suites<'a>(flavors: &[&'a Summary]) -> Vec<&'a str> {
    let mut suites = Vec::new();
    for suite in flavors.iter().flat_map(|flavor| &flavor.suites) {
        if !suites.contains(&suite.name.as_str()) {
            suites.push(&suite.name);
        }
    }
    suites
}

#[cfg(test)]
mod tests {
    use protocol::results::{Entry, Outcome, Provenance};

    use super::summary::tests::{log, test};
    use super::*;

    fn flavor(name: &str, clean: Outcome, mut entries: Vec<Entry>) -> Summary {
        let accelerator = "tcg".to_owned();
        entries.extend([Entry::Machine { accelerator }, log(clean)]);
        Summary::new(Kind::Flavor, name, entries)
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
        let measured = [("messages", 1_234_567.0), ("inputs kept", 9.0)];
        let fuzz = vec![
            test("fuzz", Outcome::Passed, &measured),
            log(failed.clone()),
        ];
        let mut summaries = vec![
            flavor("release", Outcome::Passed, release),
            flavor("small", failed, small),
            Summary::new(Kind::Load, "fuzz", fuzz),
            // It was stopped.
            Summary::new(Kind::Load, "storm", Vec::new()),
        ];
        let text = page(&summaries);

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
            "| `make fuzz` | passed | 30 | **some** | 1,234,567 messages, 9 inputs kept |",
            "| `make storm` | **none** | 0 | - |  |",
            "- `make fuzz`: not known",
            "- release: Made on 2026-11-30 by `make test` from commit abc, series 7.3: Linux 7.3.4.",
            "- small: not known",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
        summaries.truncate(2);
        let without_loads = page(&summaries);
        assert!(!without_loads.contains("## Loads"), "{without_loads}");
    }

    #[test]
    fn a_source_is_a_name_and_a_file() {
        assert_eq!("rt=a=b".parse::<Source>().unwrap().file, Path::new("a=b"));
        for wrong in ["rt", "=a", "rt="] {
            assert!(wrong.parse::<Source>().is_err());
        }
    }
}
