// SPDX-License-Identifier: GPL-2.0
//! What /proc and pidfds say of processes: what the state is compared with.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;

use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::cgroup;
use super::container::{Container, PID, keep_mounts, mount_own_proc};
use crate::child::pidfd;
use crate::harness::{Failure, TestResult};
use crate::identities;
use crate::wire::{Event, Identity, Task};

/// A tick of the times in /proc/PID/stat, in nanoseconds.
pub const TICK: u64 = 10_000_000;

/// What /proc says of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stat {
    pub parent: i32,
    pub process_group: i32,
    pub session: i32,
    /// In ticks, as the reader's time namespace has it.
    pub start: u64,
}

impl Stat {
    /// Reads it.
    pub fn of(process: impl Display) -> Result<Self, Failure> {
        let path = format!("/proc/{process}/stat");
        let stat = fs::read_to_string(&path)?;
        // The second field is a name, in which anything may be.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<_> = rest.split(' ').collect();
        let field = |number: usize| -> Result<u64, Failure> {
            let field = fields.get(number - 3).and_then(|field| field.parse().ok());
            field.ok_or_else(|| Failure::new(format!("{path}: {stat}")))
        };
        Ok(Self {
            parent: field(4)? as i32,
            process_group: field(5)? as i32,
            session: field(6)? as i32,
            start: field(22)?,
        })
    }

    /// What the state is to tell of it, if its parent's first thread forked it.
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
fn has_ended(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().all(|task| {
        let stat = fs::read(task.path().join("stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| &rest[..1]);
        matches!(state, "" | "Z" | "X")
    })
}

/// The processes that live according to /proc.
pub fn living_in_proc() -> Result<BTreeMap<i32, Stat>, Failure> {
    let mut living = BTreeMap::new();
    for process in fs::read_dir("/proc")? {
        let name = process?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // What is gone in between has ended.
        if let (false, Ok(stat)) = (has_ended(pid), Stat::of(pid)) {
            living.insert(pid, stat);
        }
    }
    Ok(living)
}

/// What the state is to tell, if nothing happens meanwhile.
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

/// The number of a process in pidfs, 0 for nobody's.
fn number_of(pid: i32) -> Result<u64, Failure> {
    match pid {
        0 => Ok(0),
        pid => Ok(identities::number_of(Pid::from_raw(pid))?),
    }
}

/// Who a process is, by its pidfd and /proc.
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
