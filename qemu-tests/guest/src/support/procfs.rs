// SPDX-License-Identifier: GPL-2.0
//! What /proc and pidfds show of processes, to compare the state with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::cgroup;
use super::container::{Container, PID, keep_mounts, mount_own_proc};
use crate::child::pidfd;
use crate::harness::{Failure, TestResult};
use crate::identities;
use crate::proc_stat::{Stat, TICK, has_ended, processes, threads_of};
use crate::wire::{Event, Identity, Task};

impl Stat {
    /// How the state has to report this process, if its parent's first thread forked it.
    pub fn process(&self, pid: i32) -> Event {
        Event::Process {
            task: Task::leader(pid),
            parent: Task::leader(self.parent),
            session: self.session,
            process_group: self.process_group,
        }
    }
}

/// Whether all threads of a process have ended, or it is gone.
fn process_has_ended(pid: i32) -> bool {
    let mut threads = threads_of(pid).into_iter();
    threads.all(|thread| has_ended(format!("{pid}/task/{thread}")))
}

/// The processes that live according to /proc.
pub fn living_in_proc() -> Result<BTreeMap<i32, Stat>, Failure> {
    let mut living = BTreeMap::new();
    for pid in processes()? {
        // A process that is gone in between has ended.
        if let (false, Ok(stat)) = (process_has_ended(pid), Stat::of(pid)) {
            living.insert(pid, stat);
        }
    }
    Ok(living)
}

/// What the state has to report, if nothing happens meanwhile.
pub fn events_of_proc() -> Result<Vec<Event>, Failure> {
    let living = living_in_proc()?;
    let events = living.iter().map(|(pid, stat)| stat.process(*pid));
    Ok(events.collect())
}

/// The id of the cgroup that a process is in; 0 if there are none.
pub fn cgroup_of(pid: i32) -> Result<u64, Failure> {
    match cgroup::are_there() {
        true => cgroup::id_of(&pidfd(Pid::from_raw(pid))?),
        false => Ok(0),
    }
}

/// The number of a process in pidfs, 0 for pid 0, which is no process.
fn number_of(pid: i32) -> Result<u64, Failure> {
    match pid {
        0 => Ok(0),
        pid => Ok(identities::number_of(Pid::from_raw(pid))?),
    }
}

/// The identity of a process, by its pidfd and /proc.
pub fn identity_of(pid: i32) -> Result<Identity, Failure> {
    let (stat, process) = (Stat::of(pid)?, number_of(pid)?);
    Ok(Identity {
        process,
        thread: process,
        other: number_of(stat.parent)?,
        cgroup: cgroup_of(pid)?,
        start_ns: stat.start * TICK,
    })
}

/// Runs a function as the first process of a pid namespace, which /proc shows.
pub fn in_container(function: impl FnOnce() -> TestResult) -> TestResult {
    Container::start(PID | CloneFlags::CLONE_NEWNS, || {
        keep_mounts()?;
        mount_own_proc()?;
        function()
    })?
    .finish()
}

/// Inodes of the initial namespaces, from `enum init_ns_ino` of linux/nsfs.h.
const INITIAL_NAMESPACES: [(&str, u64); 2] = [("net", 0xefff_fff9), ("user", 0xefff_fffd)];

/// A namespace of this process, by its inode. A kernel without namespaces of that kind has only the
/// initial one, and no file for it.
pub fn own_namespace(kind: &str) -> Result<u64, Failure> {
    let file = format!("/proc/thread-self/ns/{kind}");
    let initial = INITIAL_NAMESPACES.iter().find(|(name, _)| *name == kind);
    match (fs::metadata(&file), initial) {
        (Ok(metadata), _) => Ok(metadata.ino()),
        (Err(error), Some((_, inode))) if error.kind() == ErrorKind::NotFound => Ok(*inode),
        (Err(error), _) => Err(Failure::new(format!("{file}: {error}"))),
    }
}
