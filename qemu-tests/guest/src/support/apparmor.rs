// SPDX-License-Identifier: GPL-2.0
//! AppArmor: profiles of a test, and processes that they confine.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::directory::Directory;
use super::{program, security};
use crate::harness::{Failure, TestResult};

/// What the kernel can decide about. Without this, old parsers leave out rules for networks.
const FEATURES: &str = "/sys/kernel/security/apparmor/features";

/// The profile that confines a process. Writing to the file changes it.
const CURRENT: &str = "/proc/thread-self/attr/apparmor/current";

/// How long the parser may take.
const PARSER_LIMIT: Duration = Duration::from_secs(20);

/// Profiles in the kernel, until this is dropped.
pub struct Profiles {
    parser: PathBuf,
    directory: Directory,
}

impl Profiles {
    /// Loads profiles, if AppArmor is in force.
    pub fn load(
        parser: impl FnOnce() -> Result<PathBuf, Failure>,
        text: &str,
    ) -> Result<Self, Failure> {
        security::needed("apparmor", "distro")?;
        let profiles = Self {
            parser: parser()?,
            directory: Directory::new("profiles")?,
        };
        fs::write(profiles.file(), text)?;
        profiles.parse("--replace")?;
        Ok(profiles)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("profiles")
    }

    fn parse(&self, operation: &str) -> TestResult {
        let features = format!("--policy-features={FEATURES}");
        let file = self.file();
        let arguments = [
            "--config-file=/dev/null",
            "--skip-cache",
            &features,
            operation,
            &file.to_string_lossy(),
        ];
        program::run(&self.parser, &arguments, PARSER_LIMIT).map(drop)
    }
}

impl Drop for Profiles {
    fn drop(&mut self) {
        if let Err(failure) = self.parse("--remove") {
            eprintln!("{failure}");
        }
    }
}

/// Confines this process by a profile, for the rest of its life.
pub fn confine(profile: &str) -> io::Result<()> {
    fs::write(CURRENT, format!("changeprofile {profile}"))
}
