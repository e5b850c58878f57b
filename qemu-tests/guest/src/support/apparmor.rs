// SPDX-License-Identifier: GPL-2.0
//! AppArmor: profiles of a test, and processes that they confine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::security;
use crate::child::own_pid;
use crate::harness::{Failure, TestResult, expect};

/// What the kernel can decide about. Without this, old parsers leave out rules for networks.
const FEATURES: &str = "/sys/kernel/security/apparmor/features";

/// What a process is confined by. Writing there changes it.
const CURRENT: &str = "/proc/thread-self/attr/apparmor/current";

/// Profiles in the kernel, until this is dropped.
pub struct Profiles {
    parser: PathBuf,
    file: PathBuf,
}

impl Profiles {
    /// Loads profiles, if AppArmor is in force.
    pub fn load(
        parser: impl FnOnce() -> Result<PathBuf, Failure>,
        text: &str,
    ) -> Result<Self, Failure> {
        security::needed("apparmor", "distro")?;
        let file = Path::new("/run").join(format!("proc-events-profiles-{}", own_pid()));
        fs::write(&file, text)?;
        let profiles = Self {
            parser: parser()?,
            file,
        };
        profiles.parse("--replace")?;
        Ok(profiles)
    }

    fn parse(&self, operation: &str) -> TestResult {
        let output = Command::new(&self.parser)
            .args(["--config-file=/dev/null", "--skip-cache"])
            .arg(format!("--policy-features={FEATURES}"))
            .arg(operation)
            .arg(&self.file)
            .output()?;
        expect(
            output.status.success(),
            format!(
                "{} {operation} to succeed, it said:\n{}",
                self.parser.display(),
                String::from_utf8_lossy(&output.stderr)
            ),
        )
    }
}

impl Drop for Profiles {
    fn drop(&mut self) {
        if let Err(failure) = self.parse("--remove") {
            eprintln!("{failure}");
        }
        if let Err(error) = fs::remove_file(&self.file) {
            eprintln!("{}: {error}", self.file.display());
        }
    }
}

/// Confines this process by a profile, for the rest of its life.
pub fn confine(profile: &str) -> io::Result<()> {
    fs::write(CURRENT, format!("changeprofile {profile}"))
}
