// SPDX-License-Identifier: GPL-2.0
//! The proper use of what the other files misuse: it compiles.

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

/// Reads what is only there within an RCU read-side critical section.
pub fn uid_of_parent(task: &Task) -> Option<Kuid> {
    let rcu = rcu::read_lock();
    let parent = task.real_parent(&rcu)?;

    parent.thread_id(&rcu)?;
    Some(parent.cred_ids(&rcu).uid)
}

/// Asks about the sender of a request while it is handled.
pub fn is_privileged<H: Handler>(request: &Request<'_, H>) -> bool {
    request.is_from_net_admin() && request.may_view()
}

/// Looks for listeners within a section.
pub fn has_parent<H: Handler>(section: &Section<'_, H>, task: &Task) -> bool {
    task.real_parent(section.rcu()).is_some()
}
