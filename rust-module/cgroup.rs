// SPDX-License-Identifier: GPL-2.0

//! Which cgroup a listener asks for, and which one a task is in: both are nothing where there are
//! no cgroups.

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

/// Whether the kernel has cgroups.
pub(crate) const HAS_CGROUPS: bool = cfg!(CONFIG_CGROUPS);

/// The cgroup whose events a listener wants, with those below it; or all.
#[derive(Clone)]
pub(crate) struct Scope {
    #[cfg(CONFIG_CGROUPS)]
    cgroup: Option<ARef<Cgroup>>,
}

impl Scope {
    /// What a request asks for.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if the current task can see no cgroup of that id in its cgroup namespace.
    #[cfg(CONFIG_CGROUPS)]
    pub(crate) fn of(listen: &Listen) -> Result<Self> {
        let cgroup = if listen.flags.contain(Flags::CGROUP) {
            Some(Cgroup::from_id(listen.cgroup_id)?)
        } else {
            None
        };

        Ok(Self { cgroup })
    }

    #[cfg(not(CONFIG_CGROUPS))]
    pub(crate) fn of(listen: &Listen) -> Result<Self> {
        if listen.flags.contain(Flags::CGROUP) {
            return Err(ENOENT);
        }
        Ok(Self {})
    }

    /// Whether events of tasks in `place` are wanted.
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

/// The cgroup that a task is in.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    #[cfg(CONFIG_CGROUPS)]
    cgroup: TaskCgroup<'a>,
    #[cfg(not(CONFIG_CGROUPS))]
    _rcu: &'a rcu::Guard,
}

impl<'a> Place<'a> {
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

    /// The cgroup's id, 0 if there are none.
    #[inline]
    pub(crate) fn id(self) -> u64 {
        #[cfg(CONFIG_CGROUPS)]
        return self.cgroup.id();
        #[cfg(not(CONFIG_CGROUPS))]
        0
    }
}
