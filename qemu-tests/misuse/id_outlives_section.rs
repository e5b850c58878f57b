// SPDX-License-Identifier: GPL-2.0
//! An id may be freed after the RCU read-side critical section.
//!
//! Refused: error[E0505]

use kernel::{
    pid::Pid,
    sync::rcu,
    task::Task, //
};

pub fn id(task: &Task, use_it: impl Fn(Option<&Pid>)) {
    let rcu = rcu::read_lock();
    let id = task.thread_id(&rcu);

    drop(rcu);
    use_it(id);
}
