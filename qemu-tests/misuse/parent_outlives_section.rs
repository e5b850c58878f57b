// SPDX-License-Identifier: GPL-2.0
//! A parent may be freed after the RCU read-side critical section.
//!
//! Refused: error[E0515]

use kernel::{
    sync::rcu,
    task::Task, //
};

pub fn parent(task: &Task) -> Option<&Task> {
    let rcu = rcu::read_lock();
    task.real_parent(&rcu)
}
