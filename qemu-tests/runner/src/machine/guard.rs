// SPDX-License-Identifier: GPL-2.0
//! Keeps QEMU from outliving the runner.
//!
//! The runner starts virtme-ng, which starts QEMU, under this guard in a process group of their
//! own. The guard's standard input is a pipe that the runner holds: however the runner ends, even
//! by SIGKILL, the pipe closes and the guard kills the group.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::getpgrp;

/// Runs the command in this process group. Returns its status.
pub fn run(command: &[String]) -> Result<u8> {
    let [program, arguments @ ..] = command else {
        bail!("nothing to guard");
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    thread::spawn(|| {
        // An error means the end of the input, too.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        // Kills this process, too. If this fails, nothing can be done about it.
        let _ = killpg(getpgrp(), Signal::SIGKILL);
    });
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {program}"))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX))
}
