// SPDX-License-Identifier: GPL-2.0
//! Another task's credentials may have no reference left, so their count must not be incremented.
//!
//! Refused: error[E0599]

use kernel::{
    cred::Credential,
    sync::{
        aref::ARef,
        rcu, //
    },
    task::Task, //
};

pub fn credentials(task: &Task) -> ARef<Credential> {
    let rcu = rcu::read_lock();
    task.objective_cred(&rcu).into()
}
