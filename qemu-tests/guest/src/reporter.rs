// SPDX-License-Identifier: GPL-2.0
//! Where the tests' results go: to the runner as records, or to people as KTAP without a runner.

use std::io::{self, Write};

use protocol::results::{Outcome, Record, TestRecord};

use crate::harness::Reporter;
use crate::results;

/// Reports to the runner.
pub struct Records;

impl Reporter for Records {
    fn plan(&mut self, tests: usize) -> io::Result<()> {
        results::write(&Record::Plan(tests))
    }

    fn test(&mut self, record: TestRecord) -> io::Result<()> {
        results::write(&Record::Test(record))
    }
}

/// Reports as KTAP version 1, see Documentation/dev-tools/ktap.rst in the kernel's source.
pub struct Ktap<W> {
    output: W,
    number: usize,
}

impl<W: Write> Ktap<W> {
    /// Writes KTAP to this output.
    pub fn new(output: W) -> Self {
        Self { output, number: 0 }
    }
}

impl<W: Write> Reporter for Ktap<W> {
    fn plan(&mut self, tests: usize) -> io::Result<()> {
        write!(self.output, "KTAP version 1\n1..{tests}\n")?;
        self.output.flush()
    }

    fn test(&mut self, record: TestRecord) -> io::Result<()> {
        self.number += 1;
        let figures = record.figures.iter();
        let figures = figures.map(|figure| format!("{}: {}", figure.name, figure.value));
        let outcome = record.overall();
        let reason = match &outcome {
            Outcome::Failed(reason) => reason.lines().map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let diagnostics = record.output.into_iter().chain(figures);
        for line in diagnostics.chain(record.kernel).chain(reason) {
            writeln!(self.output, "# {line}")?;
        }
        let result = format!("{} {}", self.number, record.name);
        match outcome {
            Outcome::Passed => writeln!(self.output, "ok {result}")?,
            Outcome::Skipped(reason) => writeln!(self.output, "ok {result} # SKIP {reason}")?,
            Outcome::Failed(_) => writeln!(self.output, "not ok {result}")?,
        }
        self.output.flush()
    }
}
