// SPDX-License-Identifier: GPL-2.0

//! One listener: a socket that asked for process events.

use crate::{
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
        Message, //
    },
};
use kernel::{
    fmt,
    net::connector::{
        Delivery,
        Generation,
        Sender,
        Socket, //
    },
    percpu::{
        CpuOffset,
        PerCpu, //
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
        atomic::{
            Atomic,
            Relaxed, //
        },
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

/// The namespaces in whose numbers a listener gets its events: those it listened from.
pub(crate) struct View {
    pids: ARef<PidNamespace>,
    users: ARef<UserNamespace>,
    /// What the time namespace adds to `CLOCK_BOOTTIME`, in nanoseconds.
    boottime_offset_ns: u64,
}

impl View {
    /// The current task's view.
    fn current() -> Result<Self> {
        Ok(Self {
            pids: current!().active_pid_ns().ok_or(ESRCH)?.into(),
            users: UserNamespace::current(),
            boottime_offset_ns: boottime_offset_ns(),
        })
    }

    /// The pid namespace.
    #[inline]
    pub(crate) fn pids(&self) -> &PidNamespace {
        &self.pids
    }

    /// The user namespace.
    #[inline]
    pub(crate) fn users(&self) -> &UserNamespace {
        &self.users
    }

    /// Whether it has the same numbers as another view from the same pid namespace.
    #[inline]
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        *self.users == *other.users && self.boottime_offset_ns == other.boottime_offset_ns
    }

    /// A time by `CLOCK_BOOTTIME`, in nanoseconds, in this view.
    pub(crate) fn boottime_ns(&self, time: u64) -> u64 {
        time.wrapping_add(self.boottime_offset_ns)
    }

    /// The number of an id in this view: 0 if it can't be seen, or is of no task any more.
    #[inline]
    pub(crate) fn number(&self, id: Option<&Pid>) -> i32 {
        id.map_or(0, |id| id.nr_ns(&self.pids))
    }
}

/// What a listener was sent from one CPU.
///
/// Written in a [`Section`](kernel::proc_events::Section) on that CPU alone, so that plain loads
/// and stores are enough; atomic because others may read them meanwhile.
struct Account {
    /// The number of the first message.
    first: Atomic<u32>,
    /// The number of the next message, before it is cut to 32 bits.
    next: Atomic<u64>,
    /// How many events found no room or no memory.
    lost: Atomic<u64>,
}

impl Account {
    fn new() -> Self {
        Self {
            first: Atomic::new(0),
            next: Atomic::new(0),
            lost: Atomic::new(0),
        }
    }

    /// Lets the numbers start at `seq`.
    fn start_at(&self, seq: u32) {
        self.first.store(seq, Relaxed);
        self.next.store(seq.into(), Relaxed);
    }

    /// How many events found no room or no memory.
    fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// How many events were queued: those that were numbered, and not lost. While events are sent,
    /// the counters may be of different moments, but not so that there is less than none.
    fn delivered(&self) -> u64 {
        let numbered = self.next.load(Relaxed) - u64::from(self.first.load(Relaxed));

        numbered.saturating_sub(self.lost())
    }
}

/// A listener as events find it, with what it asked for last.
#[derive(Clone)]
pub(crate) struct Subscriber {
    pub(crate) listener: Arc<Listener>,
    pub(crate) listen: Listen,
    /// Which cgroup `listen` is about.
    pub(crate) scope: Scope,
}

impl Subscriber {
    /// # Errors
    ///
    /// [`ENOENT`] if the current task can see no cgroup of the id that is asked for.
    pub(crate) fn new(listener: Arc<Listener>, listen: Listen) -> Result<Self> {
        Ok(Self {
            listener,
            listen,
            scope: Scope::of(&listen)?,
        })
    }
}

/// A socket that listens.
pub(crate) struct Listener {
    socket: ARef<Socket>,
    pub(crate) view: View,
    /// The socket's, for as long as this is a listener.
    generation: Generation,
    /// Who events are from, in the view; [`None`] while that may change.
    sender: Option<Sender>,
    accounts: PerCpu<Account>,
    /// The user who listened first, against whose limit it counts.
    user: Kuid,
    /// The process that listened first, as the initial pid namespace numbers it.
    process: i32,
    port_id: u32,
}

impl Listener {
    /// The listener that a request makes of its socket, with the current task's view. May sleep.
    pub(crate) fn new(request: &Request<'_, Connector>) -> Result<Self> {
        let view = View::current()?;
        let generation = request.socket.generation();
        let sender = match sender_for(view.users(), generation) {
            (sender, true) => Some(sender),
            (_, false) => None,
        };

        Ok(Self {
            socket: request.socket.into(),
            view,
            generation,
            sender,
            accounts: PerCpu::new(Account::new, GFP_KERNEL_ACCOUNT)?,
            user: Kuid::current_euid(),
            process: current!().tgid(),
            port_id: request.port_id,
        })
    }

    /// Who events are from, where that may change.
    #[cold]
    fn sender_now(&self) -> Sender {
        sender_for(self.view.users(), self.generation).0
    }

    /// Who events are from.
    pub(crate) fn sender(&self) -> Sender {
        self.sender.unwrap_or_else(|| self.sender_now())
    }

    #[inline(always)]
    fn deliver(&self, sender: &Sender, message: &[u8], flags: Flags) -> Result<Delivery> {
        if flags.contain(Flags::BATCH) {
            self.socket.deliver_batch(sender, message, GFP_NOWAIT)
        } else {
            self.socket.deliver(sender, message, GFP_NOWAIT)
        }
    }

    /// Numbers an event of this CPU, sends it in the form that `flags` ask for, and accounts for
    /// it. In a section, which tells where this CPU's values are.
    #[inline(always)]
    pub(crate) fn send(&self, message: &mut Message, flags: Flags, cpu: CpuOffset) {
        let account = self.accounts.at(cpu);
        let next = account.next.load(Relaxed);
        message.number(next as u32);

        let other;
        let sender = match &self.sender {
            Some(sender) => sender,
            None => {
                other = self.sender_now();
                &other
            }
        };

        // Two calls, so that each has a length that the compiler knows.
        let delivery = if flags.contain(Flags::IDENTITY) {
            self.deliver(sender, message.with_identity(), flags)
        } else {
            self.deliver(sender, message.alone(), flags)
        };

        // What the listener's own filter drops was not to get there, and leaves no gap. Nor was
        // what it is sent when it is one no more.
        if delivery.is_ok_and(Delivery::is_unwanted) {
            return;
        }
        if delivery.map_or(true, Delivery::is_lost) {
            account.lost.store(account.lost().wrapping_add(1), Relaxed);
        }
        account.next.store(next.wrapping_add(1), Relaxed);
    }

    /// Whether the socket takes what it is sent: not after a listener that it was ended.
    pub(crate) fn is_current(&self) -> bool {
        self.socket.generation() == self.generation
    }

    /// Acknowledges the request with which this listener starts, and lets the numbers of the CPU
    /// that it happens on go on from the request's: readers that look for gaps count it in.
    pub(crate) fn acknowledge_start(&self, request: &Request<'_, Connector>) {
        request.in_section(|section| {
            self.accounts
                .this_cpu()
                .start_at(request.seq.wrapping_add(1));
            acknowledge(request, section.cpu().as_u32(), 0, GFP_NOWAIT);
        });
    }
}

/// A line of the listing in debugfs, before what the listener asked for: see [`LISTING_HEAD`].
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = |count: fn(&Account) -> u64| -> u64 { self.accounts.iter().map(count).sum() };

        write!(
            f,
            "{:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12}",
            self.port_id,
            self.process,
            self.user.into_uid_in_current_ns(),
            self.view.pids.inum(),
            self.view.users.inum(),
            self.socket.net_inum(),
            total(Account::delivered),
            total(Account::lost),
        )
    }
}

/// What the columns of a listener's line are.
pub(crate) const LISTING_HEAD: &str = concat!(
    "   port_id        pid        uid     pid_ns    user_ns     net_ns    delivered         lost",
    "       mask      flags     cgroup"
);

/// Answers a request: `errno` is positive, or 0 for success.
pub(crate) fn acknowledge(
    request: &Request<'_, Connector>,
    cpu: u32,
    errno: u32,
    flags: kernel::alloc::Flags,
) {
    let numbers = (request.seq, request.ack);
    let message = Message::answer(numbers, cpu, now_ns(), Event::ack(errno, 0, HAS_CGROUPS));

    // Whoever ends a listener meanwhile.
    let (sender, _) = sender_for(&UserNamespace::current(), Generation::ANY);

    // Should it be lost, the requester reads `ENOBUFS`.
    let _ = request.socket.deliver(&sender, message.alone(), flags);
}

/// The time that messages carry.
#[inline]
pub(crate) fn now_ns() -> u64 {
    Instant::<Monotonic>::now().as_nanos() as u64
}
