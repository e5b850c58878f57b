// SPDX-License-Identifier: GPL-2.0
//! Kernels to boot, and the architectures that they are for.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::files::{absolute, file, visible_in_guest};

/// Options with which a kernel checks itself, at the cost of time and memory.
const CHECKERS: [&str; 4] = [
    "CONFIG_KASAN=y",
    "CONFIG_KCSAN=y",
    "CONFIG_KMSAN=y",
    "CONFIG_PROVE_LOCKING=y",
];

/// The option that builds the handler into a kernel.
const BUILT_IN: &str = "CONFIG_PROC_EVENTS_RUST=y";

/// The processors that a kernel can be for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Architecture {
    /// The processor of this machine.
    X86_64,
    /// Another processor, which is always emulated, and whose guest has a root of its own.
    Arm64,
}

impl Architecture {
    /// Reads it from a kernel's configuration.
    fn of(options: &str) -> Self {
        if options.lines().any(|line| line == "CONFIG_ARM64=y") {
            Self::Arm64
        } else {
            Self::X86_64
        }
    }

    /// The kernel to boot, within a build directory.
    pub fn image(self) -> &'static str {
        match self {
            Self::X86_64 => "arch/x86/boot/bzImage",
            Self::Arm64 => "arch/arm64/boot/Image",
        }
    }

    /// The emulator.
    pub fn qemu(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// What to do if the emulator is missing.
    pub fn set_up(self) -> &'static str {
        match self {
            Self::X86_64 => "run scripts/setup, or install qemu-system-x86",
            Self::Arm64 => "run ARCH=arm64 scripts/setup, or install qemu-system-arm",
        }
    }
}

/// A kernel to boot.
#[derive(Clone)]
pub struct Kernel {
    /// Its name in messages.
    pub name: String,
    /// Its build directory.
    pub directory: PathBuf,
    /// The processor that it is for.
    pub architecture: Architecture,
    /// The module to load.
    pub module: Option<PathBuf>,
    /// Whether it has the handler without a module.
    pub has_built_in: bool,
    /// Whether it was built with checkers that slow it down.
    pub checks_itself: bool,
    /// The memory of its machine, in QEMU's format.
    pub memory: String,
}

impl Kernel {
    /// Checks that the build directory has a kernel, and that the module exists.
    pub fn new(name: String, directory: PathBuf, module: Option<PathBuf>) -> Result<Self> {
        let options = file(
            &directory.join(".config"),
            "the kernel's configuration",
            "build it with: scripts/kernel build",
        )?;
        let options = fs::read_to_string(&options)
            .with_context(|| format!("cannot read {}", options.display()))?;
        let architecture = Architecture::of(&options);
        let image = directory.join(architecture.image());
        file(&image, "the kernel", "build it with: scripts/kernel build")?;
        let directory = absolute(&directory)?;
        let module = module
            .map(|module| {
                file(
                    &module,
                    "the module",
                    "build it with: scripts/kernel module",
                )
            })
            .transpose()?;
        if let Some(module) = &module {
            visible_in_guest(module)?;
        }
        let checks_itself = options.lines().any(|line| CHECKERS.contains(&line));
        Ok(Self {
            name,
            directory,
            architecture,
            module,
            has_built_in: options.lines().any(|line| line == BUILT_IN),
            checks_itself,
            memory: if checks_itself { "4G" } else { "2G" }.into(),
        })
    }

    /// Its release, as uname(2) returns it.
    pub fn release(&self) -> Result<String> {
        let file = self.directory.join("include/config/kernel.release");
        let release = fs::read_to_string(&file);
        let release = release.with_context(|| format!("cannot read {}", file.display()))?;
        Ok(release.trim_end().to_owned())
    }

    /// The factor for time limits.
    pub fn time_factor(&self) -> u32 {
        if self.checks_itself { 8 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_which_machine() {
        assert_eq!(
            Architecture::of("CONFIG_X86_64=y\nCONFIG_SMP=y\n"),
            Architecture::X86_64
        );
        assert_eq!(
            Architecture::of("CONFIG_ARM64=y\nCONFIG_SMP=y\n"),
            Architecture::Arm64
        );
        assert_eq!(
            Architecture::of("# CONFIG_ARM64 is not set\n"),
            Architecture::X86_64
        );
    }
}
