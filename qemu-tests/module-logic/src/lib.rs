// SPDX-License-Identifier: GPL-2.0

//! The files of `rust-module/` that use no code of the kernel, compiled for the host.
//!
//! The unit tests are at the end of each file: for what listeners read (`wire`), the events that
//! they ask for (`mask`), and their requests (`control`). The properties that hold for all inputs
//! are in `properties`. Only the tests call the functions here; the callers in the kernel are
//! missing.

#![allow(dead_code)]

// The kernel's rustfmt settings apply to these files, so rustfmt skips them here.
#[path = "../../../rust-module/control.rs"]
#[rustfmt::skip]
mod control;
#[path = "../../../rust-module/mask.rs"]
#[rustfmt::skip]
mod mask;
#[path = "../../../rust-module/wire.rs"]
#[rustfmt::skip]
mod wire;

#[cfg(test)]
mod properties;
