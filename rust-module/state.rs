// SPDX-License-Identifier: GPL-2.0

//! The state: the existing processes, for a listener that starts or has lost events.
//!
//! A listener that gets FORK and EXIT learns of every process that it can see, by the state, by its
//! FORK or by both, until the process ends: see [`begin_state`].

use crate::{
    cgroup::{
        Place,
        HAS_CGROUPS, //
    },
    connector::Connector,
    control::Flags,
    listener::{
        now_ns,
        Subscriber, //
    },
    subject::{
        Ids,
        Subject, //
    },
    wire::{
        self,
        Event,
        Form,
        Message,
        NO_CPU, //
    },
};
use kernel::{
    net::connector::{
        Datagram,
        Dump,
        Sender, //
    },
    pid::Pid,
    prelude::*,
    proc_events::{
        begin_state,
        has_ended,
        Request, //
    },
    sync::rcu,
    task::{
        might_sleep,
        Task, //
    },
};

/// How many ids are looked at in one RCU read-side critical section. With a message for each, this
/// takes some microseconds.
const IDS_AT_ONCE: usize = 64;

/// A walk over the processes that a listener can see, in ascending order of their numbers. It goes
/// on as the reader of the socket reads.
///
/// The netlink dump of the socket owns it, from the request until the answer was queued or the
/// socket is closed.
pub(crate) struct State {
    /// The listener, with its mask, flags and cgroup at the time of the request for the state.
    subscriber: Subscriber,
    /// `seq` and `ack` of the request for the state.
    request: (u32, u32),
    /// The first number that was not looked at yet.
    next: i32,
    /// How many processes were reported.
    processes: u32,
}

/// How far the walk came in one critical section.
enum Progress {
    /// There are more ids.
    More,
    /// There is no room for the next message in the datagram.
    Full,
    /// There are no more ids.
    End,
}

impl State {
    /// Returns the state for a listener that sent a request. Events must find the listener already,
    /// so that it learns of what changes during the walk.
    ///
    /// # Context
    ///
    /// Process context, for [`begin_state`], which takes `tasklist_lock` for a moment.
    pub(crate) fn new(request: &Request<'_, Connector>, subscriber: Subscriber) -> Self {
        begin_state();

        Self {
            subscriber,
            request: (request.seq, request.ack),
            next: 1,
            processes: 0,
        }
    }

    /// Puts messages about the next processes into the datagram. It looks at [`IDS_AT_ONCE`] ids at
    /// most, under RCU, and does not sleep.
    fn put_processes(&mut self, datagram: &mut Datagram<'_>, sender: &Sender) -> Progress {
        let rcu = rcu::read_lock();

        for _ in 0..IDS_AT_ONCE {
            let view = &self.subscriber.listener.view;
            let Some(id) = view.pids().id_from(self.next, &rcu) else {
                return Progress::End;
            };
            let number = view.number(Some(id));

            if let Some(message) = self.message(id, number, &rcu) {
                if !matches!(datagram.put(sender, message.bytes()), Ok(true)) {
                    return Progress::Full;
                }
                self.processes += 1;
            }
            self.next = number.saturating_add(1);
        }
        Progress::More
    }

    /// Returns the message about the process with this id. `number` is the number of the id in the
    /// listener's pid namespace. The result is [`None`] if there is no such process, or it has
    /// ended, or it is not in the listener's cgroup.
    fn message(&self, id: &Pid, number: i32, rcu: &rcu::Guard) -> Option<Message> {
        let Subscriber {
            listener,
            listen,
            scope,
            ..
        } = &self.subscriber;
        let view = &listener.view;
        let Process {
            leader,
            group,
            parent,
        } = Process::of(id, rcu)?;
        let place = Place::of(leader, rcu);
        if !scope.has(place) {
            return None;
        }

        let event = Event::Process {
            process: wire::Ids {
                pid: number,
                tgid: number,
            },
            parent: parent.seen_from(view),
            session: view.number(leader.session_id(rcu)),
            process_group: view.number(leader.process_group_id(rcu)),
        };
        let mut message = Message::answer(self.request, NO_CPU, now_ns(), event);
        let has_identity = listen.flags.contain(Flags::IDENTITY);

        message.set_form(Form::new(true, has_identity));
        message.set_multipart();
        if has_identity {
            let subject = Subject {
                ids: Ids {
                    thread: Some(group),
                    group: Some(group),
                },
                task: leader,
                leader,
                other: parent,
            };
            message.identify(subject.identity(place.id(), view));
        }
        Some(message)
    }
}

impl Dump for State {
    fn fill(&mut self, datagram: &mut Datagram<'_>) -> bool {
        let sender = self.subscriber.listener.sender();
        let errno = loop {
            if !self.subscriber.listener.is_current() {
                break ECANCELED.to_errno().unsigned_abs();
            }
            match self.put_processes(datagram, &sender) {
                Progress::More => might_sleep(),
                Progress::Full => return true,
                Progress::End => break 0,
            }
        };
        // The answer has a datagram of its own, as every answer has.
        if !datagram.is_empty() {
            return true;
        }

        let event = Event::ack(errno, self.processes, HAS_CGROUPS);
        let answer = Message::answer(self.request, NO_CPU, now_ns(), event);

        // An empty datagram has room for the answer.
        let _ = datagram.put(&sender, answer.bytes());
        false
    }
}

/// A process that has not ended.
struct Process<'a> {
    /// The thread group leader.
    leader: &'a Task,
    /// The id of the process, as the leader has it. It is the id by which the process was found,
    /// but that may have been found before its inode number was set. See [`Pid::inode_number`].
    group: &'a Pid,
    /// The ids of the parent.
    parent: Ids<'a>,
}

impl<'a> Process<'a> {
    /// Returns the process with this id; [`None`] if no process has it, or the process has ended.
    fn of(id: &Pid, rcu: &'a rcu::Guard) -> Option<Self> {
        let mut leader = id.group_leader(rcu)?;

        loop {
            if let (Some(parent), Some(group)) =
                (Ids::of_parent(leader, rcu), leader.thread_group_id(rcu))
            {
                return (!has_ended(leader, rcu)).then_some(Self {
                    leader,
                    group,
                    parent,
                });
            }
            // The leader was just released, together with the process or alone. In the latter
            // case, a thread that called exec has taken its place.
            leader = id.next_group_leader(leader, rcu)?;
        }
    }
}
