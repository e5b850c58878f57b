// SPDX-License-Identifier: GPL-2.0
//! The proper use of the functions that the other files misuse. It compiles.

use kernel::{
    proc_events::{
        Handler,
        Request,
        Section, //
    },
    sync::rcu,
    task::{
        Kuid,
        Task, //
    }, //
};

/// Reads a parent, which is only valid within an RCU read-side critical section.
pub fn uid_of_parent(task: &Task) -> Option<Kuid> {
    let rcu = rcu::read_lock();
    let parent = task.real_parent(&rcu)?;

    parent.thread_id(&rcu)?;
    Some(parent.cred_ids(&rcu).uid)
}

/// Checks the sender of a request while the request is handled.
pub fn is_privileged<H: Handler>(request: &Request<'_, H>) -> bool {
    request.is_from_net_admin() && request.may_view()
}

/// Reads a task's parent within a section.
pub fn has_parent<H: Handler>(section: &Section<'_, H>, task: &Task) -> bool {
    task.real_parent(section.rcu()).is_some()
}
