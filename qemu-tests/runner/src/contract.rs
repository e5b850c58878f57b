// SPDX-License-Identifier: GPL-2.0
//! The lines of the contract, and the table that says which of them a test run proved.

use std::fmt::Write;

use anyhow::{Result, bail};

/// What is promised, by the names that tests cover it with.
const LINES: [(&str, &str); 11] = [
    (
        "C5",
        "Numbers count for each listener and CPU; every loss is a gap and every gap a loss.",
    ),
    (
        "C6",
        "A loss sets ENOBUFS on that listener, unless it asked for NETLINK_NO_ENOBUFS.",
    ),
    (
        "C18",
        "LISTEN and IGNORE in both forms; LISTEN again changes the mask and loses nothing.",
    ),
    (
        "C19",
        "Each request has exactly one answer, to the requester alone, that breaks no gap check.",
    ),
    (
        "C20",
        "A request that makes no sense is refused and changes nothing; answers carry a feature word.",
    ),
    ("C24", "A socket that never sent LISTEN gets nothing."),
    (
        "C27",
        "The count is the number of sockets that listen, however they came to or ceased to.",
    ),
    (
        "C30",
        "Root sees who listens, for what, from where, and what was delivered and lost.",
    ),
    (
        "C31",
        "Parameters decide whether users may listen, and how many listeners one may have.",
    ),
    (
        "C32",
        "The module loads and unloads under load, and stays while somebody listens.",
    ),
    (
        "C33",
        "LISTEN without a handler loads the module, and is answered in any case.",
    ),
];

/// A test's result on both kernels, as the table shows it.
pub struct Cells<'a> {
    /// The test's full name.
    pub name: &'a str,
    /// Which lines of the contract it covers.
    pub covers: &'a [String],
    /// On the patched kernel.
    pub ours: String,
    /// On the unpatched one.
    pub stock: String,
}

/// The table, in Markdown. An error when a line is covered by no test, or a test covers another.
pub fn table(tests: &[Cells<'_>], head: &str) -> Result<String> {
    let is_known = |line: &String| LINES.iter().any(|(known, _)| known == line);
    if let Some(test) = tests.iter().find(|test| !test.covers.iter().all(is_known)) {
        bail!("{} covers a line that contract.rs does not have", test.name);
    }
    let mut text = format!("# The contract, line by line\n\n{head}\n");
    for (line, promise) in LINES {
        let covering = tests
            .iter()
            .filter(|test| test.covers.iter().any(|covered| covered == line));
        let mut rows = String::new();
        for test in covering {
            let (name, ours, stock) = (test.name, &test.ours, &test.stock);
            writeln!(rows, "| `{name}` | {ours} | {stock} |")?;
        }
        if rows.is_empty() {
            bail!("no selected test covers {line}: leave out the filter");
        }
        writeln!(
            text,
            "\n## {line}\n\n{promise}\n\n| test | ours | stock |\n|---|---|---|\n{rows}"
        )?;
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells<'a>(covers: &'a [String]) -> Vec<Cells<'a>> {
        let (ours, stock) = ("passed".to_owned(), "failed".to_owned());
        vec![Cells {
            name: "a::b",
            covers,
            ours,
            stock,
        }]
    }

    #[test]
    fn each_line_has_its_tests() {
        let all: Vec<_> = LINES.iter().map(|(line, _)| (*line).to_owned()).collect();
        let text = table(&cells(&all), "head").unwrap();
        for (line, promise) in LINES {
            assert!(text.contains(&format!("## {line}\n\n{promise}\n")));
        }
        assert_eq!(
            text.matches("| `a::b` | passed | failed |\n").count(),
            LINES.len()
        );
    }

    #[test]
    fn a_line_without_a_test_is_an_error() {
        let all: Vec<_> = LINES[1..]
            .iter()
            .map(|(line, _)| (*line).to_owned())
            .collect();
        let error = table(&cells(&all), "head").unwrap_err().to_string();
        assert!(error.contains("covers C5"), "{error}");
    }

    #[test]
    fn a_line_that_does_not_exist_is_an_error() {
        let error = table(&cells(&["C99".to_owned()]), "head").unwrap_err();
        assert!(error.to_string().starts_with("a::b covers"), "{error}");
    }
}
