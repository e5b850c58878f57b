// SPDX-License-Identifier: GPL-2.0
//! SELinux: a policy of a test, and processes that it confines.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use super::directory::Directory;
use super::fault_injection::Setting;
use super::{program, security};
use crate::harness::{Failure, TestResult, expect};

/// SELinux' own file system.
const SELINUXFS: &str = "/sys/fs/selinux";

/// The context that confines a process. Writing to the file changes it.
const CURRENT: &str = "/proc/thread-self/attr/current";

/// The type of every process that no test confined, once the policy is loaded.
const BASE: &str = "base_t";

/// The policy in the kernel, enforced until this is dropped. Nothing unloads it.
pub struct Policy {
    _enforced: Setting,
}

impl Policy {
    /// Loads a policy, if SELinux is in force and the policy is not loaded already. For the initial
    /// SIDs, the policy has to have the context that [`context`] makes of [`BASE`].
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

/// How long the compiler may take.
const COMPILER_LIMIT: Duration = Duration::from_secs(20);

/// The binary form of a policy. Classes and permissions that it does not know are allowed.
fn compile(compiler: &Path, text: &str) -> Result<Vec<u8>, Failure> {
    let directory = Directory::new("policy")?;
    let file = |name| directory.path().join(name);
    let (source, binary) = (file("policy.conf"), file("policy"));
    fs::write(&source, text)?;
    let arguments = [
        "-U",
        "allow",
        "-o",
        &binary.to_string_lossy(),
        &source.to_string_lossy(),
    ];
    program::run(compiler, &arguments, COMPILER_LIMIT)?;
    Ok(fs::read(&binary)?)
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
