// SPDX-License-Identifier: GPL-2.0

//! All listeners, by their sockets: for requests, and for the listing in debugfs.
//!
//! Events do not use this: they find listeners by their [`Subscription`]s. The memory that a
//! request needs is allocated before the lock is taken, so that no request waits for the memory of
//! another one. Only the answer that starts a listener is allocated later, with `GFP_NOWAIT`.

use crate::{
    connector::Connector,
    control::Listen,
    listener::{
        Listener,
        Subscriber,
        LISTING_HEAD, //
    },
    mask::bits,
    state::State,
};
use kernel::{
    fmt,
    net::connector::Socket,
    new_mutex,
    prelude::*,
    proc_events::{
        Charge,
        Kind,
        Prepared,
        Request,
        Subscription, //
    },
    rbtree::{
        Entry,
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        Mutex, //
    },
};

/// A listener in the tree.
struct Listed {
    subscription: Subscription<Connector>,
    /// Counts the listener against the limits of its user, until the listener ends.
    _charge: Charge,
}

/// What the mutex protects.
struct Inner {
    /// The listeners, by the addresses of their sockets. A listener holds a reference on its
    /// socket, so that no other socket gets the address.
    by_socket: RBTree<usize, Listed>,
    /// How many listeners are in the tree.
    count: usize,
}

/// All listeners. Each is in it once.
#[pin_data]
pub(crate) struct Listeners {
    /// Whether a process without `CAP_NET_ADMIN` over the network namespace of its socket may
    /// listen: the parameter of the module.
    unprivileged: bool,
    /// Serializes what requests and the ends of sockets change. No event takes this mutex.
    #[pin]
    inner: Mutex<Inner>,
}

/// Returns the key of a listener in [`Inner::by_socket`].
fn key(socket: &Socket) -> usize {
    core::ptr::from_ref(socket) as usize
}

impl Listeners {
    /// Returns an initializer for no listeners. `unprivileged` is the parameter of the module.
    pub(crate) fn new(unprivileged: bool) -> impl PinInit<Self> {
        pin_init!(Self {
            unprivileged,
            inner <- new_mutex!(Inner {
                by_socket: RBTree::new(),
                count: 0,
            }),
        })
    }

    /// Makes the socket of a request a listener, or changes what the listener asks for. Returns
    /// what the socket was before. If it was no listener, the answer to the request has been sent.
    ///
    /// On failure, nothing has changed. This does not wait for a grace period: an event that is
    /// being reported meanwhile may still come in the form that was asked for before.
    ///
    /// # Errors
    ///
    /// - [`EPERM`] if the socket is no listener yet, and the sender may not listen here
    ///   (`proc_event_may_view()`, or the parameter of the module).
    /// - [`EUSERS`] if the socket is no listener yet, and the user already has as many listeners as
    ///   allowed (`proc_event_charge()`).
    /// - [`ENOENT`] if the sender can see no cgroup with the id that it asks for.
    /// - [`ENOMEM`].
    ///
    /// # Context
    ///
    /// The task that sent the request. May sleep.
    pub(crate) fn listen(
        &self,
        request: &Request<'_, Connector>,
        listen: Listen,
    ) -> Result<Before> {
        // Another request on this socket may come between the look-up and the change. Then the
        // look-up is repeated.
        loop {
            let known = self
                .inner
                .lock()
                .by_socket
                .get(&key(request.socket))
                .map(|listed| listed.subscription.listener().listener.clone());

            let done = match known {
                Some(listener) => self.change(request, prepare(request, listener, listen)?),
                None => self.start(request, listen)?,
            };
            if let Some(before) = done {
                return Ok(before);
            }
        }
    }

    /// Makes events find the prepared subscription instead of the listener's former one. Returns
    /// [`None`] if the socket is no longer the listener that this was prepared for.
    fn change(
        &self,
        request: &Request<'_, Connector>,
        prepared: Prepared<Connector>,
    ) -> Option<Before> {
        let mut inner = self.inner.lock();
        let listed = inner.by_socket.get_mut(&key(request.socket))?;

        // The listener may have ended, and another one may have started on the same socket.
        if !Arc::ptr_eq(
            &listed.subscription.listener().listener,
            &prepared.listener().listener,
        ) {
            return None;
        }
        listed.subscription.replace(prepared);
        Some(Before::Listening)
    }

    /// Returns whether a socket is a listener.
    fn has(&self, socket: &Socket) -> bool {
        self.inner.lock().by_socket.get(&key(socket)).is_some()
    }

    /// Makes the socket a listener. Returns [`None`] if it became one meanwhile, even if that has
    /// ended.
    ///
    /// # Errors
    ///
    /// Those of [`Self::listen`].
    fn start(&self, request: &Request<'_, Connector>, listen: Listen) -> Result<Option<Before>> {
        if !request.may_view() || !self.unprivileged && !request.is_from_net_admin() {
            return Err(EPERM);
        }
        // A user without room for a listener does not get as far as patching code. But another
        // request may have used the last room for this socket.
        if !request.may_charge() && !self.has(request.socket) {
            return Err(EUSERS);
        }
        let listener = Arc::new(Listener::new(request)?, GFP_KERNEL_ACCOUNT)?;
        let node = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        let prepared = prepare(request, listener, listen)?;

        let mut inner = self.inner.lock();
        let Inner { by_socket, count } = &mut *inner;
        let Entry::Vacant(place) = by_socket.entry(key(request.socket)) else {
            return Ok(None);
        };
        // The socket may also have been a listener that ended: then its generation has changed.
        if !prepared.listener().listener.is_next() {
            return Ok(None);
        }

        // This is done with the lock held, so that another request on this socket finds either the
        // room or the listener. It takes no memory, since the counters of the current user exist as
        // long as its credentials.
        let charge = request.charge()?;
        let subscription = prepared.start();

        // Events find the listener now, but the socket takes none before the answer.
        subscription.listener().listener.start(request);

        let listed = Listed {
            subscription,
            _charge: charge,
        };
        place.insert(listed, node);
        *count += 1;
        Ok(Some(Before::Silent))
    }

    /// Ends the listener of `socket`, if there is one. After that, no event is queued for it.
    ///
    /// This cannot fail, allocates nothing, and does not wait for events that are being reported.
    ///
    /// # Context
    ///
    /// Process context. May sleep, for the mutex only.
    pub(crate) fn end(&self, socket: &Socket) {
        let mut inner = self.inner.lock();

        if let Some(listed) = inner.by_socket.remove(&key(socket)) {
            inner.count -= 1;
            drop(listed);
            // This is done with the lock held, because otherwise the socket could become a
            // listener again in between. Events that have found the ended listener, but are
            // not queued yet, are dropped.
            socket.next_generation();
        }
    }

    /// Starts to report the existing processes to the reader of the socket of a request. The answer
    /// to the request follows them.
    ///
    /// # Errors
    ///
    /// - [`ENOTCONN`] if the socket is no listener.
    /// - [`EBUSY`] if an earlier state on this socket has not ended.
    /// - [`ENOMEM`].
    ///
    /// # Context
    ///
    /// The task that sent the request. May sleep.
    pub(crate) fn start_state(&self, request: &Request<'_, Connector>) -> Result {
        let subscriber = self
            .inner
            .lock()
            .by_socket
            .get(&key(request.socket))
            .map(|listed| listed.subscription.listener().clone())
            .ok_or(ENOTCONN)?;

        request.dump(KBox::new(
            State::new(request, subscriber),
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// Returns the next listeners after the key `last`, as many as a [`Piece`] can hold.
    fn some_after(&self, last: usize) -> Piece {
        let mut inner = self.inner.lock();
        let mut piece = Piece::default();
        let mut cursor = inner.by_socket.cursor_lower_bound_mut(&(last + 1));

        for slot in &mut piece {
            let Some(current) = cursor else { break };
            let (key, listed) = current.current();
            let subscriber = listed.subscription.listener();

            *slot = Some((*key, subscriber.listener.clone(), subscriber.listen));
            cursor = current.move_next();
        }
        piece
    }
}

/// A piece of the listing: the keys of listeners, the listeners, and what they asked for.
type Piece = [Option<(usize, Arc<Listener>, Listen)>; 16];

/// The kinds of events, and the bits that name them in a mask.
const KINDS: [(Kind, u32); 10] = [
    (Kind::Fork, bits::FORK),
    (Kind::Exec, bits::EXEC),
    (Kind::Uid, bits::UID),
    (Kind::Gid, bits::GID),
    (Kind::Sid, bits::SID),
    (Kind::Ptrace, bits::PTRACE),
    (Kind::Comm, bits::COMM),
    (Kind::Coredump, bits::COREDUMP),
    (Kind::Exit, bits::EXIT),
    (Kind::SessionEnd, bits::SESSION_END),
];

/// Prepares a subscription: what events are to find of a listener.
///
/// # Errors
///
/// [`ENOENT`] as for [`Subscriber::new`], or [`ENOMEM`].
///
/// # Context
///
/// The task that sent the request, without the mutex. May sleep, and patches code if no other
/// listener has asked for a kind of event.
fn prepare(
    request: &Request<'_, Connector>,
    listener: Arc<Listener>,
    listen: Listen,
) -> Result<Prepared<Connector>> {
    let kept = listener.clone();
    let wanted = KINDS
        .into_iter()
        .filter(|(_, event)| listen.mask.has(*event));

    request.subscription(
        kept.view.pids(),
        wanted.map(|(kind, _)| kind).collect(),
        Subscriber::new(listener, listen)?,
    )
}

/// The listing in debugfs. It is written in pieces, and the mutex is not held between them, so that
/// requests do not wait for it. A listener that starts or ends meanwhile may be in it or not.
impl fmt::Display for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = 0;

        let count = self.inner.lock().count;
        writeln!(f, "listeners: {count}")?;
        writeln!(f, "{LISTING_HEAD}")?;
        loop {
            let piece = self.some_after(last);

            for (key, listener, listen) in piece.iter().flatten() {
                let (mask, flags) = (listen.mask.bits(), listen.flags.bits());
                let cgroup = listen.cgroup_id;

                f.write_fmt(fmt!(
                    "{} {mask:#010x} {flags:#010x} {cgroup:>10}\n",
                    **listener
                ))?;
                last = *key;
            }
            if piece.iter().any(Option::is_none) {
                return Ok(());
            }
        }
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
