// SPDX-License-Identifier: GPL-2.0
//! What is known of this process without any event: its numbers, its cgroup and its start.

use nix::unistd::{Pid, getpgrp, getppid, getsid};

use super::cgroups::Cgroups;
use crate::child::own_pid;
use crate::harness::{Failure, TestResult, expect_eq};
use crate::identities;
use crate::proc_stat::{Stat, TICK};
use crate::wire::{Event, Identity};

/// This process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ThisProcess {
    pid: i32,
    process: u64,
    pub cgroup: u64,
    start_ticks: u64,
    parent: i32,
    session: i32,
    process_group: i32,
}

impl ThisProcess {
    /// Finds out what is known of this process. It has to stay in its cgroup, which is one of these, in
    /// its session and in its process group.
    pub fn find(cgroups: &Cgroups) -> Result<Self, Failure> {
        let pid = own_pid();
        Ok(Self {
            pid,
            process: identities::number_of(Pid::from_raw(pid))?,
            cgroup: cgroups.own()?,
            start_ticks: Stat::of("self")?.start,
            parent: getppid().as_raw(),
            session: getsid(None)?.as_raw(),
            process_group: getpgrp().as_raw(),
        })
    }

    /// Whether an event is about this process.
    pub fn is_subject(&self, event: &Event) -> bool {
        event.subject().tgid == self.pid
    }

    /// Expects the state to report this process correctly.
    pub fn check_process(&self, event: &Event) -> TestResult {
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
        expect_eq("what the state reports about this process", found, *self)
    }

    /// Expects the identity of this process.
    pub fn check(&self, identity: Identity) -> TestResult {
        let found = Self {
            process: identity.process,
            cgroup: identity.cgroup,
            start_ticks: identity.start_ns / TICK,
            ..*self
        };
        expect_eq("what identifies this process", found, *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Task;

    #[test]
    fn a_process_knows_itself() {
        let own = ThisProcess::find(&Cgroups::default()).unwrap();
        assert_eq!(own.pid, own_pid());
        let identity = Identity {
            process: own.process,
            thread: own.process,
            other: 0,
            cgroup: 0,
            start_ns: own.start_ticks * TICK + 1,
        };
        assert!(own.check(identity).is_ok());
        let is_right = |parent, session, process_group| {
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
            own.check_process(&event).is_ok()
        };
        let (parent, session, group) = (own.parent, own.session, own.process_group);
        assert!(is_right(parent, session, group));
        assert!(!is_right(parent + 1, session, group) && !is_right(parent, session + 1, group));
        assert!(!is_right(parent, session, group + 1));
        let changes: [fn(&mut Identity); 3] = [
            |identity| identity.process += 1,
            |identity| identity.cgroup += 1,
            |identity| identity.start_ns += TICK,
        ];
        for change in changes {
            let mut other = identity;
            change(&mut other);
            assert!(own.check(other).is_err());
        }
    }
}
