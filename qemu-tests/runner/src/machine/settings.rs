// SPDX-License-Identifier: GPL-2.0
//! What is needed to boot a virtual machine, checked before anything starts.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::accelerator::Choice;
use super::files::{absolute, file, visible_in_guest};
use super::kernel::Architecture;
use super::origin::Origin;

/// What every virtual machine needs.
#[derive(Args)]
pub struct HostOptions {
    /// Guest program; by default proc-events-guest beside this program.
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// virtme-ng; by default the one in the cache.
    #[arg(long, value_name = "FILE", env = "PROC_EVENTS_VNG")]
    vng: Option<PathBuf>,
    /// Root directory of the guest, if the guest is another machine than the host.
    #[arg(long, value_name = "DIR", env = "PROC_EVENTS_ROOT")]
    root: Option<PathBuf>,
    /// Parameters to boot the kernel with, in addition to those that the machine needs.
    #[arg(
        long,
        value_name = "PARAMETERS",
        env = "PROC_EVENTS_PARAMETERS",
        hide_env_values = true
    )]
    parameters: Option<String>,
    /// Hardware virtualization or emulation.
    #[arg(long, value_enum, default_value_t = Choice::Auto, env = "PROC_EVENTS_ACCELERATOR")]
    accelerator: Choice,
    #[command(flatten)]
    origin: Origin,
}

/// Programs and directories, all known to exist.
#[derive(Clone)]
pub struct Settings {
    /// virtme-ng.
    pub vng: PathBuf,
    /// First line of QEMU's `--version`.
    pub qemu_version: String,
    /// The program that runs in the guest.
    pub guest: PathBuf,
    /// The same program for this machine, which can list the tests, too.
    pub lister: PathBuf,
    /// The guest's root, if that is not the host's.
    pub root: Option<PathBuf>,
    /// Where console logs and the verdict on KVM are kept.
    pub cache: PathBuf,
    /// Parameters that the kernel is booted with in addition.
    pub parameters: Option<String>,
    /// The user's choice of an accelerator.
    pub accelerator: Choice,
    /// What the run is made from.
    pub origin: Origin,
}

impl Settings {
    /// Checks the user's options, to boot kernels for this architecture.
    pub fn new(options: &HostOptions, architecture: Architecture) -> Result<Self> {
        let cache = cache_directory()?;
        let beside = env::current_exe()
            .context("cannot find this program's own file")?
            .with_file_name("proc-events-guest");
        let guest = options.guest.as_ref().unwrap_or(&beside).clone();
        let guest = file(
            &guest,
            "the guest program",
            "build it with: cargo build --release",
        )?;
        visible_in_guest(&guest)?;
        let (lister, root) = match architecture {
            Architecture::X86_64 => (guest.clone(), None),
            Architecture::Arm64 => {
                let root = options.root.as_ref();
                let root = root.context("a kernel for arm64 needs the guest's --root")?;
                ensure!(
                    root.join("usr/bin").is_dir(),
                    "the guest's root is not at {}: run ARCH=arm64 scripts/setup",
                    root.display()
                );
                (beside, Some(absolute(root)?))
            }
        };
        let vng = options
            .vng
            .clone()
            .unwrap_or_else(|| cache.join("venv/bin/vng"));
        let vng = file(
            &vng,
            "virtme-ng",
            "run scripts/setup, or name it with --vng",
        )?;
        let qemu = architecture.qemu();
        let version = Command::new(qemu).arg("--version").output();
        let version =
            version.with_context(|| format!("cannot run {qemu}: {}", architecture.set_up()))?;
        let qemu_version = String::from_utf8_lossy(&version.stdout);
        let qemu_version = qemu_version.lines().next().unwrap_or_default().to_owned();
        Ok(Self {
            vng,
            qemu_version,
            guest,
            lister,
            root,
            cache,
            parameters: options.parameters.clone(),
            accelerator: options.accelerator,
            origin: options.origin.clone(),
        })
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
