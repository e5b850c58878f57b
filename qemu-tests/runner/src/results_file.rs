// SPDX-License-Identifier: GPL-2.0
//! A file of results, to which a run adds a line of JSON for each trial.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use protocol::results::Entry;

use crate::machine::accelerator::Accelerator;

/// Name of the trial that fails when a kernel complained.
pub const KERNEL_LOG: &str = "kernel_log_is_clean";

/// A file of results that grows.
pub struct ResultsFile(File);

impl ResultsFile {
    /// Opens the file to append to it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(file))
    }

    /// Adds an entry. It is written immediately, because a run may be stopped.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        self.0
            .write_all(&entry.line())
            .context("cannot write the results")
    }

    /// Records how the machines of the trials that follow are run.
    pub fn add_machine(&mut self, accelerator: Accelerator) -> Result<()> {
        let accelerator = accelerator.name().to_owned();
        self.add(&Entry::Machine { accelerator })
    }
}
