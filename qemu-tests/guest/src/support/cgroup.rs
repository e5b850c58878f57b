// SPDX-License-Identifier: GPL-2.0
//! Control groups of the unified hierarchy, for tests.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::child::own_pid;
use crate::harness::Failure;
use crate::timeouts;
use crate::wire::{BATCH, CGROUP, IDENTITY, PROCESSES};

/// A group below the root of the hierarchy. Dropping it removes the group, which has to be empty by then.
pub struct Group {
    mounted: PathBuf,
    name: String,
}

impl Group {
    /// Makes a group. Skips the test on a kernel without control groups.
    pub fn new() -> Result<Self, Failure> {
        if !are_there() {
            return Err(Failure::skip("the kernel has no CONFIG_CGROUPS"));
        }
        let name = format!("proc-events-test-{}", own_pid());
        // There is one hierarchy, wherever it is mounted.
        let mounted = PathBuf::from(format!("/run/{name}"));
        fs::create_dir(&mounted)?;
        let kind = Some("cgroup2");
        let result = mount(kind, &mounted, kind, MsFlags::empty(), None::<&str>);
        if let Err(error) = result {
            fs::remove_dir(&mounted)?;
            return Err(error.into());
        }
        let group = Self { mounted, name };
        fs::create_dir(group.directory())?;
        Ok(group)
    }

    /// Makes a group whose memory is counted. Skips the test on a kernel that does not count it.
    pub fn with_memory() -> Result<Self, Failure> {
        let group = Self::new()?;
        let controllers = fs::read_to_string(group.mounted.join("cgroup.controllers"))?;
        if !controllers.split_whitespace().any(|one| one == "memory") {
            return Err(Failure::skip("the kernel has no CONFIG_MEMCG"));
        }
        fs::write(group.mounted.join("cgroup.subtree_control"), "+memory")?;
        Ok(group)
    }

    /// Bytes that its processes are charged with.
    pub fn memory(&self) -> Result<u64, Failure> {
        let text = fs::read_to_string(self.directory().join("memory.current"))?;
        Ok(text.trim_end().parse()?)
    }

    /// Its directory.
    pub fn directory(&self) -> PathBuf {
        self.mounted.join(&self.name)
    }

    /// Moves this process into it.
    pub fn enter(&self) -> io::Result<()> {
        fs::write(self.directory().join("cgroup.procs"), "0")
    }

    /// The line that the processes in it have in /proc/PID/cgroup.
    pub fn line(&self) -> String {
        format!("0::/{}", self.name)
    }

    /// Its id: the number of its inode.
    pub fn id(&self) -> io::Result<u64> {
        inode_of(&self.directory())
    }

    /// The processes in it.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let text = fs::read_to_string(self.directory().join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Opens its directory.
    pub fn open(&self) -> io::Result<File> {
        File::open(self.directory())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = fs::remove_dir(self.directory());
        let unmounted = umount2(&self.mounted, MntFlags::MNT_DETACH);
        let removed = removed.and(unmounted.map_err(Into::into));
        if let Err(error) = removed.and_then(|()| fs::remove_dir(&self.mounted)) {
            eprintln!("{} is left: {error}", self.mounted.display());
        }
    }
}

/// A control group below another one. Dropping it removes the group, which has to be empty by then.
pub struct Cgroup(PathBuf);

/// How long a task that was reaped may stay in its group.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

impl Cgroup {
    /// Makes a group in the directory of another one.
    pub fn within(directory: &Path, name: &str) -> io::Result<Self> {
        let directory = directory.join(name);
        fs::create_dir(&directory)?;
        Ok(Self(directory))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Its id.
    pub fn id(&self) -> io::Result<u64> {
        inode_of(&self.0)
    }

    /// Moves a process into it; 0 is the caller.
    pub fn add(&self, process: i32) -> io::Result<()> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// Moves a thread into it.
    pub fn add_thread(&self, thread: i32) -> io::Result<()> {
        self.write("cgroup.threads", &thread.to_string())
    }

    /// Makes it threaded, so that it may contain single threads of processes of the group above.
    pub fn become_threaded(&self) -> io::Result<()> {
        self.write("cgroup.type", "threaded")
    }

    /// Writes to an existing file.
    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        let mut file = File::options().write(true).open(self.0.join(file))?;
        file.write_all(text.as_bytes())
    }

    /// Removes it.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = timeouts::deadline(LEAVE_LIMIT);
        loop {
            match fs::remove_dir(&self.0) {
                // Nothing reports when a task has left it.
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    if Instant::now() > deadline {
                        return Err(error);
                    }
                    thread::yield_now();
                }
                removed => return removed,
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        match self.remove() {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                eprintln!("{} is left: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

/// The inode number of a file. That of a group's directory is the group's id.
pub fn inode_of(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// The flags that requests may have.
pub fn known_flags() -> u32 {
    let others = PROCESSES | IDENTITY | BATCH;
    others | if are_there() { CGROUP } else { 0 }
}

/// Whether the kernel has control groups.
pub fn are_there() -> bool {
    Path::new("/proc/self/cgroup").exists()
}

/// The line of the unified hierarchy in /proc/TASK/cgroup.
pub fn line_of(task: &str) -> io::Result<Option<String>> {
    let text = fs::read_to_string(format!("/proc/{task}/cgroup"))?;
    let line = text.lines().find(|line| line.starts_with("0::"));
    Ok(line.map(str::to_owned))
}

/// `struct pidfd_info`, in the first of its sizes.
#[derive(Default)]
#[repr(C)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    rest: [u32; 12],
}

/// `PIDFD_GET_INFO`: a read and write of that size, type 0xff, number 11.
const GET_INFO: libc::c_ulong = 3 << 30 | (size_of::<PidfdInfo>() as libc::c_ulong) << 16 | 0xff0b;

/// `PIDFD_INFO_CGROUPID`.
const INFO_CGROUP: u64 = 1 << 2;

/// The id of the group that a pidfd's process is in. Unlike /proc/PID/cgroup, it can be read while
/// another task holds `cgroup_mutex`.
pub fn id_of(pidfd: &OwnedFd) -> Result<u64, Failure> {
    let mut info = PidfdInfo {
        mask: INFO_CGROUP,
        ..PidfdInfo::default()
    };
    // SAFETY: The call reads and writes the structure, whose size is a part of the request.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    Errno::result(result)?;
    if info.mask & INFO_CGROUP == 0 {
        return Err(Failure::new(
            "the kernel reports no group of a pidfd's process",
        ));
    }
    Ok(info.cgroup)
}

/// The file that moves processes into the root of all cgroups.
pub fn root_of(group: &Group) -> PathBuf {
    group.directory().join("../cgroup.procs")
}
