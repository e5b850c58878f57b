// SPDX-License-Identifier: GPL-2.0

//! The subject of a message: the task that it is about.

use crate::{
    listener::View,
    wire::{
        self,
        Identity, //
    },
};
use kernel::{
    pid::Pid,
    sync::rcu,
    task::Task, //
};

/// The ids of a task, before they are translated into the numbers that a receiver sees. They are
/// borrowed under RCU, or from the references that C code holds on them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ids<'a> {
    /// The id of the thread.
    pub(crate) thread: Option<&'a Pid>,
    /// The id of its thread group.
    pub(crate) group: Option<&'a Pid>,
}

impl<'a> Ids<'a> {
    /// Returns the ids of a task: [`None`] for each that was released.
    #[inline]
    pub(crate) fn of(task: &Task, rcu: &'a rcu::Guard) -> Self {
        Self {
            thread: task.thread_id(rcu),
            group: task.thread_group_id(rcu),
        }
    }

    /// Returns the ids of a task's parent (`real_parent`), or [`None`] if the task was released.
    #[inline]
    pub(crate) fn of_parent(task: &Task, rcu: &'a rcu::Guard) -> Option<Self> {
        let (thread, group) = task.real_parent_ids(rcu)?;

        Some(Self {
            thread: Some(thread),
            group: Some(group),
        })
    }

    /// Returns the numbers of the ids in a view, 0 for each that is not visible there.
    #[inline]
    pub(crate) fn seen_from(self, view: &View) -> wire::Ids {
        wire::Ids {
            pid: view.number(self.thread),
            tgid: view.number(self.group),
        }
    }

    /// Returns whether the thread is the leader of its thread group, and so stands for the process.
    #[inline]
    pub(crate) fn are_of_leader(self) -> bool {
        self.thread.map(core::ptr::from_ref) == self.group.map(core::ptr::from_ref)
    }
}

/// The task that an event is about.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The ids of the task.
    pub(crate) ids: Ids<'a>,
    /// The task itself.
    pub(crate) task: &'a Task,
    /// The leader of its thread group.
    pub(crate) leader: &'a Task,
    /// The ids of the parent or tracer, if the event names one.
    pub(crate) other: Ids<'a>,
}

impl<'a> Subject<'a> {
    /// Returns the subject of an event that names no parent and no tracer. It has no ids if the
    /// task was released.
    #[inline]
    pub(crate) fn new(task: &'a Task, rcu: &'a rcu::Guard) -> Self {
        let ids = Ids::of(task, rcu);
        // A leader may have been released, if its process has ended. Then `group_leader()` returns
        // nothing, but the leader still has its own start time.
        let leader = if ids.are_of_leader() {
            Some(task)
        } else {
            task.group_leader(rcu)
        };

        // Another thread may have been released since its ids were loaded.
        let (ids, leader) = leader.map_or((Ids::default(), task), |leader| (ids, leader));

        Self {
            ids,
            task,
            leader,
            other: Ids::default(),
        }
    }

    /// Returns the same subject, for an event that also names a parent or tracer.
    #[inline]
    pub(crate) fn with(self, other: Ids<'a>) -> Self {
        Self { other, ..self }
    }

    /// Returns the identity of the process for receivers with this view. `cgroup` is the id of the
    /// task's cgroup.
    #[inline]
    pub(crate) fn identity(&self, cgroup: u64, view: &View) -> Identity {
        let number = |id: Option<&Pid>| id.map_or(0, Pid::inode_number);
        let process = number(self.ids.group);
        let thread = if self.ids.are_of_leader() {
            process
        } else {
            number(self.ids.thread)
        };
        // A parent or tracer that is not visible in the view has no number.
        let other = self.other.group.filter(|id| view.number(Some(id)) != 0);

        Identity::new(
            process,
            thread,
            number(other),
            cgroup,
            view.boottime_ns(self.leader.start_boottime()),
        )
    }
}
