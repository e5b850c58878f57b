// SPDX-License-Identifier: GPL-2.0

//! One listener: a socket on which a LISTEN request succeeded.

use crate::{
    accounts::{
        Account,
        Accounts, //
    },
    cgroup::{
        Scope,
        HAS_CGROUPS, //
    },
    connector::Connector,
    control::{
        Flags,
        Listen, //
    },
    wire::{
        Event,
        Form,
        Message,
        NO_CPU, //
    },
};
use kernel::{
    cpu::CpuId,
    fmt,
    net::connector::{
        Delivery,
        Generation,
        Sender,
        Socket, //
    },
    pid::Pid,
    pid_namespace::PidNamespace,
    prelude::*,
    proc_events::{
        sender_for,
        Request, //
    },
    sync::{
        aref::ARef,
        Arc, //
    },
    task::Kuid,
    time::{
        boottime_offset_ns,
        Instant,
        Monotonic, //
    },
    user_namespace::UserNamespace,
};

/// The namespaces that determine the ids and times in a listener's events: those of the task that
/// sent the first LISTEN.
pub(crate) struct View {
    pids: ARef<PidNamespace>,
    users: ARef<UserNamespace>,
    /// The offset of `CLOCK_BOOTTIME` in the time namespace, in nanoseconds. It is added with
    /// wrapping, as it may be negative.
    boottime_offset_ns: u64,
}

impl View {
    /// Returns the view of the current task.
    ///
    /// # Errors
    ///
    /// [`ESRCH`] if the current task has no pid namespace.
    fn current() -> Result<Self> {
        Ok(Self {
            pids: current!().active_pid_ns().ok_or(ESRCH)?.into(),
            users: UserNamespace::current(),
            boottime_offset_ns: boottime_offset_ns(),
        })
    }

    /// Returns the pid namespace.
    #[inline]
    pub(crate) fn pids(&self) -> &PidNamespace {
        &self.pids
    }

    /// Returns the user namespace.
    #[inline]
    pub(crate) fn users(&self) -> &UserNamespace {
        &self.users
    }

    /// Converts a time of `CLOCK_BOOTTIME`, in nanoseconds, from the initial time namespace to this
    /// view.
    pub(crate) fn boottime_ns(&self, time: u64) -> u64 {
        time.wrapping_add(self.boottime_offset_ns)
    }

    /// Returns the number of an id in this view. It is 0 if the id is not visible in the pid
    /// namespace, or if there is no id, for example because the task was released.
    #[inline]
    pub(crate) fn number(&self, id: Option<&Pid>) -> i32 {
        id.map_or(0, |id| id.nr_ns(&self.pids))
    }
}

/// What determines, within a pid namespace, how a listener's events are encoded: subscribers get
/// the same bytes if these are equal.
///
/// Events compare it for each subscriber, so it is one word: an address, and in its low bits the
/// flags of the message's form. It holds as long as the listener exists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Encoding(usize);

impl Encoding {
    /// The encoding of no listener.
    pub(crate) const NONE: Self = Self(0);

    /// Returns the encoding of the events of `listener`, whose flags are `flags`. The address is
    /// that of the user namespace. A listener whose start times have an offset shares its encoding
    /// with no other; it is rare.
    fn new(listener: &Listener, flags: Flags) -> Self {
        const { assert!(align_of::<UserNamespace>() > Flags::FORM_MAX) };
        const { assert!(align_of::<Listener>() > Flags::FORM_MAX) };

        let view = &listener.view;
        let address = if flags.contain(Flags::IDENTITY) && view.boottime_offset_ns != 0 {
            core::ptr::from_ref(listener) as usize
        } else {
            core::ptr::from_ref(view.users()) as usize
        };

        Self(address | flags.form())
    }
}

/// What an event finds: a listener with its last request.
///
/// The one in a subscription is dropped in a softirq, after a grace period.
#[derive(Clone)]
pub(crate) struct Subscriber {
    /// The listener, which stays the same when it sends LISTEN again.
    pub(crate) listener: Arc<Listener>,
    /// The mask, flags and cgroup of the last LISTEN.
    pub(crate) listen: Listen,
    /// The cgroup that `listen` asks for.
    pub(crate) scope: Scope,
    /// The form of its events, as `listen` asks for it.
    pub(crate) form: Form,
    /// The encoding of its events.
    pub(crate) encoding: Encoding,
}

impl Subscriber {
    /// Returns what events are to find of `listener` after it asked for `listen`.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if the current task can see no cgroup with the id in `listen`.
    ///
    /// # Context
    ///
    /// Process context, as for [`Scope::of`].
    pub(crate) fn new(listener: Arc<Listener>, listen: Listen) -> Result<Self> {
        Ok(Self {
            scope: Scope::of(&listen)?,
            form: Form::new(
                listen.flags.contain(Flags::BATCH),
                listen.flags.contain(Flags::IDENTITY),
            ),
            encoding: Encoding::new(&listener, listen.flags),
            listener,
            listen,
        })
    }

    /// Numbers an event of this CPU, sends it, and counts it. It may share a datagram with others
    /// if the subscriber asked for that.
    ///
    /// # Context
    ///
    /// In a [`Section`](kernel::proc_events::Section), whose `cpu()` is `cpu`. Does not sleep.
    #[inline(always)]
    pub(crate) fn send(&self, message: &mut Message, cpu: CpuId) {
        let listener = &*self.listener;
        // Each CPU has an account.
        let Some(account) = listener.accounts.of(cpu) else {
            return;
        };
        message.number(account.take());

        let other;
        let sender = match &listener.sender {
            Some(sender) => sender,
            None => {
                other = listener.sender_now();
                &other
            }
        };

        let message = message.bytes();
        let delivery = if self.listen.flags.contain(Flags::BATCH) {
            listener.socket.deliver_batch(sender, message, GFP_NOWAIT)
        } else {
            listener.socket.deliver(sender, message, GFP_NOWAIT)
        };

        if !delivery.is_ok_and(Delivery::is_queued) {
            correct(account, delivery);
        }
    }
}

/// A listener.
///
/// It holds references on the socket and on the namespaces of its view.
pub(crate) struct Listener {
    socket: ARef<Socket>,
    /// The view, which does not change.
    pub(crate) view: View,
    /// The generation that the socket has from the listener's start to its end.
    generation: Generation,
    /// The sender of events as this view sees it; [`None`] if that may still change. It changes
    /// once, when the user namespace gets a root.
    sender: Option<Sender>,
    /// The counters of each CPU.
    accounts: Accounts,
    /// The user that sent the first LISTEN. The listener counts against the limit of this user.
    user: Kuid,
    /// The id of the process that sent the first LISTEN, in the initial pid namespace.
    process: i32,
    /// The port id of the socket: `nl_pid` in its address.
    port_id: u32,
}

impl Listener {
    /// Makes a listener from the socket of a request, with the view of the current task.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or [`ESRCH`] if the current task has no pid namespace.
    ///
    /// # Context
    ///
    /// Process context. May sleep.
    pub(crate) fn new(request: &Request<'_, Connector>) -> Result<Self> {
        let view = View::current()?;
        let generation = request.socket.generation().next();
        let sender = match sender_for(view.users(), generation) {
            (sender, true) => Some(sender),
            (_, false) => None,
        };

        Ok(Self {
            socket: request.socket.into(),
            view,
            generation,
            sender,
            accounts: Accounts::new()?,
            user: Kuid::current_euid(),
            process: current!().tgid(),
            port_id: request.port_id,
        })
    }

    /// Returns the present sender of events, for a listener whose sender may still change.
    #[cold]
    fn sender_now(&self) -> Sender {
        sender_for(self.view.users(), self.generation).0
    }

    /// Returns the sender of events, as the listener sees it.
    pub(crate) fn sender(&self) -> Sender {
        self.sender.unwrap_or_else(|| self.sender_now())
    }

    /// Returns whether the socket has not been a listener since this one was made.
    pub(crate) fn is_next(&self) -> bool {
        self.socket.generation().next() == self.generation
    }

    /// Returns whether the listener has started and not ended: the socket takes its events.
    pub(crate) fn is_current(&self) -> bool {
        self.socket.generation() == self.generation
    }

    /// Starts this listener with the answer to the request. Events that found the listener earlier
    /// are dropped, and later ones come after the answer. The numbers of this CPU continue after
    /// `seq` of the request, so that readers that look for gaps can count the answer in.
    ///
    /// # Context
    ///
    /// Process context, not in a section, when events find the listener. The buffer of the answer
    /// is allocated with `GFP_NOWAIT`.
    pub(crate) fn start(&self, request: &Request<'_, Connector>) {
        request.in_section(|section| {
            let cpu = section.cpu();
            let answer = answer(request, cpu.as_u32(), 0);

            self.accounts.start_at(request.seq.wrapping_add(1), cpu);
            // If the answer is lost, reading the socket fails with `ENOBUFS`.
            let _ = self
                .socket
                .deliver_start(&self.sender(), answer.bytes(), GFP_NOWAIT);
        });
    }
}

/// Corrects the account whose last event was not queued.
#[cold]
fn correct(account: &Account, delivery: Result<Delivery>) {
    // An event that the filter of the socket drops takes no number, and so leaves no gap. The same
    // holds for an event that comes before the listener has started, or after it has ended.
    if delivery.is_ok_and(Delivery::is_unwanted) {
        account.give_back();
    } else {
        account.lose();
    }
}

/// A line of the listing in debugfs, up to what the listener asked for: see [`LISTING_HEAD`].
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12}",
            self.port_id,
            self.process,
            self.user.into_uid_in_current_ns(),
            self.view.pids.inum(),
            self.view.users.inum(),
            self.socket.net_inum(),
            self.accounts.delivered(),
            self.accounts.lost(),
        )
    }
}

/// The names of the columns in the lines of the listeners.
pub(crate) const LISTING_HEAD: &str = concat!(
    "   port_id        pid        uid     pid_ns    user_ns     net_ns    delivered         lost",
    "       mask      flags     cgroup"
);

/// Answers a request, also if no listener is left. `errno` is a positive error number, or 0 for
/// success.
///
/// # Context
///
/// The task that sent the request. May sleep.
pub(crate) fn acknowledge(request: &Request<'_, Connector>, errno: u32) {
    // The answer is queued in any generation of the socket, even if the listener ends meanwhile.
    let (sender, _) = sender_for(&UserNamespace::current(), Generation::ANY);
    let answer = answer(request, NO_CPU, errno);

    // If the answer is lost, reading the socket fails with `ENOBUFS`.
    let _ = request
        .socket
        .deliver_answer(&sender, answer.bytes(), GFP_KERNEL);
}

/// Returns an answer. `cpu` is the CPU whose numbers start with it, or [`NO_CPU`].
fn answer(request: &Request<'_, Connector>, cpu: u32, errno: u32) -> Message {
    let numbers = (request.seq, request.ack);

    Message::answer(numbers, cpu, now_ns(), Event::ack(errno, 0, HAS_CGROUPS))
}

/// Returns the time stamp for a message: `CLOCK_MONOTONIC`, in nanoseconds.
#[inline]
pub(crate) fn now_ns() -> u64 {
    Instant::<Monotonic>::now().as_nanos() as u64
}
