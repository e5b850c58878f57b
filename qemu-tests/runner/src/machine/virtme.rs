// SPDX-License-Identifier: GPL-2.0
//! The arguments of virtme-ng, which runs in the kernel's build directory.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use protocol::PORT_NAME;

use super::accelerator::Accelerator;
use super::files::text;
use super::kernel::{Architecture, Kernel};
use super::settings::Settings;

/// Each instruction takes a nanosecond of the guest's time. When the guest sleeps, its clock jumps
/// to the time of its next timer immediately.
const COUNTING_OPTIONS: &str = " -icount shift=0,sleep=off";

/// All features of arm64's emulated CPU except slow ones: pointer authentication, and scalable
/// vectors, which are saved at each context switch. In the newest machine its counter counts
/// nanoseconds.
const ARM64_CPU: &str = " -cpu max,pauth=off,sve=off,sme=off";

/// Makes shared directories copy on write. If the root is not the host's, virtme-ng mounts them
/// read-only.
const COPY_ON_WRITE: &str = "grep ^virtme.initmount /proc/mounts | while read -r name place rest; do \
    mkdir -p /run/$name/u /run/$name/w; mount -t overlay -o \
    lowerdir=$place,upperdir=/run/$name/u,workdir=/run/$name/w overlay $place; done; ";

/// Name of the socket that QEMU connects the agent's port to.
pub const AGENT_SOCKET: &str = "agent";

/// Name of the socket that QEMU connects its monitor to.
pub const MONITOR_SOCKET: &str = "monitor";

/// All arguments for a guest whose sockets are in a directory.
pub fn arguments(
    settings: &Settings,
    kernel: &Kernel,
    accelerator: Accelerator,
    sockets: &Path,
) -> Result<Vec<String>> {
    let agent = text(&settings.guest)?;
    let mut arguments = machine_arguments(kernel, accelerator);
    arguments.extend(match &settings.root {
        None => root_arguments()?,
        Some(root) => foreign_root_arguments(root, &shared(settings, kernel)?)?,
    });
    let mut options = device_options(&text(sockets)?);
    if kernel.architecture == Architecture::Arm64 {
        options += ARM64_CPU;
    }
    match accelerator {
        Accelerator::Kvm => {}
        Accelerator::Tcg => options += emulation_options(&settings.qemu_version),
        Accelerator::Counting => {
            options += COUNTING_OPTIONS;
            if kernel.architecture == Architecture::X86_64 {
                options += counting_cpu(&settings.qemu_version);
            }
        }
    }
    arguments.push(format!("--qemu-opts={options}"));
    let prepare = match settings.root {
        None => "",
        Some(_) => COPY_ON_WRITE,
    };
    arguments.extend([
        "--exec".to_owned(),
        format!("{prepare}exec '{}' agent", agent.replace('\'', r"'\''")),
        // Without panic=-1, QEMU would not end after a panic. With --verbose, the runner gets the
        // console.
        "--append=panic=-1 oops=panic".to_owned(),
        // KCOV subtracts the random offset of the kernel from addresses, /proc/kallsyms does not.
        "--append=nokaslr".to_owned(),
        "--verbose".to_owned(),
    ]);
    if kernel.architecture == Architecture::X86_64 {
        // The kernel panics if the first interrupts of the timer do not come in time. On a busy host,
        // QEMU may be late. With KVM, the kernel does not check this.
        arguments.push("--append=no_timer_check".to_owned());
    }
    arguments.extend(parameters(settings));
    if kernel.checks_itself && kernel.architecture == Architecture::X86_64 {
        // While the kernel identifies the first CPU, it forgets for a moment that page tables have
        // five levels. An interrupt then accesses addresses that KASAN takes for wild ones.
        arguments.push("--append=no5lvl".to_owned());
    }
    Ok(arguments)
}

/// The parameters that the user chose.
fn parameters(settings: &Settings) -> Option<String> {
    let chosen = settings.parameters.as_ref();
    let chosen = chosen.filter(|parameters| !parameters.is_empty())?;
    Some(format!("--append={chosen}"))
}

/// Kernel, CPUs, memory, accelerator.
fn machine_arguments(kernel: &Kernel, accelerator: Accelerator) -> Vec<String> {
    let mut arguments = [
        "--run",
        kernel.architecture.image(),
        "--skip-modules",
        "--disable-microvm",
    ]
    .to_vec();
    let cpus = match accelerator {
        Accelerator::Kvm | Accelerator::Tcg => "2",
        Accelerator::Counting => "1",
    };
    arguments.extend(["--cpus", cpus, "--memory", &kernel.memory]);
    if accelerator != Accelerator::Kvm {
        arguments.push("--disable-kvm");
    }
    if kernel.architecture == Architecture::Arm64 {
        arguments.extend(["--arch", "arm64"]);
    }
    arguments.into_iter().map(String::from).collect()
}

/// The directories of the host that a guest with another root sees, under the same names: those of
/// the programs and the kernel, and the working directory.
fn shared(settings: &Settings, kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let working = env::current_dir().context("cannot find the working directory")?;
    let directory_of = |file: &Path| file.parent().map(Path::to_owned);
    let mut all = vec![settings.cache.clone(), working, kernel.directory.clone()];
    all.extend(directory_of(&settings.guest));
    all.extend(kernel.module.as_deref().and_then(directory_of));
    Ok(outermost(all))
}

/// Leaves out paths that are inside of other ones.
fn outermost(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort();
    // A directory comes before the paths inside of it.
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.iter().any(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    kept
}

/// Another root than the host's, with every directory copy on write, and places of the host in it.
fn foreign_root_arguments(root: &Path, shared: &[PathBuf]) -> Result<Vec<String>> {
    let mut arguments = ["--force-9p", "--root"].map(str::to_owned).to_vec();
    arguments.extend([text(root)?, "--overlay-rwdir".into(), "/root".into()]);
    for place in shared {
        let inside = root.join(place.strip_prefix("/").unwrap_or(place));
        fs::create_dir_all(&inside)
            .with_context(|| format!("cannot make {} to mount at", inside.display()))?;
        let place = text(place)?;
        // virtme-ng passes the names to a shell, and splits them at an equals sign.
        ensure!(
            place
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "/._+-".contains(c)),
            "{place} has characters that virtme-ng's options cannot have: choose another place"
        );
        arguments.extend(["--rodir".to_owned(), format!("{place}={place}")]);
    }
    Ok(arguments)
}

/// The host's file system as the guest's root, with every directory copy on write.
fn root_arguments() -> Result<Vec<String>> {
    /// The guest has its own, or virtme-ng already makes them copy on write.
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
        // virtme-ng passes the names to a shell.
        let plain = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if plain && entry.file_type()?.is_dir() && !LEFT_OUT.contains(&name.as_str()) {
            arguments.extend(["--overlay-rwdir".to_owned(), format!("/{name}")]);
        }
    }
    Ok(arguments)
}

/// The agent's virtio-serial port, on a bus of its own, QEMU's monitor, and a network interface that
/// leads nowhere: some programs that listen for process events do not start without one.
fn device_options(sockets: &str) -> String {
    format!(
        "-qmp unix:{sockets}/{MONITOR_SOCKET} -device virtio-serial-pci,id=proc-events \
         -chardev socket,id=agent,path={sockets}/{AGENT_SOCKET} \
         -device virtserialport,bus=proc-events.0,chardev=agent,name={PORT_NAME} \
         -netdev hubport,id=nowhere,hubid=0 -device virtio-net-pci,netdev=nowhere,romfile="
    )
}

/// The CPU whose instructions are counted.
///
/// A string instruction is counted once for each repetition. QEMU's CPU claims that string
/// instructions on single bytes are fast: the kernel would copy to user space, and clear pages, in
/// eight times as many instructions as with whole words. From version 8.1 on, it also claims that
/// they are fast for few bytes: the kernel would copy and clear these with one instruction that is
/// counted as dozens. Older versions do not have these flags.
fn counting_cpu(qemu_version: &str) -> &'static str {
    if is_at_least_8_1(qemu_version) {
        " -cpu max,-erms,-fsrm,-fsrs,-fzrm"
    } else {
        " -cpu max,-erms"
    }
}

/// How many threads emulate the CPUs.
///
/// Before version 8.1, QEMU translates code while another CPU may be writing to it, and keeps a
/// translation that is already out of date. A kernel patches its code when a hook is switched, and
/// crashes at the INT3 that was there for a moment. In one thread, no CPU writes to code while the
/// code of another CPU is translated.
fn emulation_options(qemu_version: &str) -> &'static str {
    if is_at_least_8_1(qemu_version) {
        ""
    } else {
        " -accel tcg,thread=single"
    }
}

/// Whether QEMU's version is 8.1 or newer.
fn is_at_least_8_1(text: &str) -> bool {
    version(text).is_some_and(|version| version >= (8, 1))
}

/// Major and minor number in QEMU's text about its version.
fn version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_whitespace().find(|word| word.contains('.'))?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shared_twice() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let all = paths(&["/b/c/d", "/a", "/b/c", "/b/cd", "/a"]);
        assert_eq!(outermost(all), paths(&["/a", "/b/c", "/b/cd"]));
    }

    #[test]
    fn options_follow_the_version() {
        let version = |number| format!("QEMU emulator version {number} (Debian 1:7.2+dfsg-7)");
        for old in ["7.2.22", "8.0.5", "unknown"] {
            assert!(emulation_options(&version(old)).contains("thread=single"));
            assert_eq!(counting_cpu(&version(old)), " -cpu max,-erms");
        }
        for new in ["8.1.0", "10.0.2"] {
            assert_eq!(emulation_options(&version(new)), "");
            assert!(counting_cpu(&version(new)).contains("-erms,-fsrm"));
        }
    }
}
