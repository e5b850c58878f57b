// SPDX-License-Identifier: GPL-2.0
//! Commands that use process events as programs do: they show them, or follow a service by them.

pub mod demo;
pub mod listen;
pub mod supervisor;
