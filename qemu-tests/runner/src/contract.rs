// SPDX-License-Identifier: GPL-2.0
//! The lines of the contract, and the table that says which of them a test run proved.

use std::fmt::Write;

use anyhow::{Result, bail};

/// What is promised, by the names that tests cover it with.
const LINES: [(&str, &str); 35] = [
    (
        "C1",
        "One event a datagram of 76 bytes, in the layout of today.",
    ),
    (
        "C2",
        "The sender's address has port id 0 and the group of process events.",
    ),
    (
        "C3",
        "CPU, CLOCK_MONOTONIC time, and zero in every byte that the event does not define.",
    ),
    ("C4", "An event's acknowledgement number is 0."),
    (
        "C5",
        "Numbers count for each listener and CPU; every loss is a gap and every gap a loss.",
    ),
    (
        "C6",
        "A loss sets ENOBUFS on that listener, unless it asked for NETLINK_NO_ENOBUFS.",
    ),
    ("C7", "FORK for every fork, vfork, clone and thread."),
    ("C8", "EXEC for every program that is executed."),
    ("C9", "UID when one of the four user ids changes."),
    ("C10", "GID when one of the four group ids changes."),
    (
        "C11",
        "SID exactly once for each successful setsid(), with what the leader left.",
    ),
    ("C12", "PTRACE for attaching and detaching."),
    ("C13", "COMM when a name changes."),
    ("C14", "COREDUMP when a core is dumped."),
    (
        "C15",
        "EXIT with code, signal and parent, also of a child that was reaped at once.",
    ),
    ("C16", "NONZERO_EXIT filters exits."),
    ("C17", "The end of a session, for those who ask."),
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
        "A request that makes no sense changes nothing; answers carry a feature word.",
    ),
    (
        "C21",
        "Every id that a listener gets is its own namespaces'; what it cannot see is 0.",
    ),
    (
        "C22",
        "A listener gets an event only if its pid namespace sees the subject.",
    ),
    (
        "C23",
        "LISTEN works from any pid, user and network namespace.",
    ),
    ("C24", "A socket that never sent LISTEN gets nothing."),
    ("C25", "A namespace goes away cleanly, whatever goes first."),
    (
        "C26",
        "/proc/net/connector lists cn_proc in every network namespace.",
    ),
    (
        "C27",
        "The count is the number of sockets that listen, however they came to or ceased to.",
    ),
    ("C28", "A hook that nobody asked for costs one no-op."),
    ("C29", "An event's cost grows with those who get it."),
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
    (
        "C34",
        "Works with PREEMPT_RT, and without SMP, namespaces or jump labels.",
    ),
    (
        "C41",
        "Unsafe code is in the kernel's abstractions alone, which have tests of their own.",
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
    /// What it measured on the patched kernel.
    pub figures: &'a [String],
}

/// The table, in Markdown, which lines no test declares to cover, and what tests measured. An error
/// when a test covers a line that does not exist.
pub fn table(tests: &[Cells<'_>], head: &str) -> Result<String> {
    let is_known = |line: &String| LINES.iter().any(|(known, _)| known == line);
    if let Some(test) = tests.iter().find(|test| !test.covers.iter().all(is_known)) {
        bail!("{} covers a line that contract.rs does not have", test.name);
    }
    let mut text = format!("# The contract, line by line\n\n{head}\n");
    let mut uncovered = Vec::new();
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
            uncovered.push(line);
            continue;
        }
        writeln!(
            text,
            "\n## {line}\n\n{promise}\n\n| test | ours | stock |\n|---|---|---|\n{rows}"
        )?;
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    if !uncovered.is_empty() {
        let uncovered = uncovered.join(", ");
        write!(
            text,
            "\nOf this run, no test declares to cover: {uncovered}.\n"
        )?;
    }
    if tests.iter().any(|test| !test.figures.is_empty()) {
        text.push_str("\n## Figures\n\nWhat tests measured on the patched kernel.\n");
    }
    for test in tests.iter().filter(|test| !test.figures.is_empty()) {
        let (name, figures) = (test.name, test.figures.join("\n"));
        write!(text, "\n`{name}`:\n\n```\n{figures}\n```\n")?;
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
            figures: &[],
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
    fn a_line_without_a_test_is_named() {
        let most: Vec<_> = LINES[1..]
            .iter()
            .map(|(line, _)| (*line).to_owned())
            .collect();
        let text = table(&cells(&most), "head").unwrap();
        assert!(text.ends_with("no test declares to cover: C1.\n"), "{text}");
        assert!(!text.contains("## C1\n"));
    }

    #[test]
    fn figures_stand_at_the_end() {
        let figures = ["lost 1".to_owned(), "unaccounted 0".to_owned()];
        let mut cells = cells(&[]);
        cells[0].figures = &figures;
        let text = table(&cells, "head").unwrap();
        let expected = "kernel.\n\n`a::b`:\n\n```\nlost 1\nunaccounted 0\n```\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_line_that_does_not_exist_is_an_error() {
        let error = table(&cells(&["C99".to_owned()]), "head").unwrap_err();
        assert!(error.to_string().starts_with("a::b covers"), "{error}");
    }
}
