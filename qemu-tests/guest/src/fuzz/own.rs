// SPDX-License-Identifier: GPL-2.0
//! What tells this process from all others, as it is known without any event.

use std::fs;

use nix::unistd::{Pid, getpgrp, getppid, getsid};

use super::cgroups::Cgroups;
use crate::child::own_pid;
use crate::harness::{Failure, TestResult, expect_eq};
use crate::identities;
use crate::wire::{Event, Identity};

/// A tick of the times in /proc/PID/stat, in nanoseconds: there are 100 in a second.
const TICK_NS: u64 = 10_000_000;

/// This process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Own {
    pid: i32,
    process: u64,
    pub cgroup: u64,
    start_ticks: u64,
    parent: i32,
    session: i32,
    process_group: i32,
}

impl Own {
    /// Finds it out. It has to stay in its cgroup, of which there are these, in its session and in its
    /// process group.
    pub fn find(cgroups: &Cgroups) -> Result<Self, Failure> {
        let pid = own_pid();
        let stat = fs::read_to_string("/proc/self/stat")?;
        Ok(Self {
            pid,
            process: identities::number_of(Pid::from_raw(pid))?,
            cgroup: cgroups.own()?,
            start_ticks: start(&stat).ok_or_else(|| Failure::new(format!("/proc: {stat}")))?,
            parent: getppid().as_raw(),
            session: getsid(None)?.as_raw(),
            process_group: getpgrp().as_raw(),
        })
    }

    /// Whether an event is about this process.
    pub fn is_subject(&self, event: &Event) -> bool {
        event.subject().tgid == self.pid
    }

    /// Expects what the state tells of this process.
    pub fn check_told(&self, event: &Event) -> TestResult {
        let Event::Process {
            task,
            parent,
            session,
            process_group,
        } = *event
        else {
            return Err(Failure::new(format!("a process, got {event:?}")));
        };
        let found = Self {
            pid: task.pid,
            parent: parent.tgid,
            session,
            process_group,
            ..*self
        };
        expect_eq("what is told of this process", found, *self)
    }

    /// Expects the identity of this process.
    pub fn check(&self, identity: Identity) -> TestResult {
        let found = Self {
            process: identity.process,
            cgroup: identity.cgroup,
            start_ticks: identity.start_ns / TICK_NS,
            ..*self
        };
        expect_eq("what identifies this process", found, *self)
    }
}

/// When the process started, in ticks.
fn start(stat: &str) -> Option<u64> {
    // The second field, the name, may have anything in it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Task;

    #[test]
    fn the_start_is_behind_a_name_with_anything_in_it() {
        let fields: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("1 (a) S 2 (b) S {}\n", fields.join(" "));
        assert_eq!(start(&stat), Some(22));
        assert_eq!(start("1 (a) S 4 5"), None);
    }

    #[test]
    fn a_process_knows_itself() {
        let own = Own::find(&Cgroups::default()).unwrap();
        assert_eq!(own.pid, own_pid());
        let identity = Identity {
            process: own.process,
            thread: own.process,
            other: 0,
            cgroup: 0,
            start_ns: own.start_ticks * TICK_NS + 1,
        };
        assert!(own.check(identity).is_ok());
        let told = |parent, session, process_group| {
            let task = Task::leader(own.pid);
            let event = Event::Process {
                task,
                parent: Task {
                    pid: 1,
                    tgid: parent,
                },
                session,
                process_group,
            };
            own.check_told(&event).is_ok()
        };
        let (parent, session, group) = (own.parent, own.session, own.process_group);
        assert!(told(parent, session, group));
        assert!(!told(parent + 1, session, group) && !told(parent, session + 1, group));
        assert!(!told(parent, session, group + 1));
        let changes: [fn(&mut Identity); 3] = [
            |identity| identity.process += 1,
            |identity| identity.cgroup += 1,
            |identity| identity.start_ns += TICK_NS,
        ];
        for change in changes {
            let mut other = identity;
            change(&mut other);
            assert!(own.check(other).is_err());
        }
    }
}
