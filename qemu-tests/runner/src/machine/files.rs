// SPDX-License-Identifier: GPL-2.0
//! Files of the host that a virtual machine needs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Places where the guest does not have the host's files: its init mounts other file systems there.
const HIDDEN: [&str; 10] = [
    "/dev",
    "/lib/modules",
    "/proc",
    "/run",
    "/sys",
    "/usr/lib/modules",
    "/var/cache",
    "/var/lib/private",
    "/var/log",
    "/var/tmp",
];

pub fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("cannot find {}", path.display()))
}

pub fn file(path: &Path, what: &str, remedy: &str) -> Result<PathBuf> {
    ensure!(
        path.is_file(),
        "{what} is not at {}: {remedy}",
        path.display()
    );
    absolute(path)
}

pub fn visible_in_guest(path: &Path) -> Result<()> {
    match HIDDEN.iter().find(|hidden| path.starts_with(hidden)) {
        None => Ok(()),
        Some(hidden) => bail!(
            "{} cannot be seen in the guest, which has its own {hidden}: set PROC_EVENTS_CACHE to \
             another place",
            path.display()
        ),
    }
}

/// Paths go through JSON and the kernel's command line.
pub fn text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}
