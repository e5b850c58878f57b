// SPDX-License-Identifier: GPL-2.0
//! The memory layout of this program, which decides how much fork(2) copies and an exit frees.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::personality::{self, Persona};

use crate::results;

/// Executes this program again without random addresses, so that it has the same addresses in each
/// boot. Returns if this is so already.
pub fn without_random_addresses() -> Result<()> {
    let persona = personality::get()?;
    if persona.contains(Persona::ADDR_NO_RANDOMIZE) {
        return Ok(());
    }
    personality::set(persona | Persona::ADDR_NO_RANDOMIZE)?;
    let mut again = Command::new("/proc/self/exe");
    again.args(env::args_os().skip(1));
    results::hand_over(&mut again)?;
    let error = again.exec();
    Err(error).context("cannot run this program again without random addresses")
}
