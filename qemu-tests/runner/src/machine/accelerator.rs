// SPDX-License-Identifier: GPL-2.0
//! Hardware virtualization or emulation.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The user's choice.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Choice {
    /// KVM if it works, else emulation.
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
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Counting => "tcg, counting instructions",
        }
    }

    /// The factor for time limits in the guest.
    pub fn time_factor(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg | Self::Counting => 4,
        }
    }
}
