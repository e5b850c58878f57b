// SPDX-License-Identifier: GPL-2.0

//! All listeners, by their sockets: how requests find them, and the listing in debugfs.
//!
//! Events don't come here: they find listeners by their [`Subscription`]s. What a request needs is
//! allocated before the lock is taken, so that nobody waits for another one's memory.

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
    /// Counts it against the limits of its user, while it is one.
    _charge: Charge,
}

/// The listeners, by the addresses of their sockets, which they keep.
struct Inner {
    by_socket: RBTree<usize, Listed>,
    count: usize,
}

/// The listeners, each once.
#[pin_data]
pub(crate) struct Listeners {
    /// Whether who is no administrator of the socket's network namespace may listen.
    unprivileged: bool,
    /// Serializes requests and ends.
    #[pin]
    inner: Mutex<Inner>,
}

/// What a listener has in [`Inner::by_socket`].
fn key(socket: &Socket) -> usize {
    core::ptr::from_ref(socket) as usize
}

impl Listeners {
    pub(crate) fn new(unprivileged: bool) -> impl PinInit<Self> {
        pin_init!(Self {
            unprivileged,
            inner <- new_mutex!(Inner {
                by_socket: RBTree::new(),
                count: 0,
            }),
        })
    }

    /// Makes a request's socket a listener, or changes what it asks for. Tells whether it was one
    /// before; if not, the request was acknowledged.
    ///
    /// On failure nothing has changed. May sleep, but waits for no grace period: an event that is
    /// being reported meanwhile may still come as it was asked for before.
    ///
    /// # Errors
    ///
    /// [`EPERM`] for who may not listen, [`EUSERS`] for who has too many listeners, [`ENOMEM`].
    pub(crate) fn listen(
        &self,
        request: &Request<'_, Connector>,
        listen: Listen,
    ) -> Result<Before> {
        // Another request for this socket may come between looking and doing: then look again.
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

    /// Has events find what was prepared instead of a listener's former subscription. [`None`] if
    /// it is no listener.
    fn change(
        &self,
        request: &Request<'_, Connector>,
        prepared: Prepared<Connector>,
    ) -> Option<Before> {
        let mut inner = self.inner.lock();
        let listed = inner.by_socket.get_mut(&key(request.socket))?;

        // It may have ended, and another one begun.
        if !Arc::ptr_eq(
            &listed.subscription.listener().listener,
            &prepared.listener().listener,
        ) {
            return None;
        }
        listed.subscription.replace(prepared);
        Some(Before::Listening)
    }

    /// Makes the socket a listener. [`None`] if it became one meanwhile.
    fn start(&self, request: &Request<'_, Connector>, listen: Listen) -> Result<Option<Before>> {
        if !request.may_view() || !self.unprivileged && !request.is_from_net_admin() {
            return Err(EPERM);
        }
        let charge = request.charge()?;
        let listener = Arc::new(Listener::new(request)?, GFP_KERNEL_ACCOUNT)?;
        let node = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        let prepared = prepare(request, listener, listen)?;

        let mut inner = self.inner.lock();
        // Or it was one, and ended: its generation is another now.
        if inner.by_socket.get(&key(request.socket)).is_some()
            || !prepared.listener().listener.is_current()
        {
            return Ok(None);
        }

        // Acknowledged before the first event can be sent.
        prepared.listener().listener.acknowledge_start(request);

        let listed = Listed {
            subscription: prepared.start(),
            _charge: charge,
        };
        inner
            .by_socket
            .insert(node.into_node(key(request.socket), listed));
        inner.count += 1;
        Ok(Some(Before::Silent))
    }

    /// Ends the listener that `socket` is, if it is one. Nothing is queued for it after that.
    ///
    /// Can't fail, allocates nothing and waits for no event that is being reported.
    pub(crate) fn end(&self, socket: &Socket) {
        let mut inner = self.inner.lock();

        if let Some(listed) = inner.by_socket.remove(&key(socket)) {
            inner.count -= 1;
            drop(listed);
            // With the lock held, lest the socket listens again before. What events that found the
            // listener are about to send is dropped.
            socket.next_generation();
        }
    }

    /// Has the reader of a request's socket be told which processes there are, and then the answer.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOTCONN`] if the socket is no listener, [`EBUSY`] while it is told so already,
    /// [`ENOMEM`].
    pub(crate) fn tell_state(&self, request: &Request<'_, Connector>) -> Result {
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

    /// The listeners, or some of them, that come after the one with this key, with theirs.
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

/// A piece of the listing: listeners, their keys and what they asked for.
type Piece = [Option<(usize, Arc<Listener>, Listen)>; 16];

/// The kinds of event, and the bits of a mask that name them.
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

/// Prepares what events find of a listener.
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

/// The listing in debugfs. It is written in pieces, so that requests don't wait for it: who comes
/// or goes meanwhile may be in it or not.
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
