// SPDX-License-Identifier: GPL-2.0
//! Only unsafe code may say that a lock is held.
//!
//! Refused: error[E0133]

use kernel::{
    sync::rcu,
    task::Task, //
};

pub fn has_parent(task: &Task) -> bool {
    task.real_parent(&rcu::Guard::assume_held()).is_some()
}
