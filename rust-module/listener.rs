// SPDX-License-Identifier: GPL-2.0

//! One listener: a socket that asked for process events.

use crate::wire::{
    self,
    Message, //
};
use kernel::{
    cpu,
    net::connector::{
        Delivery,
        Socket, //
    },
    pid::Pid,
    pid_namespace::PidNamespace,
    prelude::*,
    proc_events::{
        Section,
        GROUP, //
    },
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
    },
    time::{
        Instant,
        Monotonic, //
    },
    user_namespace::UserNamespace,
};

/// The namespaces in whose numbers a listener gets its events: those it listened from.
pub(crate) struct View {
    pids: ARef<PidNamespace>,
    pub(crate) users: ARef<UserNamespace>,
}

impl View {
    /// The current task's view.
    fn current() -> Result<Self> {
        Ok(Self {
            pids: current!().active_pid_ns().ok_or(ESRCH)?.into(),
            users: UserNamespace::current(),
        })
    }

    /// The number of an id in this view: 0 if it can't be seen, or is of no task any more.
    #[inline]
    pub(crate) fn number(&self, id: Option<&Pid>) -> i32 {
        id.map_or(0, |id| id.nr_ns(&self.pids))
    }
}

/// What a listener was sent from one CPU. Padded so that no two CPUs write to one cache line.
///
/// Written in a [`Section`] on that CPU alone, so that neither field needs more than plain loads
/// and stores; atomic because others may read them meanwhile.
#[repr(align(64))]
struct Account {
    /// The number of the next message.
    seq: Atomic<u32>,
}

/// A socket that listens.
pub(crate) struct Listener {
    socket: ARef<Socket>,
    pub(crate) view: View,
    accounts: KVec<Account>,
    /// Set once, when the listener ends, in case it can't be taken off the lists at once.
    ended: Atomic<bool>,
}

impl Listener {
    /// A listener with the current task's view. May sleep.
    pub(crate) fn new(socket: &Socket) -> Result<Self> {
        let cpus = cpu::nr_cpu_ids();
        let mut accounts = KVec::with_capacity(cpus as usize, GFP_KERNEL)?;
        for _ in 0..cpus {
            let account = Account {
                seq: Atomic::new(0),
            };
            accounts.push(account, GFP_KERNEL)?;
        }

        Ok(Self {
            socket: socket.into(),
            view: View::current()?,
            accounts,
            ended: Atomic::new(false),
        })
    }

    /// Whether this is the listener with that socket.
    pub(crate) fn is(&self, socket: &Socket) -> bool {
        *self.socket == *socket
    }

    /// Sends nothing from now on.
    pub(crate) fn end(&self) {
        // Relaxed: an event that is being sent on another CPU may still arrive, as it may when
        // the listener is taken off the lists.
        self.ended.store(true, Relaxed);
    }

    /// Sends an event, and numbers it.
    #[inline]
    pub(crate) fn send(&self, section: &Section<'_>, timestamp_ns: u64, event: &wire::Event) {
        if self.ended.load(Relaxed) {
            return;
        }

        let cpu = section.cpu().as_u32();
        let Some(account) = self.accounts.get(cpu as usize) else {
            return;
        };
        let seq = account.seq.load(Relaxed);
        let message = Message::event(seq, cpu, timestamp_ns, event);

        match self.socket.deliver(GROUP, message.as_bytes(), GFP_NOWAIT) {
            // What the listener's own filter drops was not to get there, and leaves no gap.
            Ok(Delivery::Filtered) => {}
            _ => account.seq.store(seq.wrapping_add(1), Relaxed),
        }
    }

    /// Acknowledges the request with which this listener starts, and lets the numbers of the CPU
    /// that it happens on go on from the request's: readers that look for gaps count it in.
    pub(crate) fn acknowledge_start(&self, section: &Section<'_>, seq: u32, ack: u32) {
        let cpu = section.cpu().as_u32();
        if let Some(account) = self.accounts.get(cpu as usize) {
            account.seq.store(seq.wrapping_add(1), Relaxed);
        }

        let message = Message::acknowledge(seq, ack, cpu, now_ns(), 0);
        // Should it be lost, the requester reads `ENOBUFS`.
        let _ = self.socket.deliver(GROUP, message.as_bytes(), GFP_NOWAIT);
    }
}

/// The time that messages carry.
#[inline]
pub(crate) fn now_ns() -> u64 {
    Instant::<Monotonic>::now().as_nanos() as u64
}
