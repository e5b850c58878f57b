// SPDX-License-Identifier: GPL-2.0
//! Commands that use process events as programs do: they show events, or supervise a service.

pub mod demo;
pub mod listen;
pub mod supervisor;
