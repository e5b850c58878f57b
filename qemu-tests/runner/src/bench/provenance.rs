// SPDX-License-Identifier: GPL-2.0
//! What the figures were made from.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use protocol::results;
use serde::Serialize;

use super::kernels::BenchKernels;
use crate::machine::accelerator::Accelerator;
use crate::machine::kernel::Kernel;
use crate::machine::settings::Settings;

/// What the figures of a run were made from.
#[derive(Serialize)]
pub struct Provenance {
    /// The commit, the command and the kernels.
    #[serde(flatten)]
    pub run: results::Provenance,
    /// The compiler of the kernels.
    pub compiler: String,
    /// Options that matter, as they are in all configurations.
    pub options: Vec<String>,
    /// QEMU's version.
    pub qemu: String,
    /// How the measurements with two CPUs were run.
    pub parallel: String,
    /// How long all of it took.
    pub seconds: u64,
}

/// Options that change figures.
const OPTIONS: [&str; 7] = [
    "CONFIG_CC_OPTIMIZE_FOR_PERFORMANCE",
    "CONFIG_SLUB_TINY",
    "CONFIG_JUMP_LABEL",
    "CONFIG_CPU_MITIGATIONS",
    "CONFIG_SMP",
    "CONFIG_PREEMPT_LAZY",
    "CONFIG_FAULT_INJECTION",
];

impl Provenance {
    /// Collects all of it. Fails if the kernels cannot be compared.
    pub fn new(
        settings: &Settings,
        kernels: &BenchKernels,
        parallel: Accelerator,
        elapsed: Duration,
    ) -> Result<Self> {
        let config = configuration(&kernels.ours)?;
        let options = OPTIONS.map(|name| option(&config, name));
        let BenchKernels {
            ours,
            stock,
            floor,
            mainline,
            ..
        } = kernels;
        for other in [stock, floor, mainline] {
            let other_config = configuration(other)?;
            ensure!(
                options == OPTIONS.map(|name| option(&other_config, name)),
                "{} and {} are configured in different ways: run scripts/bench",
                ours.directory.display(),
                other.directory.display()
            );
        }
        Ok(Self {
            run: settings.origin.provenance(&[ours, stock])?,
            compiler: value(&config, "CONFIG_CC_VERSION_TEXT").unwrap_or_default(),
            options: options.to_vec(),
            qemu: settings.qemu_version.clone(),
            parallel: parallel.name().to_owned(),
            seconds: elapsed.as_secs(),
        })
    }
}

fn configuration(kernel: &Kernel) -> Result<String> {
    let file = kernel.directory.join(".config");
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

/// `NAME=value`, or `NAME=n` where it is not set.
fn option(config: &str, name: &str) -> String {
    format!("{name}={}", value(config, name).as_deref().unwrap_or("n"))
}

fn value(config: &str, name: &str) -> Option<String> {
    let mut lines = config.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_values() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"gcc 12\"\nCONFIG_AB=n\n";
        assert_eq!(option(config, "CONFIG_A"), "CONFIG_A=y");
        assert_eq!(option(config, "CONFIG_B"), "CONFIG_B=n");
        assert_eq!(value(config, "CONFIG_C").as_deref(), Some("gcc 12"));
    }
}
