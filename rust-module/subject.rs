// SPDX-License-Identifier: GPL-2.0

//! Whom a message is about.

use crate::{
    cgroup::Place,
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

/// The ids of a task, before they are translated for a receiver.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ids<'a> {
    pub(crate) thread: Option<&'a Pid>,
    pub(crate) group: Option<&'a Pid>,
}

impl<'a> Ids<'a> {
    #[inline]
    pub(crate) fn of(task: &Task, rcu: &'a rcu::Guard) -> Self {
        Self {
            thread: task.thread_id(rcu),
            group: task.thread_group_id(rcu),
        }
    }

    /// The ids of a task's parent: none if the task was released.
    #[inline]
    pub(crate) fn of_parent(task: &Task, rcu: &'a rcu::Guard) -> Self {
        match task.real_parent(rcu) {
            Some(parent) => Self::of(parent, rcu),
            None => Self::default(),
        }
    }

    #[inline]
    pub(crate) fn seen_from(self, view: &View) -> wire::Ids {
        wire::Ids {
            pid: view.number(self.thread),
            tgid: view.number(self.group),
        }
    }

    /// Whether the thread leads its group, and so stands for the process.
    #[inline]
    pub(crate) fn are_of_leader(self) -> bool {
        self.thread.map(core::ptr::from_ref) == self.group.map(core::ptr::from_ref)
    }
}

/// Whom an event is about.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) ids: Ids<'a>,
    pub(crate) task: &'a Task,
    /// The parent or tracer, if the event names one.
    pub(crate) other: Ids<'a>,
}

impl<'a> Subject<'a> {
    /// A task, in an event that names nobody else.
    #[inline]
    pub(crate) fn new(task: &'a Task, rcu: &'a rcu::Guard) -> Self {
        Self {
            ids: Ids::of(task, rcu),
            task,
            other: Ids::default(),
        }
    }

    /// The same, in an event that names somebody else.
    #[inline]
    pub(crate) fn with(self, other: Ids<'a>) -> Self {
        Self { other, ..self }
    }

    /// Which process it is, in a view, and where.
    pub(crate) fn identity(&self, place: Place<'_>, view: &View, rcu: &rcu::Guard) -> Identity {
        let number = |id: Option<&Pid>| id.map_or(0, Pid::inode_number);
        // A leader may have been released, when the process has ended.
        let start_ns = if self.ids.are_of_leader() {
            Some(self.task.start_boottime())
        } else {
            self.task.group_leader(rcu).map(Task::start_boottime)
        };
        // Who can't be seen has no number.
        let other = self.other.group.filter(|id| view.number(Some(id)) != 0);

        Identity::new(
            number(self.ids.group),
            number(self.ids.thread),
            number(other),
            place.id(),
            start_ns.map_or(0, |time| view.boottime_ns(time)),
        )
    }
}
