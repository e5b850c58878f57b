// SPDX-License-Identifier: GPL-2.0
//! Events across the border of a pid or user namespace (C21, C22).

use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Gid, Pid, Uid, getpgrp, getsid, setresgid, setresuid, setsid};

use crate::child::{self, Gate, own_pid};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::container::{
    ALL, Container, FIRST_ID, Handover, IDS, NET, PID, USER, numbers_at, require,
};
use crate::support::process::{ignore_children, pause_for_ever, status, succeed};
use crate::support::scenario::{comm, exit, expect_exactly, mark, own_task};
use crate::support::sender::OVERFLOW_ID;
use crate::support::stock::NO_NETWORK_NAMESPACES;
use crate::support::tracer::trace;
use crate::test;
use crate::wire::{Event, LISTEN, Left, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().stock_fails(NO_NETWORK_NAMESPACES).of([
    test!(fork_into_a_new_pid_namespace_has_the_number_outside)
        .stock_passes()
        .covers(&[Line::C21]),
    test!(fork_after_unshare_has_the_number_outside)
        .stock_passes()
        .covers(&[Line::C21]),
    test!(forks_into_nested_pid_namespaces_have_the_number_in_between)
        .covers(&[Line::C21, Line::C22]),
    test!(a_parent_outside_is_0).covers(&[Line::C21]),
    test!(a_session_outside_is_0).covers(&[Line::C11, Line::C21]),
    test!(a_tracer_outside_is_0).covers(&[Line::C12, Line::C21]),
    test!(the_parent_of_a_coredump_outside_is_0).covers(&[Line::C14, Line::C21]),
    test!(a_process_that_entered_a_pid_namespace_is_not_seen_in_it).covers(&[Line::C22]),
    test!(a_process_that_entered_a_pid_namespace_listens_outside)
        .stock_passes()
        .covers(&[Line::C21]),
    test!(an_auto_reaped_child_keeps_its_numbers).covers(&[Line::C15, Line::C21]),
    test!(the_end_of_the_first_process_reports_each_exit_once)
        .limit(Duration::from_secs(20))
        .covers(&[Line::C21, Line::C22, Line::C45]),
    test!(the_end_of_an_outer_namespace_reports_each_exit_within_once)
        .limit(Duration::from_secs(20))
        .covers(&[Line::C21, Line::C22, Line::C45]),
    test!(an_orphan_ends_as_a_child_of_its_first_process).covers(&[Line::C15, Line::C21]),
    test!(ids_are_those_of_the_listeners_user_namespace)
        .stock_fails("LISTEN from another user namespace is ignored")
        .covers(&[Line::C21]),
    test!(ids_are_the_hosts_where_only_the_pid_namespace_was_joined)
        .covers(&[Line::C21, Line::C46]),
]);

/// Has to be called before a child is reaped. The unpatched kernel may report an exit after the child
/// was reaped, and does not know the parent then.
fn wait_for_exit(witness: &mut Listener, child: Task) -> TestResult {
    witness.wait_for("the exit", |received| received.event.subject() == child)?;
    Ok(())
}

fn fork_into_a_new_pid_namespace_has_the_number_outside() -> TestResult {
    let mut outside = Listener::listen(mask::FORK | mask::EXIT)?;
    let mut witness = Listener::listen(mask::EXIT)?;
    let container = Container::start(PID, || expect_eq("own id", own_pid(), 1))?;
    let child = container.task();
    wait_for_exit(&mut witness, child)?;
    container.finish()?;
    let parent = own_task();
    let expected = [Event::Fork { parent, child }, exit(child, 0, parent)];
    expect_exactly("outside", &mut outside, &expected, |event| {
        event.subject() == child
    })
}

fn fork_after_unshare_has_the_number_outside() -> TestResult {
    require(PID)?;
    let mut outside = Listener::listen(mask::FORK | mask::EXIT)?;
    let mut witness = Listener::listen(mask::EXIT)?;
    let (number, reported) = (Gate::new()?, Gate::new()?);
    let maker = child::fork(|| {
        status(|| {
            unshare(PID)?;
            let first = child::fork(|| status(|| expect_eq("own id", own_pid(), 1)))?;
            number.open(first.pid().as_raw())?;
            reported.pass()?;
            succeed(first)
        })
    })?;
    let parent = Task::leader(maker.pid().as_raw());
    let child = Task::leader(number.pass()?);
    wait_for_exit(&mut witness, child)?;
    reported.open(0)?;
    succeed(maker)?;
    let expected = [Event::Fork { parent, child }, exit(child, 0, parent)];
    expect_exactly("outside", &mut outside, &expected, |event| {
        event.subject() == child
    })
}

fn forks_into_nested_pid_namespaces_have_the_number_in_between() -> TestResult {
    for fork in [
        fork_into_a_new_pid_namespace_has_the_number_outside,
        fork_after_unshare_has_the_number_outside,
    ] {
        Container::start(PID | NET, fork)?.finish()?;
    }
    Ok(())
}

/// A process in a container whose parent is outside.
struct Visitor {
    /// The process, in the numbers inside.
    inner: Task,
    /// The process, in the numbers outside.
    outer: Task,
    /// Its parent, in the numbers outside.
    parent: Task,
}

/// Runs a function in a visitor of a container, after `meanwhile` was called with its pid outside.
fn visit(
    container: &Container,
    kinds: CloneFlags,
    meanwhile: impl FnOnce(Pid) -> TestResult,
    function: impl FnOnce() -> TestResult,
) -> Result<Visitor, Failure> {
    let (ready, go_on) = (Gate::new()?, Gate::new()?);
    let parent = container.spawn_in(kinds, || {
        ready.open(own_pid())?;
        go_on.pass()?;
        function()
    })?;
    let inner = ready.pass()?;
    let outer = container.outer(inner)?;
    meanwhile(Pid::from_raw(outer))?;
    go_on.open(0)?;
    let parent_task = Task::leader(parent.pid().as_raw());
    succeed(parent)?;
    Ok(Visitor {
        inner: Task::leader(inner),
        outer: Task::leader(outer),
        parent: parent_task,
    })
}

/// A container, and listeners inside and outside.
fn stage(mask: u32) -> Result<(Container, Listener, Listener), Failure> {
    let container = Container::idle(ALL)?;
    let inside = container.listen(mask)?;
    Ok((container, inside, Listener::listen(mask)?))
}

/// Expects these events about a visitor, and no others, inside and outside.
fn expect_both(
    visitor: &Visitor,
    (inside, in_there): (&mut Listener, &[Event]),
    (outside, out_here): (&mut Listener, &[Event]),
) -> TestResult {
    expect_exactly("inside", inside, in_there, |event| {
        event.subject() == visitor.inner
    })?;
    expect_exactly("outside", outside, out_here, |event| {
        event.subject() == visitor.outer
    })
}

fn a_parent_outside_is_0() -> TestResult {
    let (container, mut inside, mut outside) = stage(mask::FORK | mask::EXIT)?;
    let visitor = visit(&container, ALL, |_| Ok(()), || Ok(()))?;
    let events = |parent, child| [Event::Fork { parent, child }, exit(child, 0, parent)];
    expect_both(
        &visitor,
        (&mut inside, &events(Task::NONE, visitor.inner)),
        (&mut outside, &events(visitor.parent, visitor.outer)),
    )
}

fn a_session_outside_is_0() -> TestResult {
    let (container, mut inside, mut outside) = stage(mask::SID)?;
    let visitor = visit(&container, ALL, |_| Ok(()), || Ok(setsid().map(drop)?))?;
    let left = Left {
        parent_pid: visitor.parent.pid,
        parent_tgid: visitor.parent.tgid,
        session: getsid(None)?.as_raw(),
        process_group: getpgrp().as_raw(),
    };
    let event = |task, left| [Event::Sid { task, left }];
    expect_both(
        &visitor,
        (&mut inside, &event(visitor.inner, Left::default())),
        (&mut outside, &event(visitor.outer, left)),
    )
}

fn a_tracer_outside_is_0() -> TestResult {
    let (container, mut inside, mut outside) = stage(mask::PTRACE)?;
    let visitor = visit(&container, ALL, trace, || Ok(()))?;
    let events = |task, tracer| [tracer, Task::NONE].map(|tracer| Event::Ptrace { task, tracer });
    expect_both(
        &visitor,
        (&mut inside, &events(visitor.inner, Task::NONE)),
        (&mut outside, &events(visitor.outer, own_task())),
    )
}

fn the_parent_of_a_coredump_outside_is_0() -> TestResult {
    let (container, mut inside, mut outside) = stage(mask::COREDUMP)?;
    let (ready, go_on) = (Gate::new()?, Gate::new()?);
    let parent = child::fork(|| {
        status(|| {
            container.enter(ALL)?;
            let child = child::fork(|| {
                status(|| {
                    ready.open(own_pid())?;
                    go_on.pass()?;
                    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
                    Ok(raise(Signal::SIGQUIT)?)
                })
            })?;
            let ended = WaitStatus::Signaled(child.pid(), Signal::SIGQUIT, false);
            expect_eq("the end", child.wait()?, ended)
        })
    })?;
    let inner = ready.pass()?;
    let visitor = Visitor {
        inner: Task::leader(inner),
        outer: Task::leader(container.outer(inner)?),
        parent: Task::leader(parent.pid().as_raw()),
    };
    go_on.open(0)?;
    succeed(parent)?;
    let event = |task, parent| [Event::Coredump { task, parent }];
    expect_both(
        &visitor,
        (&mut inside, &event(visitor.inner, Task::NONE)),
        (&mut outside, &event(visitor.outer, visitor.parent)),
    )
}

fn a_process_that_entered_a_pid_namespace_is_not_seen_in_it() -> TestResult {
    let (container, mut inside, mut outside) = stage(mask::COMM)?;
    let entering = child::fork(|| {
        status(|| {
            container.enter(ALL)?;
            Ok(mark("entered")?)
        })
    })?;
    let task = Task::leader(entering.pid().as_raw());
    succeed(entering)?;
    let comm = comm("entered");
    let expected = [Event::Comm { task, comm }];
    expect_exactly("outside", &mut outside, &expected, |event| {
        event.subject() == task
    })?;
    expect_exactly("inside", &mut inside, &[], |_| true)
}

fn a_process_that_entered_a_pid_namespace_listens_outside() -> TestResult {
    let container = Container::idle(PID)?;
    let entering = child::fork(|| {
        status(|| {
            container.enter(PID)?;
            let mut listener = Listener::listen(mask::COMM)?;
            mark("entered")?;
            let (task, comm) = (own_task(), comm("entered"));
            expect_exactly("own", &mut listener, &[Event::Comm { task, comm }], |_| {
                false
            })
        })
    })?;
    succeed(entering)
}

fn an_auto_reaped_child_keeps_its_numbers() -> TestResult {
    let handover = Handover::new()?;
    let (ready, go_on) = (Gate::new()?, Gate::new()?);
    let mut outside = Listener::listen(mask::EXIT)?;
    let container = Container::start(ALL, || {
        handover.listen(&[LISTEN, mask::EXIT])?;
        ignore_children()?;
        let child = child::fork(|| go_on.pass().map_or(1, |_| 5))?;
        ready.open(child.into_pid().as_raw())?;
        pause_for_ever()
    })?;
    let mut inside = handover.receive_from(&container)?;
    let inner = ready.pass()?;
    let outer = Task::leader(container.outer(inner)?);
    go_on.open(0)?;
    let expected = [exit(Task::leader(inner), 5 << 8, Task::leader(1))];
    expect_exactly("inside", &mut inside, &expected, |_| true)?;
    let expected = [exit(outer, 5 << 8, container.task())];
    expect_exactly("outside", &mut outside, &expected, |event| {
        event.subject() == outer
    })
}

fn the_end_of_the_first_process_reports_each_exit_once() -> TestResult {
    /// Processes besides the first one.
    const PROCESSES: i32 = 3;
    let handover = Handover::new()?;
    let ready = Gate::new()?;
    let mut outside = Listener::listen(mask::EXIT)?;
    let container = Container::start(ALL, || {
        handover.listen(&[LISTEN, mask::EXIT])?;
        for _ in 0..PROCESSES {
            ready.open(child::fork(|| pause_for_ever())?.into_pid().as_raw())?;
        }
        pause_for_ever()
    })?;
    let mut inside = handover.receive_from(&container)?;
    let code = Signal::SIGKILL as u32;
    let first = container.task();
    let (mut in_there, mut out_here) = (Vec::new(), Vec::new());
    for _ in 0..PROCESSES {
        let inner = ready.pass()?;
        in_there.push(exit(Task::leader(inner), code, Task::leader(1)));
        out_here.push(exit(Task::leader(container.outer(inner)?), code, first));
    }
    in_there.push(exit(Task::leader(1), code, Task::NONE));
    out_here.push(exit(first, code, own_task()));
    container.kill()?;
    expect_exactly("inside", &mut inside, &in_there, |_| true)?;
    let ours: Vec<_> = out_here.iter().map(Event::subject).collect();
    expect_exactly("outside", &mut outside, &out_here, |event| {
        ours.contains(&event.subject())
    })
}

fn the_end_of_an_outer_namespace_reports_each_exit_within_once() -> TestResult {
    let handover = Handover::new()?;
    let ready = Gate::new()?;
    let mut outside = Listener::listen(mask::EXIT)?;
    let container = Container::start(PID | NET, || {
        handover.listen(&[LISTEN, mask::EXIT])?;
        // This level has one more process, so that numbers differ.
        let other = child::fork(|| 0)?;
        ready.open(other.pid().as_raw())?;
        succeed(other)?;
        Container::start(PID | NET, || {
            handover.listen(&[LISTEN, mask::EXIT])?;
            child::fork(|| pause_for_ever())?.into_pid();
            ready.open(0)?;
            pause_for_ever()
        })?
        .finish()
    })?;
    let mut between = handover.receive_from(&container)?;
    let mut within = handover.receive_from(&container)?;
    // EXIT is reported even after the process was reaped.
    let expected = [exit(Task::leader(ready.pass()?), 0, Task::leader(1))];
    expect_exactly("the other", &mut between, &expected, |_| true)?;
    ready.pass()?;
    // The inner namespace's first process and its child, on each level from here on.
    let (firsts, children) = (numbers_at(2, 1)?, numbers_at(2, 2)?);
    let parents = [container.task(), Task::leader(1), Task::NONE];
    container.kill()?;
    let code = Signal::SIGKILL as u32;
    let listeners = [&mut outside, &mut between, &mut within];
    for (level, listener) in listeners.into_iter().enumerate() {
        let (first, child) = (Task::leader(firsts[level]), Task::leader(children[level]));
        let parent = parents[level];
        let mut expected = vec![exit(child, code, first), exit(first, code, parent)];
        match level {
            0 => expected.push(exit(parent, code, own_task())),
            1 => expected.push(exit(parent, code, Task::NONE)),
            _ => {}
        }
        let ours: Vec<_> = expected.iter().map(Event::subject).collect();
        expect_exactly(&format!("level {level}"), listener, &expected, |event| {
            level > 0 || ours.contains(&event.subject())
        })?;
    }
    Ok(())
}

fn an_orphan_ends_as_a_child_of_its_first_process() -> TestResult {
    let handover = Handover::new()?;
    let (left, ready, go_on) = (Gate::new()?, Gate::new()?, Gate::new()?);
    let mut outside = Listener::listen(mask::EXIT)?;
    let container = Container::start(ALL, || {
        handover.listen(&[LISTEN, mask::EXIT])?;
        let parent = child::fork(|| {
            status(|| {
                let orphan = child::fork(|| status(|| Ok(go_on.pass().map(drop)?)))?;
                Ok(ready.open(orphan.into_pid().as_raw())?)
            })
        })?;
        left.open(parent.pid().as_raw())?;
        succeed(parent)?;
        pause_for_ever()
    })?;
    let mut inside = handover.receive_from(&container)?;
    let parent = Task::leader(left.pass()?);
    let expected = [exit(parent, 0, Task::leader(1))];
    expect_exactly("its parent", &mut inside, &expected, |_| true)?;
    let inner = Task::leader(ready.pass()?);
    let outer = Task::leader(container.outer(inner.pid)?);
    go_on.open(0)?;
    let expected = [exit(inner, 0, Task::leader(1))];
    expect_exactly("inside", &mut inside, &expected, |_| true)?;
    let expected = [exit(outer, 0, container.task())];
    expect_exactly("outside", &mut outside, &expected, |event| {
        event.subject() == outer
    })
}

/// Real ids outside, and their numbers in a container, at both ends of the mapped range.
const REAL_IDS: [(u32, u32); 4] = [
    (FIRST_ID - 1, OVERFLOW_ID),
    (FIRST_ID, 0),
    (FIRST_ID + IDS - 1, IDS - 1),
    (FIRST_ID + IDS, OVERFLOW_ID),
];

/// Sets one real id after the other, and keeps the effective ids.
fn take_real_ids() -> TestResult {
    let (same_user, same_group) = (Uid::from_raw(u32::MAX), Gid::from_raw(u32::MAX));
    for (real, _) in REAL_IDS {
        setresgid(Gid::from_raw(real), same_group, same_group)?;
        setresuid(Uid::from_raw(real), same_user, same_user)?;
    }
    Ok(())
}

/// The events of [`take_real_ids`]. `show` selects the id that the listener sees from each pair.
fn id_events(task: Task, effective: u32, show: fn((u32, u32)) -> u32) -> Vec<Event> {
    let events = REAL_IDS.into_iter().flat_map(|ids| {
        let real = show(ids);
        [
            Event::Gid {
                task,
                real,
                effective,
            },
            Event::Uid {
                task,
                real,
                effective,
            },
        ]
    });
    events.collect()
}

fn ids_are_those_of_the_listeners_user_namespace() -> TestResult {
    let container = Container::idle(USER)?;
    let mut inside = container.listen(mask::UID | mask::GID)?;
    let mut outside = Listener::listen(mask::UID | mask::GID)?;
    let child = child::fork(|| status(take_real_ids))?;
    let task = Task::leader(child.pid().as_raw());
    succeed(child)?;
    let expected = id_events(task, OVERFLOW_ID, |(_, inner)| inner);
    // Both share a pid namespace: the listener inside gets the events of the whole system, too.
    expect_exactly("inside", &mut inside, &expected, |event| {
        event.subject() == task
    })?;
    let expected = id_events(task, 0, |(outer, _)| outer);
    expect_exactly("outside", &mut outside, &expected, |event| {
        event.subject() == task
    })
}

fn ids_are_the_hosts_where_only_the_pid_namespace_was_joined() -> TestResult {
    const KINDS: u32 = mask::UID | mask::GID;
    let (container, mut inside, mut outside) = stage(KINDS)?;
    // A listener in the container's pid namespace and the host's user namespace.
    let handover = Handover::new()?;
    succeed(container.spawn_in(PID, || handover.listen(&[LISTEN, KINDS]))?)?;
    let mut between = handover.receive()?;
    // The visitor is in these namespaces, too.
    let visitor = visit(&container, PID | NET, |_| Ok(()), take_real_ids)?;
    let expected = id_events(visitor.inner, OVERFLOW_ID, |(_, inner)| inner);
    expect_exactly("inside", &mut inside, &expected, |_| true)?;
    let expected = id_events(visitor.inner, 0, |(outer, _)| outer);
    expect_exactly("in between", &mut between, &expected, |_| true)?;
    let expected = id_events(visitor.outer, 0, |(outer, _)| outer);
    expect_exactly("outside", &mut outside, &expected, |event| {
        event.subject() == visitor.outer
    })
}
