// SPDX-License-Identifier: GPL-2.0
//! Security modules: which are in force.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::harness::{Failure, TestResult};

/// Where security modules have their files.
const SECURITYFS: &str = "/sys/kernel/security";

/// Skips the test unless this security module is in force, as it is in this flavor.
#[track_caller]
pub fn needed(module: &str, flavor: &str) -> TestResult {
    if is_in_force(module)? {
        return Ok(());
    }
    Err(Failure::skip(format!(
        "the security module {module} is not in force: choose FLAVOR={flavor}"
    )))
}

fn is_in_force(module: &str) -> Result<bool, Failure> {
    let place = Path::new(SECURITYFS);
    // A kernel without security modules does not have this directory.
    if !place.is_dir() {
        return Ok(false);
    }
    let list = place.join("lsm");
    if !list.exists() {
        let (kind, nothing) = (Some("securityfs"), None::<&str>);
        mount(kind, place, kind, MsFlags::empty(), nothing)?;
    }
    Ok(fs::read_to_string(list)?
        .trim()
        .split(',')
        .any(|name| name == module))
}
