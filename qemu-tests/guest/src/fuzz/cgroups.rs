// SPDX-License-Identifier: GPL-2.0
//! The cgroups that exist during a run. None is made or removed while it lasts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::harness::{Failure, TestResult};
use crate::support::cgroup::{Group, are_there, line_of};
use crate::wire::{BATCH, CGROUP, IDENTITY, PROCESSES};

/// The cgroups of the unified hierarchy. A kernel without CONFIG_CGROUPS has none.
#[derive(Default)]
pub struct Cgroups {
    /// The cgroup that was made for the run, and its id.
    made: Option<(Group, u64)>,
    /// The id of each cgroup, by its path in the form of /proc/PID/cgroup.
    ids: BTreeMap<PathBuf, u64>,
}

impl Cgroups {
    /// Makes a cgroup for the run, which is removed when this is dropped, and finds all cgroups.
    pub fn new() -> Result<Self, Failure> {
        if !are_there() {
            return Ok(Self::default());
        }
        let group = Group::new()?;
        let directory = group.directory();
        let root = directory.parent().unwrap_or(&directory);
        let mut ids = BTreeMap::new();
        find(root, Path::new("/"), &mut ids)?;
        let id = group.id()?;
        Ok(Self {
            made: Some((group, id)),
            ids,
        })
    }

    /// Moves this process into the cgroup that was made for the run.
    pub fn enter(&self) -> TestResult {
        match &self.made {
            Some((group, _)) => Ok(group.enter()?),
            None => Ok(()),
        }
    }

    /// The id of the cgroup that was made for the run, 0 without cgroups.
    pub fn made(&self) -> u64 {
        self.made.as_ref().map_or(0, |(_, id)| *id)
    }

    /// The flags that requests may have.
    pub fn flags(&self) -> u32 {
        let others = PROCESSES | IDENTITY | BATCH;
        match self.ids.is_empty() {
            true => others,
            false => others | CGROUP,
        }
    }

    /// Whether a cgroup with this id exists.
    pub fn has(&self, id: u64) -> bool {
        self.ids.values().any(|known| *known == id)
    }

    /// The id of the cgroup that this process is in, 0 without cgroups.
    pub fn own(&self) -> Result<u64, Failure> {
        if self.ids.is_empty() {
            return Ok(0);
        }
        let line = line_of("self")?;
        let path = line.as_deref().and_then(|line| line.strip_prefix("0::"));
        let id = path.and_then(|path| self.ids.get(Path::new(path)));
        id.copied()
            .ok_or_else(|| Failure::new(format!("an unknown cgroup: {line:?}")))
    }

    /// Whether a cgroup is this ancestor, or below it.
    pub fn is_within(&self, id: u64, ancestor: u64) -> bool {
        let found = self.ids.iter().find(|(_, known)| **known == id);
        let mut around = found.into_iter().flat_map(|(path, _)| path.ancestors());
        around.any(|path| self.ids.get(path) == Some(&ancestor))
    }
}

/// Adds the ids of a cgroup and of those below it.
fn find(directory: &Path, path: &Path, ids: &mut BTreeMap<PathBuf, u64>) -> io::Result<()> {
    ids.insert(path.to_owned(), fs::metadata(directory)?.ino());
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), &path.join(entry.file_name()), ids)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Imaginary cgroups, by their paths and ids.
    pub fn imagined(cgroups: &[(&str, u64)]) -> Cgroups {
        let ids = cgroups.iter().map(|(path, id)| (path.into(), *id));
        Cgroups {
            made: None,
            ids: ids.collect(),
        }
    }

    #[test]
    fn a_cgroup_is_within_those_around_it() {
        let cgroups = imagined(&[("/", 1), ("/a", 20), ("/a/b", 30), ("/ab", 40)]);
        let within = |id| [1, 20, 30, 40].map(|ancestor| cgroups.is_within(id, ancestor));
        assert_eq!(within(1), [true, false, false, false]);
        assert_eq!(within(20), [true, true, false, false]);
        assert_eq!(within(30), [true, true, true, false]);
        assert_eq!(within(40), [true, false, false, true]);
        assert_eq!(within(50), [false; 4]);
        assert!(cgroups.has(30) && !cgroups.has(0) && !cgroups.has(1 << 32 | 1));
    }

    #[test]
    fn without_cgroups_there_is_no_flag_for_them() {
        assert_eq!(imagined(&[]).flags(), 0x7);
        assert_eq!(imagined(&[("/", 1)]).flags(), 0xf);
    }

    #[test]
    fn each_directory_is_a_cgroup() {
        let root = std::env::temp_dir().join(format!("cgroups-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/cgroup.procs"), "").unwrap();
        let mut ids = BTreeMap::new();
        find(&root, Path::new("/"), &mut ids).unwrap();
        let inode = fs::metadata(root.join("a/b")).unwrap().ino();
        fs::remove_dir_all(&root).unwrap();
        let paths: Vec<_> = ids.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/", "/a", "/a/b"]);
        assert_eq!(ids[Path::new("/a/b")], inode);
    }
}
