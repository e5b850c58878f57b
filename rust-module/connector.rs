// SPDX-License-Identifier: GPL-2.0

//! The handler of the kernel's hooks and of user space's requests.

use crate::{
    control::Command,
    listener::{
        acknowledge,
        now_ns,
        Subscriber,
        View, //
    },
    listeners::{
        Before,
        Listeners, //
    },
    wire::{
        self,
        Event,
        Message,
        NO_CPU, //
    },
    LocalModule,
};
use kernel::{
    net::connector::Socket,
    pid::Pid,
    prelude::*,
    proc_events::{
        ExitInfo,
        Handler,
        Kind,
        Request,
        Section,
        SidIds, //
    },
    sync::{
        rcu,
        Arc, //
    },
    task::Task,
};

/// The ids of a task, before they are translated for a receiver.
#[derive(Clone, Copy)]
struct Ids<'a> {
    thread: Option<&'a Pid>,
    group: Option<&'a Pid>,
}

impl<'a> Ids<'a> {
    #[inline]
    fn of(task: &Task, rcu: &'a rcu::Guard) -> Self {
        Self {
            thread: task.thread_id(rcu),
            group: task.thread_group_id(rcu),
        }
    }

    /// The ids of a task's parent: none if the task was released.
    #[inline]
    fn of_parent(task: &Task, rcu: &'a rcu::Guard) -> Self {
        match task.real_parent(rcu) {
            Some(parent) => Self::of(parent, rcu),
            None => Self {
                thread: None,
                group: None,
            },
        }
    }

    #[inline]
    fn seen_from(self, view: &View) -> wire::Ids {
        wire::Ids {
            pid: view.number(self.thread),
            tgid: view.number(self.group),
        }
    }
}

/// Turns what the hooks tell into messages to the listeners.
pub(crate) struct Connector {
    listeners: Arc<Listeners>,
}

impl Connector {
    pub(crate) fn new(listeners: Arc<Listeners>) -> Self {
        Self { listeners }
    }

    /// Sends an event to all subscribers to `kind` who can see its subject. `event` makes it of the
    /// subject's ids and the receiver's view.
    #[inline]
    fn report(
        &self,
        section: &Section<'_, Self>,
        kind: Kind,
        subject: Ids<'_>,
        event: impl Fn(wire::Ids, &View) -> Event,
    ) {
        self.report_to(section, kind, subject, |_| true, event);
    }

    /// The same, to those alone who are `meant`.
    ///
    /// An event is looked up once for each pid namespace that can see its subject, whoever else
    /// listens: its cost grows with those who get it, and with how deep the subject is nested.
    #[inline]
    fn report_to(
        &self,
        section: &Section<'_, Self>,
        kind: Kind,
        subject: Ids<'_>,
        meant: impl Fn(&Subscriber) -> bool,
        event: impl Fn(wire::Ids, &View) -> Event,
    ) {
        let Some(thread) = subject.thread else {
            return;
        };
        let mut message = Message::new(section.cpu().as_u32(), now_ns());
        let cpu = section.cpu_offset();

        for (namespace, pid) in thread.numbers() {
            let Some(subscribers) = section.subscribers(namespace) else {
                continue;
            };
            // Most of a namespace's listeners have one view, and so get one encoding.
            let mut told: Option<&View> = None;

            for subscriber in subscribers.to(kind).filter(|subscriber| meant(subscriber)) {
                let listener = &*subscriber.listener;
                let view = &listener.view;

                if told != Some(view) {
                    let tgid = view.number(subject.group);
                    message.tell(&event(wire::Ids { pid, tgid }, view));
                    told = Some(view);
                }
                listener.send(&mut message, subscriber.listen.flags, cpu);
            }
        }
    }

    /// Sends the end of a thread or a process with this code and signal.
    #[inline]
    fn report_exit(
        &self,
        section: &Section<'_, Self>,
        subject: Ids<'_>,
        parent: Ids<'_>,
        (code, signal): (i32, i32),
    ) {
        self.report_to(
            section,
            Kind::Exit,
            subject,
            |subscriber| subscriber.listen.mask.has_exit(code),
            |process, view| Event::Exit {
                process,
                exit_code: code as u32,
                exit_signal: signal as u32,
                parent: parent.seen_from(view),
            },
        );
    }
}

impl Handler for Connector {
    type OwnerModule = LocalModule;
    type Listener = Subscriber;

    fn fork(&self, section: &Section<'_, Self>, child: &Task) {
        let parent = Ids::of_parent(child, section.rcu());
        let subject = Ids::of(child, section.rcu());

        self.report(section, Kind::Fork, subject, |child, view| Event::Fork {
            parent: parent.seen_from(view),
            child,
        });
    }

    fn exec(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Ids::of(task, section.rcu());

        self.report(section, Kind::Exec, subject, |process, _| Event::Exec {
            process,
        });
    }

    fn uid(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Ids::of(task, section.rcu());
        let ids = task.cred_ids(section.rcu());

        self.report(section, Kind::Uid, subject, |process, view| Event::Uid {
            process,
            ruid: view.users().uid(ids.uid),
            euid: view.users().uid(ids.euid),
        });
    }

    fn gid(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Ids::of(task, section.rcu());
        let ids = task.cred_ids(section.rcu());

        self.report(section, Kind::Gid, subject, |process, view| Event::Gid {
            process,
            rgid: view.users().gid(ids.gid),
            egid: view.users().gid(ids.egid),
        });
    }

    fn sid(&self, section: &Section<'_, Self>, leader: &Task, ids: &SidIds) {
        let subject = Ids::of(leader, section.rcu());
        let parent = Ids {
            thread: ids.parent(),
            group: ids.parent_group(),
        };

        self.report(section, Kind::Sid, subject, |process, view| Event::Sid {
            process,
            parent: parent.seen_from(view),
            session: view.number(ids.session()),
            process_group: view.number(ids.process_group()),
        });
    }

    fn ptrace(&self, section: &Section<'_, Self>, task: &Task, tracer: Option<&Task>) {
        let subject = Ids::of(task, section.rcu());
        let tracer = tracer.map(|tracer| Ids::of(tracer, section.rcu()));

        self.report(section, Kind::Ptrace, subject, |process, view| {
            Event::Ptrace {
                process,
                tracer: tracer.map_or(wire::Ids::default(), |tracer| tracer.seen_from(view)),
            }
        });
    }

    fn comm(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Ids::of(task, section.rcu());
        let comm = task.comm();

        self.report(section, Kind::Comm, subject, |process, _| Event::Comm {
            process,
            comm,
        });
    }

    fn coredump(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Ids::of(task, section.rcu());
        let parent = Ids::of_parent(task, section.rcu());

        self.report(section, Kind::Coredump, subject, |process, view| {
            Event::Coredump {
                process,
                parent: parent.seen_from(view),
            }
        });
    }

    fn thread_exit(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Ids::of(task, section.rcu());
        let parent = Ids::of_parent(task, section.rcu());
        let status = (task.exit_code(), task.exit_signal());

        self.report_exit(section, subject, parent, status);
    }

    fn process_exit(&self, section: &Section<'_, Self>, info: &ExitInfo) {
        let subject = Ids {
            thread: info.thread_group(),
            group: info.thread_group(),
        };
        let parent = Ids {
            thread: info.parent(),
            group: info.parent_group(),
        };
        let status = (info.exit_code(), info.exit_signal());

        self.report_exit(section, subject, parent, status);
    }

    fn session_end(&self, section: &Section<'_, Self>, leader: &Task, exit_code: i32) {
        let subject = Ids::of(leader, section.rcu());
        let exit_signal = leader.exit_signal() as u32;

        self.report(section, Kind::SessionEnd, subject, |process, _| {
            Event::SessionEnd {
                process,
                exit_code: exit_code as u32,
                exit_signal,
            }
        });
    }

    fn control(&self, request: &Request<'_, Self>) {
        let result = match Command::parse(request.data) {
            Ok(Command::Listen(listen)) => match self.listeners.listen(request, listen) {
                // It was acknowledged with the place where its numbers start.
                Ok(Before::Silent) => return,
                Ok(Before::Listening) => Ok(()),
                Err(error) => Err(error),
            },
            Ok(Command::Ignore) => {
                self.listeners.end(request.socket);
                Ok(())
            }
            Err(_) => Err(EINVAL),
        };
        let errno = result.map_or_else(|error| error.to_errno().unsigned_abs(), |()| 0);

        acknowledge(request, NO_CPU, errno, GFP_KERNEL);
    }

    fn gone(&self, socket: &Socket) {
        self.listeners.end(socket);
    }
}
