// SPDX-License-Identifier: GPL-2.0

//! Who gets which event, as the hooks find it.
//!
//! An event is looked up once for each pid namespace that can see its subject, whoever else
//! listens: its cost grows with those who get it, and with how deep the subject is nested.

use crate::{
    index::{
        self,
        Slot, //
    },
    listener::Listener,
    mask::{
        List,
        Mask, //
    },
};
use kernel::{
    pid_namespace::PidNamespace,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

/// A listener, and what it asked for last.
pub(crate) struct Subscription {
    pub(crate) listener: Arc<Listener>,
    pub(crate) mask: Mask,
}

/// The listeners of one pid namespace.
#[derive(Default)]
struct Lists([KVec<Arc<Listener>>; List::ALL.len()]);

/// All listeners, by pid namespace and by what they want.
pub(crate) struct Receivers {
    lists: KVec<Lists>,
    /// From the address of a namespace to its place in `lists`. The namespaces live as long as
    /// their listeners do, so that an address stands for one namespace.
    table: KVec<Slot>,
    /// Whether one of these listeners may have ended: there was no memory for lists without it.
    stale: Atomic<bool>,
}

/// What a namespace has in [`Receivers::table`].
#[inline]
fn key(namespace: &PidNamespace) -> usize {
    core::ptr::from_ref(namespace) as usize
}

impl Receivers {
    /// Sorts out who gets what.
    pub(crate) fn new(subscriptions: &[Subscription]) -> Result<KBox<Self>> {
        let slots = index::slots(subscriptions.len());
        let mut receivers = KBox::new(
            Self {
                lists: KVec::new(),
                table: KVec::from_elem(Slot::default(), slots, GFP_KERNEL)?,
                stale: Atomic::new(false),
            },
            GFP_KERNEL,
        )?;

        for Subscription { listener, mask } in subscriptions {
            let lists = receivers.lists_for(key(listener.view.pids()))?;

            for list in List::ALL.into_iter().filter(|list| mask.is_on(*list)) {
                lists.0[list as usize].push(listener.clone(), GFP_KERNEL)?;
            }
        }
        Ok(receivers)
    }

    /// The lists of a namespace, which are made if there are none.
    fn lists_for(&mut self, key: usize) -> Result<&mut Lists> {
        let position = match index::find(&self.table, key) {
            Some(position) => position,
            None => {
                self.lists.push(Lists::default(), GFP_KERNEL)?;
                index::insert(&mut self.table, key, self.lists.len() - 1);
                self.lists.len() - 1
            }
        };

        self.lists.get_mut(position).ok_or(EINVAL)
    }

    /// Has those who get events here asked whether they have ended.
    pub(crate) fn set_stale(&self) {
        // Relaxed: as for the end of a listener, an event may cross it.
        self.stale.store(true, Relaxed);
    }

    /// Whether one of these listeners may have ended.
    #[inline]
    pub(crate) fn are_stale(&self) -> bool {
        self.stale.load(Relaxed)
    }

    /// The listeners of a namespace that are on a list.
    #[inline]
    pub(crate) fn on(&self, namespace: &PidNamespace, list: List) -> &[Arc<Listener>] {
        index::find(&self.table, key(namespace))
            .and_then(|position| self.lists.get(position))
            .map_or(&[], |lists| &lists.0[list as usize])
    }
}
