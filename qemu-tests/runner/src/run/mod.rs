// SPDX-License-Identifier: GPL-2.0
//! What is run in virtual machines: a command, a load, or the tests.

pub mod commands;
pub mod load;
mod session;
mod terminal;
pub mod test_run;
