// SPDX-License-Identifier: GPL-2.0
//! Hardware virtualization or emulation.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Choice {
    /// KVM where it works.
    Auto,
    /// KVM.
    Kvm,
    /// Emulation.
    Tcg,
    /// Emulation of one CPU whose clock counts instructions.
    Counting,
}

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// On the processor.
    Kvm,
    /// By translating them.
    Tcg,
    /// By translating them, on one CPU whose clock counts them: each takes a nanosecond.
    Counting,
}

impl Accelerator {
    /// The name as QEMU has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Counting => "tcg, counting instructions",
        }
    }

    /// What time limits in the guest are multiplied with.
    pub fn time_factor(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg | Self::Counting => 4,
        }
    }
}
