// SPDX-License-Identifier: GPL-2.0
//! The kernels that are measured.

use std::path::PathBuf;

use crate::machine::kernel::Kernel;

/// The kernel that a figure is for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum BenchKernel {
    /// Patched, without process events.
    Floor,
    /// Unpatched.
    Stock,
    /// Patched, with the module.
    Ours,
    /// Patched, with cn_proc instead of a handler.
    Mainline,
}

impl BenchKernel {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Stock => "stock",
            Self::Ours => "ours",
            Self::Mainline => "mainline",
        }
    }
}

/// The kernels, and the program to compare with.
pub struct BenchKernels {
    /// The patched kernel.
    pub ours: Kernel,
    /// The unpatched one.
    pub stock: Kernel,
    /// The patched one without process events.
    pub floor: Kernel,
    /// The patched one with cn_proc instead of a handler.
    pub mainline: Kernel,
    /// The program that records events with eBPF programs.
    pub peer: Option<PathBuf>,
}
