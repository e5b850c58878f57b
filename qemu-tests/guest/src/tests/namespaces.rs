// SPDX-License-Identifier: GPL-2.0
//! Every listener gets the numbers of its own namespaces, and only events that its pid namespace
//! can see (C21, C22).

use std::thread;
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::{Gid, Uid, execv, getpgrp, getsid, setresgid, setresuid, setsid};

use crate::child::{self, Gate, own_tid};
use crate::harness::{Declaration, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{
    ALL, Container, FIRST_ID, Handover, NET, PID, USER, numbers_at, open,
};
use crate::support::process::{status, succeed};
use crate::support::scenario::{comm, events, every_kind, exit, expect_exactly, mark, own_task};
use crate::support::stock::NO_NETWORK_NAMESPACES;
use crate::support::tracer::trace;
use crate::test;
use crate::wire::{Event, LISTEN, Left, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().stock_fails(NO_NETWORK_NAMESPACES).of([
    test!(every_event_has_the_listeners_numbers[all](ALL))
        .limit(Duration::from_secs(20))
        .covers(&[Line::C21, Line::C23]),
    test!(every_event_has_the_listeners_numbers[pid_alone](PID))
        .stock_fails("LISTEN from another pid namespace is ignored")
        .limit(Duration::from_secs(20))
        .covers(&[Line::C21, Line::C23]),
    test!(nothing_of_parents_and_siblings_gets_into_a_container)
        .limit(Duration::from_secs(20))
        .covers(&[Line::C22]),
    test!(a_socket_that_does_not_listen_gets_nothing_of_its_parents)
        .stock_fails("a bound socket gets the host's events with the host's pids")
        .covers(&[Line::C24]),
    test!(each_level_has_its_numbers[two](2)).covers(&[Line::C21, Line::C22]),
    test!(each_level_has_its_numbers[five](5))
        .limit(Duration::from_secs(20))
        .covers(&[Line::C21, Line::C22]),
    test!(each_level_has_its_numbers[thirty_two](DEEPEST))
        .limit(Duration::from_secs(40))
        .covers(&[Line::C21, Line::C22]),
]);

/// The user and group that a process in the container becomes, in its own numbers.
const ID: u32 = 7;

/// The exit status of a process that ends by itself.
const STATUS: u32 = 3;

/// The tasks that take part, in the numbers of one of the listeners.
struct Participants {
    /// The process that made the container.
    maker: Task,
    /// The maker's session.
    session: i32,
    /// The maker's process group.
    process_group: i32,
    /// First process of the container, and the parent of the next.
    init: Task,
    /// The process that most events are about.
    child: Task,
    /// A thread of it.
    thread: Task,
    /// A child of it.
    grandchild: Task,
    /// The listener's number for id 0 of the container.
    first_id: u32,
}

impl Participants {
    /// The events that [`perform`] raises.
    fn events(&self) -> Vec<Event> {
        let (init, child) = (self.init, self.child);
        let abort = Signal::SIGABRT as u32;
        let id = self.first_id + ID;
        vec![
            Event::Sid {
                task: init,
                left: Left {
                    parent_pid: self.maker.pid,
                    parent_tgid: self.maker.tgid,
                    session: self.session,
                    process_group: self.process_group,
                },
            },
            Event::Fork {
                parent: init,
                child,
            },
            Event::Sid {
                task: child,
                left: Left {
                    parent_pid: init.pid,
                    parent_tgid: init.tgid,
                    session: init.pid,
                    process_group: init.pid,
                },
            },
            Event::Fork {
                parent: child,
                child: self.grandchild,
            },
            // A thread's parent is that of its process.
            Event::Fork {
                parent: init,
                child: self.thread,
            },
            exit(self.grandchild, STATUS << 8, child),
            Event::Exit {
                task: self.thread,
                code: 0,
                signal: u32::MAX,
                parent: init,
            },
            Event::Gid {
                task: child,
                real: id,
                effective: id,
            },
            Event::Uid {
                task: child,
                real: id,
                effective: id,
            },
            Event::Ptrace {
                task: child,
                tracer: init,
            },
            Event::Ptrace {
                task: child,
                tracer: Task::NONE,
            },
            Event::Comm {
                task: child,
                comm: comm("every kind"),
            },
            Event::Exec { task: child },
            Event::Coredump {
                task: child,
                parent: init,
            },
            exit(child, abort, init),
            exit(init, 0, self.maker),
        ]
    }

    /// Whether an event is about one of them.
    fn includes(&self, event: &Event) -> bool {
        [self.init.tgid, self.child.tgid, self.grandchild.tgid].contains(&event.subject().tgid)
    }
}

/// The handshakes between the container and the test.
struct Handshakes {
    begin: Gate,
    /// Has the ids of the thread and the grandchild, when both are there.
    assembled: Gate,
    go_on: Gate,
    /// Lets the thread and the grandchild end.
    end: Gate,
}

/// What the container's first process does.
fn perform(handshakes: &Handshakes) -> TestResult {
    handshakes.begin.pass()?;
    setsid()?;
    let (ready, traced) = (Gate::new()?, Gate::new()?);
    let child = child::fork(|| status(|| act(handshakes, &ready, &traced)))?;
    let pid = child.pid();
    ready.pass()?;
    trace(pid)?;
    traced.open(0)?;
    let ended = child.wait()?;
    let aborted = matches!(ended, WaitStatus::Signaled(_, Signal::SIGABRT, false));
    expect(aborted, format!("an abort without core, got {ended:?}"))
}

/// What its child does.
fn act(handshakes: &Handshakes, ready: &Gate, traced: &Gate) -> TestResult {
    setsid()?;
    let there = Gate::new()?;
    let grandchild = child::fork(|| match handshakes.end.pass() {
        Ok(_) => STATUS as i32,
        Err(_) => 1,
    })?;
    let grandchild_pid = grandchild.pid();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            there.open(own_tid())?;
            handshakes.end.pass()
        });
        handshakes.assembled.open(there.pass()?)?;
        handshakes.assembled.open(grandchild_pid.as_raw())?;
        handshakes.go_on.pass()?;
        thread.join().expect("waiting does not panic")
    })?;
    let ended = grandchild.wait()?;
    expect_eq(
        "grandchild",
        ended,
        WaitStatus::Exited(grandchild_pid, STATUS as i32),
    )?;
    let (user, group) = (Uid::from_raw(ID), Gid::from_raw(ID));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    // Otherwise, only root of the initial user namespace may trace a process that changed its ids.
    prctl::set_dumpable(true)?;
    ready.open(0)?;
    traced.pass()?;
    mark("every kind")?;
    // The exit status must not depend on where the test runs.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let shell = [c"/bin/sh", c"-c", c"kill -ABRT $$"];
    execv(shell[0], &shell)?;
    Ok(())
}

/// A listener outside and one inside get the same events, with these kinds of namespaces.
fn every_event_has_the_listeners_numbers(kinds: CloneFlags) -> TestResult {
    let mut outside = Listener::listen_all()?;
    let handshakes = Handshakes {
        begin: Gate::new()?,
        assembled: Gate::new()?,
        go_on: Gate::new()?,
        end: Gate::new()?,
    };
    let handover = Handover::new()?;
    let container = Container::start(kinds, || {
        handover.listen(&[LISTEN])?;
        perform(&handshakes)
    })?;
    let mut inside = handover.receive_from(&container)?;
    events(&mut outside)?;
    handshakes.begin.open(0)?;
    let (thread, grandchild) = (handshakes.assembled.pass()?, handshakes.assembled.pass()?);
    let is_mapped = kinds.contains(USER);
    // The first processes of a pid namespace have the first numbers.
    let from_inside = Participants {
        maker: Task::NONE,
        session: 0,
        process_group: 0,
        init: Task::leader(1),
        child: Task::leader(2),
        thread: Task {
            pid: thread,
            tgid: 2,
        },
        grandchild: Task::leader(grandchild),
        first_id: 0,
    };
    let child = container.outer(2)?;
    let from_outside = Participants {
        maker: own_task(),
        session: getsid(None)?.as_raw(),
        process_group: getpgrp().as_raw(),
        init: container.task(),
        child: Task::leader(child),
        thread: Task {
            pid: container.outer(thread)?,
            tgid: child,
        },
        grandchild: Task::leader(container.outer(grandchild)?),
        first_id: if is_mapped { FIRST_ID } else { 0 },
    };
    for _ in 0..2 {
        handshakes.end.open(0)?;
    }
    handshakes.go_on.open(0)?;
    container.finish()?;
    expect_exactly("inside", &mut inside, &from_inside.events(), |_| true)?;
    expect_exactly("outside", &mut outside, &from_outside.events(), |event| {
        from_outside.includes(event)
    })
}

fn nothing_of_parents_and_siblings_gets_into_a_container() -> TestResult {
    let busy = Container::idle(ALL)?;
    let quiet = Container::idle(ALL)?;
    let mut inside = busy.listen(0)?;
    let mut beside = quiet.listen(0)?;
    let mut outside = Listener::listen_all()?;
    let parent = Task::NONE;
    // The processes that made the two listen had the number before it.
    let child = Task::leader(3);
    every_kind(&mut outside)?;
    busy.run(|| Ok(mark("busy")?))?;
    let forked = Event::Fork { parent, child };
    let marked = Event::Comm {
        task: child,
        comm: comm("busy"),
    };
    let exited = exit(child, 0, parent);
    // The process that made the socket listen ended afterwards.
    let before = exit(Task::leader(2), 0, parent);
    expect_exactly(
        "inside",
        &mut inside,
        &[before, forked, marked, exited],
        |_| true,
    )?;
    expect_exactly("beside", &mut beside, &[before], |_| true)
}

fn a_socket_that_does_not_listen_gets_nothing_of_its_parents() -> TestResult {
    // There is no network namespace, because a socket that is bound in one gets nothing from the
    // unpatched kernel.
    let container = Container::idle(PID)?;
    let handover = Handover::new()?;
    container.run(|| handover.send(&open()?))?;
    let mut bound = handover.receive()?;
    let mut outside = Listener::listen_all()?;
    every_kind(&mut outside)?;
    expect_exactly("bound only", &mut bound, &[], |_| true)
}

/// As deep as the kernel lets pid namespaces nest.
const DEEPEST: usize = 32;

/// Containers are nested, each with a listener. All listeners get the events of a process in the
/// innermost container, each in its own numbers.
fn each_level_has_its_numbers(depth: usize) -> TestResult {
    let mut listeners = vec![Listener::listen(FOLLOWED)?];
    let handover = Handover::new()?;
    let (ready, go_on) = (Gate::new()?, Gate::new()?);
    let outermost = Container::start(PID | NET, || {
        nest(1, depth, &handover, &|| {
            mark("innermost")?;
            ready.open(0)?;
            go_on.pass()?;
            Ok(())
        })
    })?;
    for _ in 0..depth {
        listeners.push(handover.receive_from(&outermost)?);
    }
    ready.pass()?;
    let (parents, children) = (numbers_at(depth, 1)?, numbers_at(depth, 2)?);
    go_on.open(0)?;
    outermost.finish()?;
    // Numbers that were the same on all levels could not be distinguished.
    let falls = children.windows(2).all(|pair| pair[0] > pair[1]);
    expect(
        falls,
        format!("other numbers on each level, got {children:?}"),
    )?;
    for (level, listener) in listeners.iter_mut().enumerate() {
        let (parent, child) = (Task::leader(parents[level]), Task::leader(children[level]));
        let expected = [
            Event::Fork { parent, child },
            Event::Comm {
                task: child,
                comm: comm("innermost"),
            },
            exit(child, 0, parent),
        ];
        expect_exactly(&format!("level {level}"), listener, &expected, |event| {
            event.subject() == child
        })?;
    }
    Ok(())
}

/// The events that the listeners of all levels ask for.
const FOLLOWED: u32 = mask::FORK | mask::COMM | mask::EXIT;

/// Listens on this level, and nests the next container in it; the innermost one runs a process.
fn nest(
    level: usize,
    depth: usize,
    handover: &Handover,
    innermost: &dyn Fn() -> TestResult,
) -> TestResult {
    // The deeper levels share no open file with this level.
    handover.listen(&[LISTEN, FOLLOWED])?;
    if level == depth {
        return succeed(child::fork(|| status(innermost))?);
    }
    // Each level has one more process, so that numbers differ.
    succeed(child::fork(|| 0)?)?;
    Container::start(PID | NET, || nest(level + 1, depth, handover, innermost))?.finish()
}
