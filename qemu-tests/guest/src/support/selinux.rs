// SPDX-License-Identifier: GPL-2.0
//! SELinux: a policy of a test, and processes that it confines.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};

use super::fault_injection::Setting;
use super::security;
use crate::child::own_pid;
use crate::harness::{Failure, TestResult, expect};

/// SELinux' own file system.
const SELINUXFS: &str = "/sys/fs/selinux";

/// What a process is confined by. Writing there changes it.
const CURRENT: &str = "/proc/thread-self/attr/current";

/// What every process is confined by that no test confined, once the policy is loaded.
const BASE: &str = "base_t";

/// The policy in the kernel, enforced until this is dropped. Nothing unloads it.
pub struct Policy {
    _enforced: Setting,
}

impl Policy {
    /// Loads a policy, if SELinux is in force and the policy is not loaded yet. It has to have the
    /// context that [`context`] makes of [`BASE`] for the initial SIDs.
    pub fn enforce(
        compiler: impl FnOnce() -> Result<PathBuf, Failure>,
        text: &str,
    ) -> Result<Self, Failure> {
        security::needed("selinux", "selinux")?;
        let place = Path::new(SELINUXFS);
        if !place.join("load").exists() {
            let (kind, nothing) = (Some("selinuxfs"), None::<&str>);
            mount(kind, place, kind, MsFlags::empty(), nothing)?;
        }
        if current()? != context(BASE) {
            let policy = compile(&compiler()?, text)?;
            fs::write(place.join("load"), policy)?;
            let now = current()?;
            expect(
                now == context(BASE),
                format!("{} to confine this process, got {now}", context(BASE)),
            )?;
        }
        Ok(Self {
            _enforced: Setting::change(SELINUXFS, "enforce", "1")?,
        })
    }
}

/// The binary form of a policy. What it does not know is allowed.
fn compile(compiler: &Path, text: &str) -> Result<Vec<u8>, Failure> {
    let file = |kind| format!("/run/proc-events-{kind}-{}", own_pid());
    let (source, binary) = (file("policy.conf"), file("policy"));
    fs::write(&source, text)?;
    let output = Command::new(compiler)
        .args(["-U", "allow", "-o", &binary, &source])
        .output()?;
    let policy = fs::read(&binary);
    for name in [&source, &binary] {
        // What was not made is not there.
        let _ = fs::remove_file(name);
    }
    expect(
        output.status.success(),
        format!(
            "{} to succeed, it said:\n{}",
            compiler.display(),
            String::from_utf8_lossy(&output.stderr)
        ),
    )?;
    Ok(policy?)
}

/// The context of a type.
fn context(kind: &str) -> String {
    format!("user_u:base_r:{kind}")
}

fn current() -> io::Result<String> {
    let context = fs::read_to_string(CURRENT)?;
    Ok(context.trim_end_matches(['\0', '\n']).to_owned())
}

/// Confines this process as a type, for the rest of its life.
pub fn confine(kind: &str) -> TestResult {
    Ok(fs::write(CURRENT, context(kind))?)
}
