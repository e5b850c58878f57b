// SPDX-License-Identifier: GPL-2.0
//! Virtual machines: what is needed to boot one, and what runs in it.

pub mod accelerator;
mod console;
mod dump;
pub mod files;
pub mod guard;
pub mod kernel;
mod origin;
pub mod probe;
pub mod settings;
mod virtme;
pub mod vm;
