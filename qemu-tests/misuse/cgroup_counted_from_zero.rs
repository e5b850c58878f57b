// SPDX-License-Identifier: GPL-2.0
//! A task's cgroup may have no reference left, so its count must not be incremented.
//!
//! Refused: error[E0277]

use kernel::{
    cgroup::{
        Cgroup,
        TaskCgroup, //
    },
    sync::{
        aref::ARef,
        rcu, //
    },
    task::Task, //
};

pub fn cgroup(task: &Task) -> ARef<Cgroup> {
    let rcu = rcu::read_lock();
    TaskCgroup::of(task, &rcu).into()
}
