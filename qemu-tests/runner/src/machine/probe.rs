// SPDX-License-Identifier: GPL-2.0
//! Chooses the accelerator: hardware virtualization if it really boots a guest, else emulation.
//!
//! Even if /dev/kvm can be opened, guests may not get past their first instructions (in a container
//! without nested virtualization). So the kernel itself is booted once with a short limit, and the
//! verdict is kept until the host boots again or QEMU changes.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use protocol::FromGuest;
use serde::{Deserialize, Serialize};

use super::accelerator::{Accelerator, Choice};
use super::kernel::{Architecture, Kernel};
use super::settings::Settings;
use super::vm::{self, MachineFailure, Vm};

/// How long a guest may take to boot under KVM. It usually takes one or two seconds.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// A verdict, and the QEMU and the boot of the host that it holds for.
#[derive(Deserialize, Serialize)]
struct Verdict {
    qemu_version: String,
    host_boot: String,
    kvm_works: bool,
    reason: String,
}

/// Finds the accelerator to use, and prints its name and the reason on standard error.
pub fn choose_accelerator(settings: &Settings, kernel: &Kernel) -> Result<Accelerator> {
    let foreign = kernel.architecture != Architecture::X86_64;
    let (accelerator, reason) = match settings.accelerator {
        Choice::Tcg => (Accelerator::Tcg, "asked for".to_owned()),
        Choice::Counting => (Accelerator::Counting, "asked for".to_owned()),
        Choice::Kvm if foreign => bail!("KVM runs only kernels for this machine: use tcg"),
        Choice::Auto if foreign => (Accelerator::Tcg, "another processor's kernel".to_owned()),
        Choice::Kvm => {
            let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
            ensure!(kvm.is_ok(), "cannot open /dev/kvm: use --accelerator tcg");
            (Accelerator::Kvm, "asked for".to_owned())
        }
        Choice::Auto => find(settings, kernel)?,
    };
    eprintln!("accelerator: {} ({reason})", accelerator.name());
    Ok(accelerator)
}

fn find(settings: &Settings, kernel: &Kernel) -> Result<(Accelerator, String)> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok((Accelerator::Tcg, format!("cannot open /dev/kvm: {error}")));
    }
    let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim_end()
        .to_owned();
    let file = settings.cache.join("kvm-verdict.json");
    let verdict = match known(&file, &settings.qemu_version, &host_boot) {
        Some(verdict) => verdict,
        None => {
            eprintln!(
                "accelerator: probing KVM, at most {} s",
                PROBE_LIMIT.as_secs()
            );
            let (kvm_works, reason) = match probe(settings, kernel) {
                Ok(()) => (true, "a guest boots under KVM".to_owned()),
                Err(error) => {
                    let reason = match error.downcast_ref::<MachineFailure>() {
                        Some(failure) => failure.summary.clone(),
                        None => format!("{error:#}"),
                    };
                    (false, format!("KVM does not boot a guest: {reason}"))
                }
            };
            let qemu_version = settings.qemu_version.clone();
            let verdict = Verdict {
                qemu_version,
                host_boot,
                kvm_works,
                reason,
            };
            fs::write(&file, serde_json::to_vec_pretty(&verdict)?)?;
            verdict
        }
    };
    let accelerator = if verdict.kvm_works {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    };
    Ok((accelerator, verdict.reason))
}

/// A verdict that still holds. A damaged file counts as no verdict.
fn known(file: &PathBuf, qemu_version: &str, host_boot: &str) -> Option<Verdict> {
    let verdict: Verdict = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let holds = verdict.qemu_version == qemu_version && verdict.host_boot == host_boot;
    holds.then_some(verdict)
}

/// Boots the kernel under KVM and runs a very short command.
fn probe(settings: &Settings, kernel: &Kernel) -> Result<()> {
    let name = "kvm-probe".to_owned();
    let kernel = Kernel {
        name,
        module: None,
        has_built_in: false,
        ..kernel.clone()
    };
    let mut vm = Vm::boot(settings, &kernel, Accelerator::Kvm, PROBE_LIMIT)?;
    vm.start(vm::job(&kernel, vec!["true".to_owned()])?)?;
    let message = vm.next()?;
    ensure!(
        message == FromGuest::Exited(0),
        "the guest sent {message:?}"
    );
    vm.finish()
}
