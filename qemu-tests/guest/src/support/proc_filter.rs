// SPDX-License-Identifier: GPL-2.0
//! What the kernel's selftest proc_filter prints.

/// The lines about a process.
pub fn about(said: &str, pid: i32) -> Vec<&str> {
    let word = format!("process {pid} (tgid {pid})");
    said.lines().filter(|line| line.contains(&word)).collect()
}
