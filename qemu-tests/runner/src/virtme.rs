// SPDX-License-Identifier: GPL-2.0
//! What virtme-ng is called with; it runs in the kernel's build directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use protocol::PORT_NAME;

use crate::accelerator::Accelerator;
use crate::settings::{Kernel, Settings};

/// What the guest has.
const CPUS: &str = "2";
const MEMORY: &str = "2G";

/// All arguments for a guest whose agent's port is connected to a socket.
pub fn arguments(
    settings: &Settings,
    accelerator: Accelerator,
    socket: &Path,
) -> Result<Vec<String>> {
    let agent = text(&settings.guest)?;
    let mut arguments = machine_arguments(accelerator);
    arguments.extend(root_arguments()?);
    arguments.extend(device_arguments(&text(socket)?));
    arguments.extend([
        "--exec".to_owned(),
        format!("exec '{}' agent", agent.replace('\'', r"'\''")),
        // Without a panic's end QEMU would stay; with --verbose the console reaches us.
        "--append=panic=-1 oops=panic".to_owned(),
        "--verbose".to_owned(),
    ]);
    Ok(arguments)
}

/// Kernel, CPUs, memory, accelerator.
fn machine_arguments(accelerator: Accelerator) -> Vec<String> {
    let mut arguments = [
        "--run",
        Kernel::IMAGE,
        "--skip-modules",
        "--disable-microvm",
    ]
    .to_vec();
    arguments.extend(["--cpus", CPUS, "--memory", MEMORY]);
    if accelerator == Accelerator::Tcg {
        arguments.push("--disable-kvm");
    }
    arguments.into_iter().map(String::from).collect()
}

/// The host's file system as the guest's root, every directory of it copy on write.
fn root_arguments() -> Result<Vec<String>> {
    /// The guest has its own ones, or virtme-ng makes them copy on write by itself.
    const LEFT_OUT: [&str; 13] = [
        "dev",
        "etc",
        "home",
        "lib",
        "lost+found",
        "opt",
        "proc",
        "run",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
    ];
    let mut arguments = vec!["--force-9p".to_owned()];
    for entry in fs::read_dir("/").context("cannot list /")? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        // virtme-ng hands the names to a shell.
        let plain = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if plain && entry.file_type()?.is_dir() && !LEFT_OUT.contains(&name.as_str()) {
            arguments.extend(["--overlay-rwdir".to_owned(), format!("/{name}")]);
        }
    }
    Ok(arguments)
}

/// The agent's virtio-serial port, on a bus of its own, and a network interface that leads nowhere:
/// some programs that listen for process events do not start without one.
fn device_arguments(socket: &str) -> Vec<String> {
    let options = format!(
        "-device virtio-serial-pci,id=proc-events -chardev socket,id=agent,path={socket} \
         -device virtserialport,bus=proc-events.0,chardev=agent,name={PORT_NAME} \
         -netdev hubport,id=nowhere,hubid=0 -device virtio-net-pci,netdev=nowhere,romfile="
    );
    vec![format!("--qemu-opts={options}")]
}

/// Paths go through JSON and the kernel's command line.
pub fn text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}
