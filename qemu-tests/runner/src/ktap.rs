// SPDX-License-Identifier: GPL-2.0
//! A strict parser for what the guest's tests report: KTAP version 1, plan first, no nesting.

use anyhow::{Context, Result, bail, ensure};

/// How a test ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// `ok`.
    Passed,
    /// `not ok`.
    Failed,
    /// `ok` with a SKIP directive and its reason.
    Skipped(String),
}

/// One test's result.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TestResult {
    /// The test's full name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Its `# ` lines.
    pub diagnostics: Vec<String>,
}

/// Takes the report line by line.
#[derive(Default)]
pub struct Parser {
    state: State,
    diagnostics: Vec<String>,
}

#[derive(Default)]
enum State {
    #[default]
    Version,
    Plan,
    Results {
        planned: usize,
        seen: usize,
    },
}

impl Parser {
    /// Takes a line; a result when the line is one.
    pub fn line(&mut self, line: &str) -> Result<Option<TestResult>> {
        match &mut self.state {
            State::Version => {
                ensure!(line == "KTAP version 1", "not KTAP version 1: {line:?}");
                self.state = State::Plan;
                Ok(None)
            }
            State::Plan => {
                let planned = line
                    .strip_prefix("1..")
                    .and_then(|count| count.parse().ok());
                let planned = planned.with_context(|| format!("no KTAP plan: {line:?}"))?;
                self.state = State::Results { planned, seen: 0 };
                Ok(None)
            }
            State::Results { planned, seen } => {
                if let Some(diagnostic) = line.strip_prefix('#') {
                    let diagnostic = diagnostic.strip_prefix(' ').unwrap_or(diagnostic);
                    self.diagnostics.push(diagnostic.to_owned());
                    return Ok(None);
                }
                *seen += 1;
                ensure!(
                    seen <= planned,
                    "more results than the planned {planned}: {line:?}"
                );
                let (name, outcome) = parse_result(line, *seen)?;
                let diagnostics = std::mem::take(&mut self.diagnostics);
                Ok(Some(TestResult {
                    name,
                    outcome,
                    diagnostics,
                }))
            }
        }
    }

    /// Whether all planned results came.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::Results { planned, seen } if planned == seen)
    }
}

fn parse_result(line: &str, number: usize) -> Result<(String, Outcome)> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => {
            let rest = line.strip_prefix("ok ");
            (
                true,
                rest.with_context(|| format!("no KTAP result: {line:?}"))?,
            )
        }
    };
    let (got, rest) = rest
        .split_once(' ')
        .with_context(|| format!("no test name: {line:?}"))?;
    ensure!(
        got.parse() == Ok(number),
        "result {number} is out of order: {line:?}"
    );
    match rest.split_once(" # ") {
        None => Ok((
            rest.to_owned(),
            if passed {
                Outcome::Passed
            } else {
                Outcome::Failed
            },
        )),
        Some((name, directive)) => match directive.strip_prefix("SKIP") {
            Some(reason) if passed => Ok((
                name.to_owned(),
                Outcome::Skipped(reason.trim_start().to_owned()),
            )),
            _ => bail!("unknown KTAP directive: {line:?}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Vec<TestResult>, bool)> {
        let mut parser = Parser::default();
        let mut results = Vec::new();
        for line in text.lines() {
            results.extend(parser.line(line)?);
        }
        Ok((results, parser.is_complete()))
    }

    #[test]
    fn results_and_their_diagnostics_are_told() {
        let text = "KTAP version 1\n1..3\nok 1 a::b\n# expected 1\n#   got 2\nnot ok 2 a::c\n\
                    ok 3 d::e # SKIP no forkstat\n";
        let (results, complete) = parse(text).unwrap();
        assert!(complete);
        assert_eq!(results[0].outcome, Outcome::Passed);
        assert_eq!(
            (results[1].name.as_str(), &results[1].outcome),
            ("a::c", &Outcome::Failed)
        );
        assert_eq!(results[1].diagnostics, ["expected 1", "  got 2"]);
        assert_eq!(results[2].outcome, Outcome::Skipped("no forkstat".into()));
        assert!(results[2].diagnostics.is_empty());
    }

    #[test]
    fn missing_results_are_noticed() {
        assert!(!parse("KTAP version 1\n1..2\nok 1 a::b\n").unwrap().1);
        assert!(!parse("").unwrap().1);
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in [
            "TAP version 13\n",
            "KTAP version 1\nok 1 a\n",
            "KTAP version 1\n1..1\nok 2 a\n",
            "KTAP version 1\n1..1\nok 1 a\nok 2 b\n",
            "KTAP version 1\n1..1\nhello\n",
            "KTAP version 1\n1..1\nok 1\n",
            "KTAP version 1\n1..1\nnot ok 1 a # SKIP b\n",
            "KTAP version 1\n1..1\nok 1 a # TODO b\n",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
