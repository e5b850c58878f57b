// SPDX-License-Identifier: GPL-2.0
//! The table that shows which lines of the contract a test run proved.

use std::fmt::Write;

use anyhow::Result;
use protocol::contract::Line;
use protocol::results::Figure;

use super::number::shown;

/// A test's result on both kernels, as the table shows it.
pub struct Cells<'a> {
    /// The test's full name.
    pub name: &'a str,
    /// The lines of the contract that it covers.
    pub covers: &'a [Line],
    /// On the patched kernel.
    pub ours: String,
    /// On the unpatched one.
    pub stock: String,
    /// What it measured on the patched kernel.
    pub figures: &'a [Figure],
}

/// The table, in Markdown, with the lines that nothing shows, and the figures of tests.
pub fn table(tests: &[Cells<'_>], head: &str) -> Result<String> {
    let mut text = format!("# The contract, line by line\n\n{head}\n");
    let mut uncovered = Vec::new();
    for line in Line::ALL {
        let covering = tests.iter().filter(|test| test.covers.contains(line));
        let mut rows = String::new();
        for test in covering {
            let (name, ours, stock) = (test.name, &test.ours, &test.stock);
            writeln!(rows, "| `{name}` | {ours} | {stock} |")?;
        }
        let commands = line.shown_by();
        if rows.is_empty() && commands.is_empty() {
            uncovered.push(line.to_string());
            continue;
        }
        write!(text, "\n## {line}\n\n{}\n", line.promise())?;
        if !commands.is_empty() {
            let commands = commands.join("` and `");
            write!(text, "\nShown by `{commands}`.\n")?;
        }
        if !rows.is_empty() {
            write!(text, "\n| test | ours | stock |\n|---|---|---|\n{rows}")?;
        }
    }
    if !uncovered.is_empty() {
        let uncovered = uncovered.join(", ");
        write!(text, "\nNo test of this run covers: {uncovered}.\n")?;
    }
    if tests.iter().any(|test| !test.figures.is_empty()) {
        text.push_str("\n## Figures\n\nWhat tests counted or measured on the patched kernel.\n\n");
        text.push_str("| test | figure | value |\n|---|---|---:|\n");
    }
    for test in tests {
        for Figure { name, value } in test.figures {
            let value = shown(*value);
            writeln!(text, "| `{}` | {name} | {value} |", test.name)?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells<'a>(covers: &'a [Line]) -> Vec<Cells<'a>> {
        let (ours, stock) = ("passed".to_owned(), "failed".to_owned());
        vec![Cells {
            name: "a::b",
            covers,
            ours,
            stock,
            figures: &[],
        }]
    }

    #[test]
    fn each_line_has_its_tests() {
        let text = table(&cells(Line::ALL), "head").unwrap();
        for line in Line::ALL {
            assert!(text.contains(&format!("## {line}\n\n{}\n", line.promise())));
        }
        assert_eq!(
            text.matches("| `a::b` | passed | failed |\n").count(),
            Line::ALL.len()
        );
    }

    #[test]
    fn a_line_without_a_test_is_named() {
        let text = table(&cells(&Line::ALL[1..]), "head").unwrap();
        assert!(
            text.ends_with("No test of this run covers: C1.\n"),
            "{text}"
        );
        assert!(!text.contains("## C1\n"));
    }

    #[test]
    fn a_line_that_a_command_shows_needs_no_test() {
        let text = table(&cells(&[Line::C1]), "head").unwrap();
        let section = |line: Line| format!("\n## {line}\n\n{}\n", line.promise());
        let expected = section(Line::C28) + "\nShown by `make bench`.\n" + &section(Line::C29);
        assert!(text.contains(&expected), "{text}");
        let expected = section(Line::C40) + "\nShown by `make check` and `scripts/patches bisect`.";
        assert!(text.contains(&expected), "{text}");
        assert!(!text.contains("C40,"), "{text}");
    }

    #[test]
    fn figures_are_at_the_end() {
        let (name, value) = ("events lost".to_owned(), 1234.0);
        let figures = [Figure { name, value }];
        let mut cells = cells(&[]);
        cells[0].figures = &figures;
        let text = table(&cells, "head").unwrap();
        let expected = "|---:|\n| `a::b` | events lost | 1,234 |\n";
        assert!(text.ends_with(expected), "{text}");
    }
}
