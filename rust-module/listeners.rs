// SPDX-License-Identifier: GPL-2.0

//! All listeners: who listens for what, and how many there are.
//!
//! Lock order: [`Listeners::inner`], then `cpu_hotplug_lock` (in [`Watch`]). Events are sent with
//! neither: they find their receivers under RCU.

use crate::{
    listener::{
        Listener,
        LISTING_HEAD, //
    },
    mask::{
        List,
        Mask, //
    },
    receivers::{
        Receivers,
        Subscription, //
    },
    LocalModule,
};
use kernel::{
    fmt,
    net::connector::Socket,
    new_mutex,
    prelude::*,
    proc_events::{
        Kind,
        Request,
        Section,
        Watch, //
    },
    sync::{
        rcu::{
            self,
            Published, //
        },
        Arc,
        Mutex, //
    },
    task::Kuid,
};

/// The kind of event that those on a list wait for.
const fn kind(list: List) -> Kind {
    match list {
        List::Fork => Kind::Fork,
        List::Exec => Kind::Exec,
        List::Uid => Kind::Uid,
        List::Gid => Kind::Gid,
        List::Sid => Kind::Sid,
        List::Ptrace => Kind::Ptrace,
        List::Comm => Kind::Comm,
        List::Coredump => Kind::Coredump,
        List::Exit | List::NonzeroExit => Kind::Exit,
        List::SessionEnd => Kind::SessionEnd,
    }
}

/// Who may listen, and how much.
pub(crate) struct Limits {
    /// Whether who is no administrator of the socket's network namespace may.
    pub(crate) unprivileged: bool,
    /// How many listeners a user may have who is no administrator of the system.
    pub(crate) per_user: usize,
}

impl Limits {
    /// Checks whether the sender of a request may have one more listener.
    fn check(&self, request: &Request<'_>, subscriptions: &[Subscription]) -> Result {
        if !request.may_view() {
            return Err(EPERM);
        }
        if !self.unprivileged && !request.is_from_net_admin() {
            return Err(EPERM);
        }

        let user = Kuid::current_euid();
        let own = subscriptions.iter().filter(|s| s.listener.is_of(user));
        if own.count() >= self.per_user && !request.is_from_init_net_admin() {
            return Err(EUSERS);
        }
        Ok(())
    }
}

struct Inner {
    subscriptions: KVec<Subscription>,
    /// The watch that those on a list need, while there is someone on it.
    watches: [Option<Watch>; List::ALL.len()],
}

/// The listeners, each once.
#[pin_data]
pub(crate) struct Listeners {
    limits: Limits,
    /// Serializes requests and the end of listeners.
    #[pin]
    inner: Mutex<Inner>,
    /// What follows from `inner`. Replaced with the lock held, read under RCU.
    receivers: Published<Receivers>,
}

impl Listeners {
    pub(crate) fn new(limits: Limits) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            limits,
            inner <- new_mutex!(Inner {
                subscriptions: KVec::new(),
                watches: Default::default(),
            }),
            receivers: Published::new(Receivers::new(&[])?),
        })
    }

    /// Who gets which event now.
    #[inline]
    pub(crate) fn receivers<'a>(&'a self, rcu: &'a rcu::Guard) -> &'a Receivers {
        self.receivers.read(rcu)
    }

    /// Makes a request's socket a listener for `mask`, or changes its mask. Tells whether it was one
    /// before; if not, the request was acknowledged.
    ///
    /// On failure nothing has changed. May sleep, and waits for a grace period at the end.
    ///
    /// # Errors
    ///
    /// [`EPERM`] and [`EUSERS`] as [`Limits`] say, [`ENOMEM`].
    pub(crate) fn listen(&self, request: &Request<'_>, mask: Mask) -> Result<Before> {
        // Declared before the lock is taken, so that the grace period is awaited without it.
        let _retired;
        let mut inner = self.inner.lock();

        if let Some(known) = inner.position(request.socket) {
            let before = core::mem::replace(&mut inner.subscriptions[known].mask, mask);

            match Receivers::new(&inner.subscriptions) {
                Ok(receivers) => {
                    inner.watch();
                    _retired = self.receivers.replace(receivers);
                }
                Err(error) => {
                    inner.subscriptions[known].mask = before;
                    return Err(error);
                }
            }
            return Ok(Before::Listening);
        }

        self.limits.check(request, &inner.subscriptions)?;

        let listener = Arc::new(Listener::new(request)?, GFP_KERNEL)?;
        let subscription = Subscription {
            listener: listener.clone(),
            mask,
        };
        inner.subscriptions.push(subscription, GFP_KERNEL)?;

        match Receivers::new(&inner.subscriptions) {
            Ok(receivers) => {
                inner.watch();
                // Acknowledged before the first event can be sent.
                Section::run(|section| listener.acknowledge_start(section, request));
                _retired = self.receivers.replace(receivers);
            }
            Err(error) => {
                inner.subscriptions.pop();
                return Err(error);
            }
        }
        Ok(Before::Silent)
    }

    /// Ends the listener that `socket` is. Tells whether it was one.
    ///
    /// Can't fail. May sleep, and waits for a grace period at the end: no event is queued after it
    /// has returned, also if there was no memory for other lists.
    pub(crate) fn end(&self, socket: &Socket) -> Before {
        let retired = {
            let mut inner = self.inner.lock();

            let Some(known) = inner.position(socket) else {
                return Before::Silent;
            };
            let Ok(subscription) = inner.subscriptions.remove(known) else {
                return Before::Silent;
            };
            subscription.listener.end();

            inner.watch();

            match Receivers::new(&inner.subscriptions) {
                Ok(receivers) => Some(self.receivers.replace(receivers)),
                // The listener stays on the lists until the next change, and is passed over.
                Err(_) => {
                    self.receivers.read(&rcu::read_lock()).set_stale();
                    None
                }
            }
        };

        // Either way an event that found the listener before is in its queue by the end of a
        // grace period, and none is put there after it. It is awaited without the lock.
        match retired {
            Some(retired) => drop(retired),
            None => rcu::synchronize_rcu(),
        }
        Before::Listening
    }
}

/// The listing in debugfs.
impl fmt::Display for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();

        writeln!(f, "listeners: {}", inner.subscriptions.len())?;
        writeln!(f, "{LISTING_HEAD}       mask")?;
        for Subscription { listener, mask } in &inner.subscriptions {
            f.write_fmt(fmt!("{} {:#010x}\n", **listener, mask.bits()))?;
        }
        Ok(())
    }
}

impl Inner {
    /// Switches on the hooks that somebody waits for, and off all others.
    fn watch(&mut self) {
        for list in List::ALL {
            let wanted = self.subscriptions.iter().any(|s| s.mask.is_on(list));
            let watch = &mut self.watches[list as usize];

            match (wanted, &watch) {
                (false, Some(_)) => *watch = None,
                (true, None) => *watch = Some(Watch::new::<LocalModule>(kind(list))),
                _ => {}
            }
        }
    }

    fn position(&self, socket: &Socket) -> Option<usize> {
        self.subscriptions
            .iter()
            .position(|s| s.listener.is(socket))
    }
}

/// What a socket was before a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// A listener.
    Listening,
    /// Not a listener.
    Silent,
}
