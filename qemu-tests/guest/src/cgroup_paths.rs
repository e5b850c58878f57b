// SPDX-License-Identifier: GPL-2.0
//! The paths of control groups, by the ids in events. A path names the service or container.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

/// `FILEID_KERNFS`: the handle of a control group's directory is its id.
const HANDLE_IS_ID: i32 = 0xfe;

/// How many paths are cached.
const MANY: usize = 10_000;

/// A `struct file_handle`, and the handle.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// The control groups of the unified hierarchy.
pub struct Groups {
    root: PathBuf,
    directory: File,
    names: BTreeMap<u64, String>,
}

impl Groups {
    /// Opens the hierarchy, which is usually mounted at /sys/fs/cgroup.
    pub fn open() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let root = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        });
        let root = root.context("no control groups are mounted")?;
        Ok(Self {
            directory: File::open(&root)?,
            root,
            names: BTreeMap::new(),
        })
    }

    /// The path of a group, relative to the root of the hierarchy, or its id if the group is gone
    /// or not visible. A path that was found once is cached, so it outlives the group.
    pub fn name(&mut self, id: u64) -> String {
        if let Some(name) = self.names.get(&id) {
            return name.clone();
        }
        let Ok(path) = self.path(id) else {
            return id.to_string();
        };
        if self.names.len() == MANY {
            self.names.clear();
        }
        self.names.insert(id, path.clone());
        path
    }

    fn path(&self, id: u64) -> io::Result<String> {
        let mut handle = Handle {
            bytes: size_of::<u64>() as u32,
            kind: HANDLE_IS_ID,
            id,
        };
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: As many bytes as the structure says follow its header.
        let result = unsafe {
            let handle = (&raw mut handle).cast();
            libc::open_by_handle_at(self.directory.as_raw_fd(), handle, flags)
        };
        let descriptor = Errno::result(result)?;
        // SAFETY: The call made the descriptor, which has no other owner.
        let group = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let path = fs::read_link(format!("/proc/self/fd/{}", group.as_raw_fd()))?;
        let below = path.strip_prefix(&self.root).map_err(io::Error::other)?;
        Ok(format!("/{}", below.display()))
    }
}
