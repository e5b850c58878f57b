// SPDX-License-Identifier: GPL-2.0

//! The files of `rust-module/` that know nothing of the kernel, compiled for the host.
//!
//! Their tests are at their ends: what listeners read (`wire`), what they ask for (`mask`), and how
//! they ask (`control`). What has to hold for all inputs is in `properties`. In the kernel their functions have callers; here, only the tests.

#![allow(dead_code)]

// rustfmt skips what the kernel's rustfmt settings format.
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
