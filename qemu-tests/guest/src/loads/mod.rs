// SPDX-License-Identifier: GPL-2.0
//! The loads: events by the thousand, with checks of what listeners get of them. Each is a command, and
//! most are tests as well, for a short time.

pub mod containers;
mod counted_listener;
pub mod cycles;
pub mod execs;
pub mod rounds;
pub mod storm;
pub mod tables;
pub mod trees;
mod victim;
