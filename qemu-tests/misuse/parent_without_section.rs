// SPDX-License-Identifier: GPL-2.0
//! A parent is only valid within an RCU read-side critical section.
//!
//! Refused: error[E0061]

use kernel::task::Task;

pub fn parent(task: &Task) -> Option<&Task> {
    task.real_parent()
}
