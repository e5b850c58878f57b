// SPDX-License-Identifier: GPL-2.0
//! The results of a test run: a file for programs, which gets each result as it comes, a table for
//! people, and the page of the contract.

use std::fs::{self};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use protocol::results::{Count, Entry, KernelUnderTest, Outcome, Provenance, TestRecord, Trial};
use protocol::{StockExpectation, TestDescription};

use super::contract::{self, Cells};
use crate::machine::accelerator::Accelerator;
use crate::results_file::ResultsFile;

/// The results of a test run.
pub struct Report {
    tests: Vec<TestDescription>,
    provenance: Provenance,
    accelerator: Accelerator,
    trials: Vec<Trial>,
    file: Option<ResultsFile>,
}

impl Report {
    /// A report without results, to be written into a file as they come.
    pub fn new(
        tests: &[TestDescription],
        provenance: Provenance,
        accelerator: Accelerator,
        file: Option<&Path>,
    ) -> Result<Self> {
        let mut file = file.map(ResultsFile::open).transpose()?;
        if let Some(file) = &mut file {
            file.add(&Entry::Provenance(provenance.clone()))?;
            file.add_machine(accelerator)?;
        }
        Ok(Self {
            tests: tests.to_vec(),
            provenance,
            accelerator,
            trials: Vec::new(),
            file,
        })
    }

    /// Adds the result of a trial.
    pub fn add(&mut self, trial: Trial) -> Result<()> {
        // A result that cannot be written still counts.
        self.trials.push(trial.clone());
        match &mut self.file {
            Some(file) => file.add(&Entry::Trial(trial)),
            None => Ok(()),
        }
    }

    /// How many trials ended in which way.
    pub fn count(&self) -> Count {
        Count::of(self.trials.iter().map(|trial| &trial.verdict))
    }

    /// Prints the table of both kernels and the last line.
    pub fn print(&self, elapsed: Duration) -> Result<()> {
        let mut output = io::stdout().lock();
        let rows: Vec<[String; 3]> = self
            .shown()
            .map(|test| {
                let (ours, stock) = (
                    self.cell(KernelUnderTest::Ours, test),
                    self.stock_cell(test),
                );
                [test.name.clone(), ours, stock]
            })
            .collect();
        let width = |column: usize| {
            let widths = rows.iter().map(|row| row[column].len());
            widths.max().unwrap_or(0).max(4)
        };
        let (first, second) = (width(0), width(1));
        writeln!(output, "\n{:first$} | {:second$} | stock", "test", "ours")?;
        writeln!(output, "{:-<first$}-|-{:-<second$}-|------", "", "")?;
        for [name, ours, stock] in &rows {
            writeln!(output, "{name:first$} | {ours:second$} | {stock}")?;
        }
        // The table may be long, so the failures are listed again below it.
        for trial in &self.trials {
            if let (Outcome::Failed(_), Some(kernel)) = (&trial.verdict, trial.kernel) {
                writeln!(output, "\nFAILED [{}] {}", kernel.name(), trial.name)?;
            }
        }
        let (counts, seconds) = (self.counts(), elapsed.as_secs());
        let accelerator = self.accelerator.name();
        writeln!(output, "\nVM tests: {counts} ({accelerator}, {seconds} s)")?;
        Ok(())
    }

    fn counts(&self) -> String {
        let Count {
            passed,
            failed,
            skipped,
        } = self.count();
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// The tests that were selected.
    fn shown(&self) -> impl Iterator<Item = &TestDescription> {
        let is_shown = |test: &&TestDescription| {
            let mut trials = self.trials.iter();
            trials.any(|trial| trial.name == test.name)
        };
        self.tests.iter().filter(is_shown)
    }

    fn trial(&self, kernel: KernelUnderTest, name: &str) -> Option<&Trial> {
        let mut trials = self.trials.iter();
        trials.find(|trial| trial.kernel == Some(kernel) && trial.name == name)
    }

    fn record(&self, kernel: KernelUnderTest, name: &str) -> Option<&TestRecord> {
        self.trial(kernel, name)?.result.as_ref()
    }

    /// The guest's result for a test.
    fn cell(&self, kernel: KernelUnderTest, test: &TestDescription) -> String {
        let Some(trial) = self.trial(kernel, &test.name) else {
            return "-".to_owned();
        };
        match trial.result.as_ref().map(TestRecord::overall) {
            None => "no result".to_owned(),
            Some(Outcome::Passed) => "passed".to_owned(),
            Some(Outcome::Failed(_)) => "failed".to_owned(),
            Some(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
        }
    }

    fn stock_cell(&self, test: &TestDescription) -> String {
        let cell = self.cell(KernelUnderTest::Stock, test);
        let Some(trial) = self.trial(KernelUnderTest::Stock, &test.name) else {
            return cell;
        };
        match &test.stock {
            StockExpectation::NotApplicable(reason) => format!("not applicable: {reason}"),
            StockExpectation::Fails(reason) if trial.verdict == Outcome::Passed => {
                format!("failed, as declared: {reason}")
            }
            StockExpectation::Fails(reason) => format!("{cell}, not as declared: {reason}"),
            StockExpectation::Passes => cell,
        }
    }

    /// Writes the page with the contract's promises and the tests' results.
    pub fn write_table(&self, file: &Path) -> Result<()> {
        let tests: Vec<_> = self
            .shown()
            .map(|test| Cells {
                name: &test.name,
                covers: &test.covers,
                ours: self.cell(KernelUnderTest::Ours, test),
                stock: self.stock_cell(test),
                figures: match self.record(KernelUnderTest::Ours, &test.name) {
                    Some(record) if record.overall() == Outcome::Passed => &record.figures,
                    _ => &[],
                },
            })
            .collect();
        let head = format!(
            "Written by a test run (`make test TABLE=FILE`): {},\non both kernels together. *ours* \
             is the patched kernel with the module, *stock* the unpatched one.\n{}",
            self.counts(),
            self.provenance
        );
        fs::write(file, contract::table(&tests, &head)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}
