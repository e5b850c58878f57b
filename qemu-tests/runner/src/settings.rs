// SPDX-License-Identifier: GPL-2.0
//! What is needed to boot a virtual machine, checked before anything starts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::Surroundings;
use crate::accelerator::Choice;

/// Places that are not the host's in the guest: its init mounts file systems of its own there.
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

/// Options with which a kernel checks itself, at the cost of time and memory.
const CHECKERS: [&str; 4] = [
    "CONFIG_KASAN=y",
    "CONFIG_KCSAN=y",
    "CONFIG_KMSAN=y",
    "CONFIG_PROVE_LOCKING=y",
];

/// The option by which a kernel has the handler built in.
const BUILT_IN: &str = "CONFIG_PROC_EVENTS_RUST=y";

/// What processor a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Machine {
    /// This one's.
    X86_64,
    /// Another one, which is always emulated, and has a root of its own.
    Arm64,
}

impl Machine {
    /// Finds it out from a kernel's configuration.
    fn of(options: &str) -> Self {
        if options.lines().any(|line| line == "CONFIG_ARM64=y") {
            Self::Arm64
        } else {
            Self::X86_64
        }
    }

    /// Where a build directory holds the kernel to boot.
    pub fn image(self) -> &'static str {
        match self {
            Self::X86_64 => "arch/x86/boot/bzImage",
            Self::Arm64 => "arch/arm64/boot/Image",
        }
    }

    /// The emulator.
    fn qemu(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// How set-up is told of it.
    fn set_up(self) -> &'static str {
        match self {
            Self::X86_64 => "run scripts/setup, or install qemu-system-x86",
            Self::Arm64 => "run ARCH=arm64 scripts/setup, or install qemu-system-arm",
        }
    }
}

/// Programs and places, all known to exist.
#[derive(Clone)]
pub struct Settings {
    /// virtme-ng.
    pub vng: PathBuf,
    /// First line of QEMU's `--version`.
    pub qemu_version: String,
    /// The program that runs in the guest.
    pub guest: PathBuf,
    /// The same program for this machine, which knows the tests as well.
    pub lister: PathBuf,
    /// The guest's root, if that is not the host's.
    pub root: Option<PathBuf>,
    /// Where console logs and the verdict on KVM are kept.
    pub cache: PathBuf,
    /// The user's choice of an accelerator.
    pub accelerator: Choice,
}

impl Settings {
    /// Checks what the user gave, to boot kernels for this machine.
    pub fn new(surroundings: &Surroundings, machine: Machine) -> Result<Self> {
        let cache = cache_directory()?;
        let beside = env::current_exe()
            .context("cannot find this program's own file")?
            .with_file_name("proc-events-guest");
        let guest = surroundings.guest.as_ref().unwrap_or(&beside).clone();
        let guest = file(
            &guest,
            "the guest program",
            "build it with: cargo build --release",
        )?;
        visible_in_guest(&guest)?;
        let (lister, root) = match machine {
            Machine::X86_64 => (guest.clone(), None),
            Machine::Arm64 => {
                let root = surroundings.root.as_ref();
                let root = root.context("a kernel for arm64 needs the guest's --root")?;
                ensure!(
                    root.join("usr/bin").is_dir(),
                    "the guest's root is not at {}: run ARCH=arm64 scripts/setup",
                    root.display()
                );
                (beside, Some(absolute(root)?))
            }
        };
        let vng = surroundings
            .vng
            .clone()
            .unwrap_or_else(|| cache.join("venv/bin/vng"));
        let vng = file(
            &vng,
            "virtme-ng",
            "run scripts/setup, or name it with --vng",
        )?;
        let qemu = machine.qemu();
        let version = Command::new(qemu).arg("--version").output();
        let version =
            version.with_context(|| format!("cannot run {qemu}: {}", machine.set_up()))?;
        let qemu_version = String::from_utf8_lossy(&version.stdout);
        let qemu_version = qemu_version.lines().next().unwrap_or_default().to_owned();
        Ok(Self {
            vng,
            qemu_version,
            guest,
            lister,
            root,
            cache,
            accelerator: surroundings.accelerator,
        })
    }
}

/// A kernel to boot.
#[derive(Clone)]
pub struct Kernel {
    /// What it is called in messages.
    pub name: String,
    /// Its build directory.
    pub directory: PathBuf,
    /// What it is for.
    pub machine: Machine,
    /// The module to load.
    pub module: Option<PathBuf>,
    /// Whether it has the handler without a module.
    pub has_built_in: bool,
    /// Whether it was built with checkers that slow it down.
    pub checks_itself: bool,
    /// How much memory its machine has, as QEMU has it.
    pub memory: String,
}

impl Kernel {
    /// Checks that there is a kernel in the build directory, and the module.
    pub fn new(name: String, directory: PathBuf, module: Option<PathBuf>) -> Result<Self> {
        let options = file(
            &directory.join(".config"),
            "the kernel's configuration",
            "build it with: scripts/kernel build",
        )?;
        let options = fs::read_to_string(&options)
            .with_context(|| format!("cannot read {}", options.display()))?;
        let machine = Machine::of(&options);
        let image = directory.join(machine.image());
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
            machine,
            module,
            has_built_in: options.lines().any(|line| line == BUILT_IN),
            checks_itself,
            memory: if checks_itself { "4G" } else { "2G" }.into(),
        })
    }

    /// What time limits are multiplied with.
    pub fn time_factor(&self) -> u32 {
        if self.checks_itself { 8 } else { 1 }
    }
}

fn cache_directory() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let directory = set("PROC_EVENTS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("proc-events")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/proc-events")))
        .context("no cache directory: set PROC_EVENTS_CACHE or HOME")?;
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}: set PROC_EVENTS_CACHE", directory.display()))?;
    absolute(&directory)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("cannot find {}", path.display()))
}

fn file(path: &Path, what: &str, remedy: &str) -> Result<PathBuf> {
    ensure!(
        path.is_file(),
        "{what} is not at {}: {remedy}",
        path.display()
    );
    absolute(path)
}

fn visible_in_guest(path: &Path) -> Result<()> {
    match HIDDEN.iter().find(|hidden| path.starts_with(hidden)) {
        None => Ok(()),
        Some(hidden) => bail!(
            "{} cannot be seen in the guest, which has its own {hidden}: set PROC_EVENTS_CACHE to \
             another place",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_which_machine() {
        assert_eq!(
            Machine::of("CONFIG_X86_64=y\nCONFIG_SMP=y\n"),
            Machine::X86_64
        );
        assert_eq!(
            Machine::of("CONFIG_ARM64=y\nCONFIG_SMP=y\n"),
            Machine::Arm64
        );
        assert_eq!(Machine::of("# CONFIG_ARM64 is not set\n"), Machine::X86_64);
    }
}
