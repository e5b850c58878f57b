// SPDX-License-Identifier: GPL-2.0
//! The outcome of a test run: a table for people, JSON for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::Conclusion;
use protocol::{StockExpectation, TestDescription};
use serde_json::json;

use crate::accelerator::Accelerator;
use crate::contract::{self, Cells};
use crate::ktap::Outcome;

/// Which kernel a result is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Column {
    /// The patched one with the module.
    Ours,
    /// The unpatched one.
    Stock,
}

impl Column {
    /// The name in trials and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Stock => "stock",
        }
    }
}

/// One test's result on one kernel.
pub struct Row {
    /// The test's full name.
    pub name: String,
    /// What the guest reported, if it did.
    pub outcome: Option<Outcome>,
    /// What the test wrote: figures, or why it failed.
    pub diagnostics: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// The outcome of a test run.
pub struct Report {
    tests: Vec<TestDescription>,
    selected: BTreeSet<String>,
    accelerator: Accelerator,
    ours: Option<Vec<Row>>,
    stock: Option<Vec<Row>>,
    /// Whether each kernel had nothing to complain about.
    clean: BTreeMap<&'static str, bool>,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Report {
    /// A report without results.
    pub fn new(
        tests: &[TestDescription],
        accelerator: Accelerator,
        ours: bool,
        stock: bool,
    ) -> Self {
        Self {
            tests: tests.to_vec(),
            selected: BTreeSet::new(),
            accelerator,
            ours: ours.then(Vec::new),
            stock: stock.then(Vec::new),
            clean: BTreeMap::new(),
            passed: 0,
            failed: 0,
            ignored: 0,
        }
    }

    /// Adds the results of one kernel, for the tests that the user selected, and whether it had
    /// nothing to complain about.
    pub fn add(&mut self, column: Column, selected: Vec<String>, rows: Vec<Row>, clean: bool) {
        self.selected.extend(selected);
        self.clean.insert(column.name(), clean);
        match column {
            Column::Ours => self.ours = Some(rows),
            Column::Stock => self.stock = Some(rows),
        }
    }

    /// Adds up what libtest-mimic counted.
    pub fn count(&mut self, conclusion: &Conclusion) {
        self.passed += conclusion.num_passed;
        self.failed += conclusion.num_failed;
        self.ignored += conclusion.num_ignored;
    }

    /// Whether a trial failed.
    pub fn has_failures(&self) -> bool {
        self.failed > 0
    }

    /// Prints the table of both kernels and the last line.
    pub fn print(&self, elapsed: Duration) -> Result<()> {
        let mut output = io::stdout().lock();
        let rows: Vec<[String; 3]> = self
            .shown()
            .into_iter()
            .map(|test| {
                [
                    test.name.clone(),
                    self.cell(&self.ours, &test.name),
                    self.stock_cell(test),
                ]
            })
            .collect();
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].len())
                .max()
                .unwrap_or(0)
                .max(4)
        };
        let (first, second) = (width(0), width(1));
        writeln!(output, "{:first$} | {:second$} | stock", "test", "ours")?;
        writeln!(output, "{:-<first$}-|-{:-<second$}-|------", "", "")?;
        for [name, ours, stock] in &rows {
            writeln!(output, "{name:first$} | {ours:second$} | {stock}")?;
        }
        let (passed, failed, ignored) = (self.passed, self.failed, self.ignored);
        let (accelerator, elapsed) = (self.accelerator.name(), elapsed.as_secs());
        writeln!(
            output,
            "\nVM tests: {passed} passed, {failed} failed, {ignored} ignored ({accelerator}, {elapsed} s)"
        )?;
        Ok(())
    }

    /// The tests that were selected.
    fn shown(&self) -> Vec<&TestDescription> {
        self.tests
            .iter()
            .filter(|test| self.selected.contains(&test.name))
            .collect()
    }

    fn cell(&self, rows: &Option<Vec<Row>>, name: &str) -> String {
        let Some(rows) = rows else {
            return "-".to_owned();
        };
        match rows.iter().find(|row| row.name == name) {
            None => "-".to_owned(),
            Some(Row { outcome: None, .. }) => "no result".to_owned(),
            Some(Row {
                outcome: Some(outcome),
                ..
            }) => word(outcome),
        }
    }

    fn stock_cell(&self, test: &TestDescription) -> String {
        if self.stock.is_none() {
            return "-".to_owned();
        }
        let outcome = self.cell(&self.stock, &test.name);
        match &test.stock {
            StockExpectation::NotApplicable(reason) => format!("not applicable: {reason}"),
            StockExpectation::Fails(reason) if outcome == "failed" => {
                format!("failed, as declared: {reason}")
            }
            StockExpectation::Fails(reason) => format!("{outcome}, but declared to fail: {reason}"),
            StockExpectation::Passes => outcome,
        }
    }

    /// What a test that passed on the patched kernel wrote.
    fn figures(&self, name: &str) -> &[String] {
        let mut rows = self.ours.iter().flatten();
        rows.find(|row| row.name == name && row.outcome == Some(Outcome::Passed))
            .map_or(&[], |row| &row.diagnostics)
    }

    /// Writes the results for programs.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        let tests: Vec<_> = self
            .shown()
            .into_iter()
            .map(|test| self.in_json(test))
            .collect();
        let report = json!({
            "passed": self.passed,
            "failed": self.failed,
            "ignored": self.ignored,
            "accelerator": self.accelerator.name(),
            "kernel_log_is_clean": self.clean,
            "tests": tests,
        });
        fs::write(file, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Writes the table of what the contract promises and what the tests say.
    pub fn write_table(&self, file: &Path) -> Result<()> {
        let tests: Vec<_> = self
            .shown()
            .into_iter()
            .map(|test| Cells {
                name: &test.name,
                covers: &test.covers,
                ours: self.cell(&self.ours, &test.name),
                stock: self.stock_cell(test),
                figures: self.figures(&test.name),
            })
            .collect();
        let (passed, failed, ignored) = (self.passed, self.failed, self.ignored);
        let head = format!(
            "Written by a test run (`proc-events-vm test --table`): {passed} passed, {failed} \
             failed, {ignored} ignored,\non both kernels together. *ours* is the patched kernel \
             with the module, *stock* the unpatched one."
        );
        fs::write(file, contract::table(&tests, &head)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn in_json(&self, test: &TestDescription) -> serde_json::Value {
        let find = |rows: &Option<Vec<Row>>| {
            let rows = rows.as_deref().unwrap_or_default();
            match rows.iter().find(|row| row.name == test.name) {
                Some(row) => (
                    row.outcome.as_ref().map(word),
                    Some(row.seconds),
                    row.diagnostics.clone(),
                ),
                None => (None, None, Vec::new()),
            }
        };
        let (ours, seconds, diagnostics) = find(&self.ours);
        let (stock, stock_seconds, stock_diagnostics) = find(&self.stock);
        json!({
            "name": test.name,
            "covers": test.covers,
            "ours": ours,
            "seconds": seconds,
            "diagnostics": diagnostics,
            "stock": stock,
            "stock_diagnostics": stock_diagnostics,
            "stock_expected": test.stock,
            "stock_seconds": stock_seconds,
        })
    }
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Failed => "failed".to_owned(),
        Outcome::Skipped(reason) => format!("skipped: {reason}"),
    }
}
