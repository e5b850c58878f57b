// SPDX-License-Identifier: GPL-2.0
//! What the project's scripts know about a run, for its pages.

use std::env;

use anyhow::Result;
use clap::Args;
use protocol::results::Provenance;

use super::kernel::Kernel;

/// What a run is made from, besides the kernels.
#[derive(Args, Clone)]
pub struct Origin {
    /// The project's commit, for pages.
    #[arg(long, env = "PROC_EVENTS_COMMIT", default_value = "unknown")]
    commit: String,
    /// The series, for pages.
    #[arg(long, env = "PROC_EVENTS_SERIES", default_value = "unknown")]
    series: String,
    /// The day, for pages.
    #[arg(long, env = "PROC_EVENTS_DATE", default_value = "an unknown day")]
    date: String,
    /// The user's command, for pages; by default this program's.
    #[arg(
        long,
        value_name = "COMMAND",
        env = "PROC_EVENTS_COMMAND",
        hide_env_values = true
    )]
    made_by: Option<String>,
}

impl Origin {
    /// What results on these kernels are made from.
    pub fn provenance(&self, kernels: &[&Kernel]) -> Result<Provenance> {
        let command = match &self.made_by {
            Some(command) => command.clone(),
            None => env::args().collect::<Vec<_>>().join(" "),
        };
        let kernels = kernels.iter().map(|kernel| kernel.release());
        Ok(Provenance {
            commit: self.commit.clone(),
            series: self.series.clone(),
            date: self.date.clone(),
            command,
            kernels: kernels.collect::<Result<_>>()?,
        })
    }
}
