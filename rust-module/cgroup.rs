// SPDX-License-Identifier: GPL-2.0

//! The cgroup that a listener asks for, and the cgroup of a task. Without `CONFIG_CGROUPS`, the
//! types are there, but contain no cgroup.

use crate::control::{
    Flags,
    Listen, //
};
#[cfg(CONFIG_CGROUPS)]
use kernel::{
    cgroup::{
        Cgroup,
        TaskCgroup, //
    },
    sync::aref::ARef, //
};
use kernel::{
    prelude::*,
    sync::rcu,
    task::Task, //
};

/// Whether the kernel has cgroups: `CONFIG_CGROUPS`.
pub(crate) const HAS_CGROUPS: bool = cfg!(CONFIG_CGROUPS);

/// The cgroup whose events a listener wants, together with its descendants; or all cgroups.
///
/// It holds a reference on the cgroup.
#[derive(Clone)]
pub(crate) struct Scope {
    #[cfg(CONFIG_CGROUPS)]
    cgroup: Option<ARef<Cgroup>>,
}

impl Scope {
    /// Returns the scope that a request asks for.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if the current task can see no cgroup with this id in its cgroup namespace.
    ///
    /// # Context
    ///
    /// Process context, as for [`Cgroup::from_id`].
    #[cfg(CONFIG_CGROUPS)]
    pub(crate) fn of(listen: &Listen) -> Result<Self> {
        let cgroup = if listen.flags.contain(Flags::CGROUP) {
            Some(Cgroup::from_id(listen.cgroup_id)?)
        } else {
            None
        };

        Ok(Self { cgroup })
    }

    /// Returns the scope of a request on a kernel without cgroups: all events.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if the request has [`Flags::CGROUP`], which is not a known flag here.
    #[cfg(not(CONFIG_CGROUPS))]
    pub(crate) fn of(listen: &Listen) -> Result<Self> {
        if listen.flags.contain(Flags::CGROUP) {
            return Err(ENOENT);
        }
        Ok(Self {})
    }

    /// Returns whether the listener wants events of tasks in `place`.
    #[inline]
    pub(crate) fn has(&self, place: Place<'_>) -> bool {
        #[cfg(CONFIG_CGROUPS)]
        if let Some(cgroup) = &self.cgroup {
            return place.cgroup.is_within(cgroup);
        }
        let _ = place;
        true
    }
}

/// The cgroup that a task is in, found under RCU and valid as long as `'a`. It holds no reference.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    #[cfg(CONFIG_CGROUPS)]
    cgroup: TaskCgroup<'a>,
    #[cfg(not(CONFIG_CGROUPS))]
    _rcu: &'a rcu::Guard,
}

impl<'a> Place<'a> {
    /// Returns the cgroup that a task is in. If the task has exited, this is its last cgroup.
    #[inline]
    pub(crate) fn of(task: &Task, rcu: &'a rcu::Guard) -> Self {
        let _ = task;
        Self {
            #[cfg(CONFIG_CGROUPS)]
            cgroup: TaskCgroup::of(task, rcu),
            #[cfg(not(CONFIG_CGROUPS))]
            _rcu: rcu,
        }
    }

    /// Returns the id of the cgroup, which is the inode number of its directory; 0 without cgroups.
    #[inline]
    pub(crate) fn id(self) -> u64 {
        #[cfg(CONFIG_CGROUPS)]
        return self.cgroup.id();
        #[cfg(not(CONFIG_CGROUPS))]
        0
    }
}
