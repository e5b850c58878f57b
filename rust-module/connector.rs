// SPDX-License-Identifier: GPL-2.0

//! The handler that the kernel's hooks call, and that gets the requests of user space.

use crate::{
    cgroup::{
        Place,
        HAS_CGROUPS, //
    },
    control::{
        Command,
        Flags, //
    },
    listener::{
        acknowledge,
        now_ns,
        Encoding,
        Subscriber,
        View, //
    },
    listeners::{
        Before,
        Listeners, //
    },
    subject::{
        Ids,
        Subject, //
    },
    wire::{
        self,
        Event,
        Message, //
    },
    LocalModule,
};
use kernel::{
    net::connector::Socket,
    prelude::*,
    proc_events::{
        ExitInfo,
        Handler,
        Kind,
        Request,
        Section,
        SidIds, //
    },
    sync::Arc,
    task::Task,
};

/// The message of an event, which is encoded for one listener after the other.
struct Encoder<'a> {
    message: Message,
    /// The encoding of the message.
    encoding: Encoding,
    /// The cgroup of the subject.
    place: Place<'a>,
}

impl Encoder<'_> {
    /// Encodes the event for a subscriber, unless the message is encoded for it already. `pid` is
    /// the number of the subject in the subscriber's pid namespace.
    #[inline]
    fn encode(
        &mut self,
        subscriber: &Subscriber,
        subject: &Subject<'_>,
        pid: i32,
        event: &impl Fn(wire::Ids, &View) -> Event,
    ) {
        if self.encoding == subscriber.encoding {
            return;
        }
        self.encoding = subscriber.encoding;

        let view = &subscriber.listener.view;
        // Most events are about processes with one thread, which need no second lookup.
        let tgid = if subject.ids.are_of_leader() {
            pid
        } else {
            view.number(subject.ids.group)
        };

        self.message
            .set_event(&event(wire::Ids { pid, tgid }, view));
        self.message.set_form(subscriber.form);
        if subscriber.listen.flags.contain(Flags::IDENTITY) {
            self.message
                .identify(subject.identity(self.place.id(), view));
        }
    }
}

/// Softirqs may run after so many subscribers in one pid namespace.
const SUBSCRIBERS_AT_ONCE: u32 = 32;

/// Turns the calls of the hooks into messages to the listeners.
///
/// # Context
///
/// The callbacks with a [`Section`] run in that section, under RCU and the local lock of the CPU,
/// and must not sleep. [`Handler::control`] and [`Handler::gone`] run in process context and may
/// sleep.
pub(crate) struct Connector {
    listeners: Arc<Listeners>,
}

impl Connector {
    /// Returns a handler that keeps its listeners in `listeners`.
    pub(crate) fn new(listeners: Arc<Listeners>) -> Self {
        Self { listeners }
    }

    /// Sends an event to all subscribers to `kind` that can see its subject. `event` makes the
    /// event from the numbers of the subject and the view of the receiver.
    ///
    /// # Context
    ///
    /// In a section. Does not sleep.
    #[inline]
    fn report(
        &self,
        section: &Section<'_, Self>,
        kind: Kind,
        subject: &Subject<'_>,
        event: impl Fn(wire::Ids, &View) -> Event,
    ) {
        self.report_to(section, kind, subject, |_| true, event);
    }

    /// Sends an event like [`Self::report`], but only to subscribers for which `meant` returns
    /// true.
    ///
    /// The subscribers are looked up once for each pid namespace that can see the subject. So the
    /// cost of an event grows with the number of these subscribers, and with how deep the subject's
    /// pid namespace is nested. Other listeners do not matter.
    #[inline]
    fn report_to(
        &self,
        section: &Section<'_, Self>,
        kind: Kind,
        subject: &Subject<'_>,
        meant: impl Fn(&Subscriber) -> bool,
        event: impl Fn(wire::Ids, &View) -> Event,
    ) {
        // The task may be released between the loads of its two ids.
        let (Some(thread), Some(_)) = (subject.ids.thread, subject.ids.group) else {
            return;
        };
        let cpu = section.cpu();
        let mut encoder = Encoder {
            message: Message::new(cpu.as_u32(), now_ns()),
            encoding: Encoding::NONE,
            place: Place::of(subject.task, section.rcu()),
        };

        for (namespace, pid) in thread.numbers() {
            let Some(subscribers) = section.subscribers(namespace) else {
                continue;
            };
            // A task has another number in each namespace. Most listeners of one namespace have
            // the same view and form, and so share an encoding.
            encoder.encoding = Encoding::NONE;
            let mut left = SUBSCRIBERS_AT_ONCE;

            for subscriber in subscribers.to(kind) {
                left -= 1;
                if left == 0 {
                    left = SUBSCRIBERS_AT_ONCE;
                    section.run_softirqs();
                }

                if !meant(subscriber) || !subscriber.scope.has(encoder.place) {
                    continue;
                }
                encoder.encode(subscriber, subject, pid, &event);
                subscriber.send(&mut encoder.message, cpu);
            }
        }
    }

    /// Reports the end of a thread or a process to subscribers for which `meant` returns true. The
    /// code has the format of wait(2). The signal is the one that the parent gets, -1 for none.
    #[inline]
    fn report_exit(
        &self,
        section: &Section<'_, Self>,
        subject: &Subject<'_>,
        (code, signal): (i32, i32),
        meant: impl Fn(&Subscriber) -> bool,
    ) {
        self.report_to(
            section,
            Kind::Exit,
            subject,
            |subscriber| subscriber.listen.mask.has_exit(code) && meant(subscriber),
            |process, view| Event::Exit {
                process,
                exit_code: code as u32,
                exit_signal: signal as u32,
                parent: subject.other.seen_from(view),
            },
        );
    }
}

/// Returns whether a subscriber wants forks and exits of threads, too, and not only of processes.
#[inline]
fn wants_threads(subscriber: &Subscriber) -> bool {
    !subscriber.listen.flags.contain(Flags::PROCESSES)
}

impl Handler for Connector {
    type OwnerModule = LocalModule;
    type Listener = Subscriber;

    #[inline]
    fn fork(&self, section: &Section<'_, Self>, child: &Task) {
        let parent = Ids::of_parent(child, section.rcu()).unwrap_or_default();
        let subject = Subject::new(child, section.rcu()).with(parent);
        let is_process = subject.ids.are_of_leader();

        self.report_to(
            section,
            Kind::Fork,
            &subject,
            |subscriber| is_process || wants_threads(subscriber),
            |child, view| Event::Fork {
                parent: parent.seen_from(view),
                child,
            },
        );
    }

    #[inline]
    fn exec(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());

        self.report(section, Kind::Exec, &subject, |process, _| Event::Exec {
            process,
        });
    }

    #[inline]
    fn uid(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());
        let ids = task.cred_ids(section.rcu());

        self.report(section, Kind::Uid, &subject, |process, view| Event::Uid {
            process,
            ruid: view.users().uid(ids.uid),
            euid: view.users().uid(ids.euid),
        });
    }

    #[inline]
    fn gid(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());
        let ids = task.cred_ids(section.rcu());

        self.report(section, Kind::Gid, &subject, |process, view| Event::Gid {
            process,
            rgid: view.users().gid(ids.gid),
            egid: view.users().gid(ids.egid),
        });
    }

    #[inline]
    fn sid(&self, section: &Section<'_, Self>, leader: &Task, ids: &SidIds) {
        let parent = Ids {
            thread: ids.parent(),
            group: ids.parent_group(),
        };
        let subject = Subject::new(leader, section.rcu()).with(parent);

        self.report(section, Kind::Sid, &subject, |process, view| Event::Sid {
            process,
            parent: parent.seen_from(view),
            session: view.number(ids.session()),
            process_group: view.number(ids.process_group()),
        });
    }

    #[inline]
    fn ptrace(&self, section: &Section<'_, Self>, task: &Task, tracer: Option<&Task>) {
        let tracer = tracer.map_or(Ids::default(), |tracer| Ids::of(tracer, section.rcu()));
        let subject = Subject::new(task, section.rcu()).with(tracer);

        self.report(section, Kind::Ptrace, &subject, |process, view| {
            Event::Ptrace {
                process,
                tracer: tracer.seen_from(view),
            }
        });
    }

    #[inline]
    fn comm(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());

        // Only an event that has a receiver reads the name.
        self.report(section, Kind::Comm, &subject, |process, _| Event::Comm {
            process,
            comm: task.comm(),
        });
    }

    #[inline]
    fn coredump(&self, section: &Section<'_, Self>, task: &Task) {
        let parent = Ids::of_parent(task, section.rcu()).unwrap_or_default();
        let subject = Subject::new(task, section.rcu()).with(parent);

        self.report(section, Kind::Coredump, &subject, |process, view| {
            Event::Coredump {
                process,
                parent: parent.seen_from(view),
            }
        });
    }

    #[inline]
    fn thread_exit(&self, section: &Section<'_, Self>, task: &Task) {
        let parent = Ids::of_parent(task, section.rcu()).unwrap_or_default();
        let subject = Subject::new(task, section.rcu()).with(parent);
        let status = (task.exit_code(), task.exit_signal());

        self.report_exit(section, &subject, status, wants_threads);
    }

    #[inline]
    fn process_exit(&self, section: &Section<'_, Self>, info: &ExitInfo) {
        let subject = Subject {
            ids: Ids {
                thread: info.thread_group(),
                group: info.thread_group(),
            },
            task: info.leader(),
            leader: info.leader(),
            other: Ids {
                thread: info.parent(),
                group: info.parent_group(),
            },
        };
        let status = (info.exit_code(), info.exit_signal());

        self.report_exit(section, &subject, status, |_| true);
    }

    #[inline]
    fn session_end(&self, section: &Section<'_, Self>, leader: &Task, exit_code: i32) {
        let subject = Subject::new(leader, section.rcu());
        let exit_signal = leader.exit_signal() as u32;

        self.report(section, Kind::SessionEnd, &subject, |process, _| {
            Event::SessionEnd {
                process,
                exit_code: exit_code as u32,
                exit_signal,
            }
        });
    }

    fn control(&self, request: &Request<'_, Self>) {
        let result = match Command::parse(request.data, Flags::known(HAS_CGROUPS)) {
            Ok(Command::Listen(listen)) => match self.listeners.listen(request, listen) {
                // `listen()` has sent the answer, which says where the numbers start.
                Ok(Before::Silent) => return,
                Ok(Before::Listening) => Ok(()),
                Err(error) => Err(error),
            },
            Ok(Command::Ignore) => {
                self.listeners.end(request.socket);
                Ok(())
            }
            Ok(Command::State) => match self.listeners.start_state(request) {
                // The answer comes after all processes.
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Err(_) => Err(EINVAL),
        };
        let errno = result.map_or_else(|error| error.to_errno().unsigned_abs(), |()| 0);

        acknowledge(request, errno);
    }

    fn gone(&self, socket: &Socket) {
        self.listeners.end(socket);
    }
}
