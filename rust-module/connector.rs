// SPDX-License-Identifier: GPL-2.0

//! The handler of the kernel's hooks and of user space's requests.

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
#[derive(Clone, Copy, Default)]
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
            None => Self::default(),
        }
    }

    #[inline]
    fn seen_from(self, view: &View) -> wire::Ids {
        wire::Ids {
            pid: view.number(self.thread),
            tgid: view.number(self.group),
        }
    }

    /// Whether the thread leads its group, and so stands for the process.
    #[inline]
    fn are_of_leader(self) -> bool {
        self.thread.map(core::ptr::from_ref) == self.group.map(core::ptr::from_ref)
    }
}

/// Whom an event is about.
#[derive(Clone, Copy)]
struct Subject<'a> {
    ids: Ids<'a>,
    task: &'a Task,
    /// The parent or tracer, if the event names one.
    other: Ids<'a>,
}

impl<'a> Subject<'a> {
    /// A task, in an event that names nobody else.
    #[inline]
    fn new(task: &'a Task, rcu: &'a rcu::Guard) -> Self {
        Self {
            ids: Ids::of(task, rcu),
            task,
            other: Ids::default(),
        }
    }

    /// The same, in an event that names somebody else.
    #[inline]
    fn with(self, other: Ids<'a>) -> Self {
        Self { other, ..self }
    }

    /// When the process started, in nanoseconds of `CLOCK_BOOTTIME`; [`None`] if that is not known
    /// any more.
    #[inline]
    fn start_ns(&self, rcu: &rcu::Guard) -> Option<u64> {
        // A leader may have been released, when the process has ended.
        if self.ids.are_of_leader() {
            return Some(self.task.start_boottime());
        }
        self.task.group_leader(rcu).map(Task::start_boottime)
    }
}

/// What is found out about a subject when the first listener wants to know it.
struct Details<'a, 'b> {
    subject: &'b Subject<'a>,
    rcu: &'b rcu::Guard,
    place: Option<Place<'b>>,
    /// When the process started, as soon as the message says which one it is.
    start_ns: Option<Option<u64>>,
}

impl<'a, 'b> Details<'a, 'b> {
    #[inline]
    fn of(subject: &'b Subject<'a>, rcu: &'b rcu::Guard) -> Self {
        Self {
            subject,
            rcu,
            place: None,
            start_ns: None,
        }
    }

    #[inline]
    fn place(&mut self) -> Place<'b> {
        let (task, rcu) = (self.subject.task, self.rcu);

        *self.place.get_or_insert_with(|| Place::of(task, rcu))
    }

    /// Says in a message who the subject is, in this view.
    fn identify(&mut self, message: &mut Message, view: &View) {
        let number = |id: Option<&Pid>| id.map_or(0, Pid::inode_number);
        let Subject { ids, other, .. } = *self.subject;

        let start_ns = match self.start_ns {
            Some(start_ns) => start_ns,
            None => {
                message.identify(number(ids.group), number(ids.thread), self.place().id());
                *self.start_ns.insert(self.subject.start_ns(self.rcu))
            }
        };
        // Who can't be seen has no number.
        let other = other.group.filter(|id| view.number(Some(id)) != 0);

        message.identify_for(
            number(other),
            start_ns.map_or(0, |time| view.boottime_ns(time)),
        );
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
        subject: &Subject<'_>,
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
        subject: &Subject<'_>,
        meant: impl Fn(&Subscriber) -> bool,
        event: impl Fn(wire::Ids, &View) -> Event,
    ) {
        let Some(thread) = subject.ids.thread else {
            return;
        };
        let mut message = Message::new(section.cpu().as_u32(), now_ns());
        let mut details = Details::of(subject, section.rcu());
        let cpu = section.cpu_offset();

        for (namespace, pid) in thread.numbers() {
            let Some(subscribers) = section.subscribers(namespace) else {
                continue;
            };
            // Most of a namespace's listeners have one view, and so get one encoding.
            let mut told: Option<&View> = None;
            // What flags a listener has to be looked at for: the identity is in the message as soon
            // as one of a view wanted it.
            let mut special = Flags::CGROUP;

            for subscriber in subscribers.to(kind).filter(|subscriber| meant(subscriber)) {
                let listener = &*subscriber.listener;
                let flags = subscriber.listen.flags;
                let view = &listener.view;

                if flags.contain_any(special) {
                    if flags.contain(Flags::CGROUP) && !subscriber.scope.has(details.place()) {
                        continue;
                    }
                    if flags.contain(Flags::IDENTITY) && told.is_some() {
                        details.identify(&mut message, view);
                        special = Flags::CGROUP;
                    }
                }
                if !told.is_some_and(|told| told.is_alike(view)) {
                    let tgid = view.number(subject.ids.group);
                    message.tell(&event(wire::Ids { pid, tgid }, view));
                    told = Some(view);
                    special = Flags::CGROUP;
                    if flags.contain(Flags::IDENTITY) {
                        details.identify(&mut message, view);
                    } else {
                        special = special.with(Flags::IDENTITY);
                    }
                }
                subscriber.send(&mut message, cpu);
            }
        }
    }

    /// Sends the end of a thread or a process with this code and signal, to those who are `meant`.
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

/// Whether a subscriber wants to hear of threads that begin and end, and not of processes alone.
#[inline]
fn wants_threads(subscriber: &Subscriber) -> bool {
    !subscriber.listen.flags.contain(Flags::PROCESSES)
}

impl Handler for Connector {
    type OwnerModule = LocalModule;
    type Listener = Subscriber;

    fn fork(&self, section: &Section<'_, Self>, child: &Task) {
        let parent = Ids::of_parent(child, section.rcu());
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

    fn exec(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());

        self.report(section, Kind::Exec, &subject, |process, _| Event::Exec {
            process,
        });
    }

    fn uid(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());
        let ids = task.cred_ids(section.rcu());

        self.report(section, Kind::Uid, &subject, |process, view| Event::Uid {
            process,
            ruid: view.users().uid(ids.uid),
            euid: view.users().uid(ids.euid),
        });
    }

    fn gid(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());
        let ids = task.cred_ids(section.rcu());

        self.report(section, Kind::Gid, &subject, |process, view| Event::Gid {
            process,
            rgid: view.users().gid(ids.gid),
            egid: view.users().gid(ids.egid),
        });
    }

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

    fn comm(&self, section: &Section<'_, Self>, task: &Task) {
        let subject = Subject::new(task, section.rcu());
        let comm = task.comm();

        self.report(section, Kind::Comm, &subject, |process, _| Event::Comm {
            process,
            comm,
        });
    }

    fn coredump(&self, section: &Section<'_, Self>, task: &Task) {
        let parent = Ids::of_parent(task, section.rcu());
        let subject = Subject::new(task, section.rcu()).with(parent);

        self.report(section, Kind::Coredump, &subject, |process, view| {
            Event::Coredump {
                process,
                parent: parent.seen_from(view),
            }
        });
    }

    fn thread_exit(&self, section: &Section<'_, Self>, task: &Task) {
        let parent = Ids::of_parent(task, section.rcu());
        let subject = Subject::new(task, section.rcu()).with(parent);
        let status = (task.exit_code(), task.exit_signal());

        self.report_exit(section, &subject, status, wants_threads);
    }

    fn process_exit(&self, section: &Section<'_, Self>, info: &ExitInfo) {
        let subject = Subject {
            ids: Ids {
                thread: info.thread_group(),
                group: info.thread_group(),
            },
            task: info.leader(),
            other: Ids {
                thread: info.parent(),
                group: info.parent_group(),
            },
        };
        let status = (info.exit_code(), info.exit_signal());

        self.report_exit(section, &subject, status, |_| true);
    }

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
