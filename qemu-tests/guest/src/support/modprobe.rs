// SPDX-License-Identifier: GPL-2.0
//! The program that the kernel runs to load a module.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::unistd::getpid;

use crate::harness::Failure;

const MODPROBE: &str = "/proc/sys/kernel/modprobe";

/// Another program in modprobe(8)'s place, until this is dropped.
pub struct Modprobe {
    before: String,
    /// The directory of the program.
    pub directory: PathBuf,
}

impl Modprobe {
    /// No program, so that no module is loaded.
    pub fn none() -> Result<Self, Failure> {
        let modprobe = Self::set("exit 1")?;
        fs::write(MODPROBE, "\n")?;
        Ok(modprobe)
    }

    /// A program that writes its arguments to a file, and then runs a line of shell.
    pub fn set(line: &str) -> Result<Self, Failure> {
        let before = fs::read_to_string(MODPROBE)?.trim_end().to_owned();
        let directory = PathBuf::from(format!("/run/proc-events-test-{}", getpid()));
        fs::create_dir(&directory)?;
        let modprobe = Self { before, directory };
        let (program, calls) = (modprobe.directory.join("modprobe"), modprobe.calls_file());
        let script = format!("#!/bin/sh\necho \"$*\" >>{}\n{line}\n", calls.display());
        fs::write(&program, script)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        fs::write(&calls, "")?;
        fs::write(MODPROBE, program.as_os_str().as_encoded_bytes())?;
        Ok(modprobe)
    }

    fn calls_file(&self) -> PathBuf {
        self.directory.join("calls")
    }

    /// The arguments of each call.
    pub fn calls(&self) -> Result<Vec<String>, Failure> {
        let calls = fs::read_to_string(self.calls_file())?;
        Ok(calls.lines().map(str::to_owned).collect())
    }
}

impl Drop for Modprobe {
    fn drop(&mut self) {
        let restored = fs::write(MODPROBE, &self.before);
        let removed = fs::remove_dir_all(&self.directory);
        if let Err(error) = restored.and(removed) {
            eprintln!("{MODPROBE} is not as before: {error}");
        }
    }
}
