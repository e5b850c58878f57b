// SPDX-License-Identifier: GPL-2.0
//! Which processes may listen, from which namespaces, and what they see (C21, C23, C26).

use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::child::{self, Gate};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::container::{
    ALL, Container, Handover, NET, PID, USER, become_unprivileged_in, lacking, open, require,
};
use crate::support::process::{status, succeed};
use crate::support::scenario::{
    comm, events, every_kind, exit, expect_answer, expect_exactly, mark, own_task,
};
use crate::support::stock::NO_NETWORK_NAMESPACES;
use crate::test;
use crate::wire::{Event, LISTEN, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().stock_fails(NO_NETWORK_NAMESPACES).of([
    test!(listen_is_acknowledged_from_every_kind_of_namespace)
        .stock_fails(
            "LISTEN is not answered in another pid namespace, and refused in a network one",
        )
        .limit(Duration::from_secs(30))
        .covers(&[Line::C19, Line::C23, Line::C46]),
    test!(a_container_of_a_user_gets_its_own_events_alone[once](1)).covers(&[
        Line::C21,
        Line::C22,
        Line::C23,
    ]),
    test!(a_container_of_a_user_gets_its_own_events_alone[often](
        OFTEN
    ))
    .limit(Duration::from_secs(20))
    .covers(&[Line::C22]),
    test!(a_socket_from_outside_listens_inside[pid](PID))
        .stock_fails("LISTEN from another pid namespace is ignored")
        .covers(&[Line::C21, Line::C22]),
    test!(a_socket_from_outside_listens_inside[all](ALL))
        .stock_fails("LISTEN from another user namespace is ignored")
        .covers(&[Line::C21, Line::C22, Line::C23]),
    test!(a_socket_does_not_listen_from_a_sibling_container).covers(&[Line::C21, Line::C22]),
    test!(a_socket_from_inside_does_not_listen_from_outside).covers(&[Line::C21, Line::C22]),
    test!(without_user_namespaces_a_socket_sees_what_its_listener_outside_sees)
        .covers(&[Line::C21, Line::C22]),
    test!(listening_again_from_elsewhere_keeps_the_view).covers(&[Line::C18, Line::C21]),
    test!(listening_after_ignore_has_a_new_view)
        .stock_fails("LISTEN from another pid namespace is ignored")
        .covers(&[Line::C21]),
    test!(the_connector_is_listed_in_every_network_namespace)
        .stock_fails("a new network namespace has no /proc/net/connector")
        .covers(&[Line::C26]),
]);

/// Where a network namespace lists the connector's callbacks.
const CONNECTOR: &str = "net/connector";

/// The whole list: other callbacks are only for the initial network namespace.
const LISTED: &str = "Name            ID\ncn_proc         1:1\n";

/// Expects a LISTEN of this process to be answered once, with this error.
fn expect_answer_to_listen(err: u32) -> TestResult {
    let mut listener = open()?;
    expect_answer(&mut listener, &[LISTEN, mask::SID], err)?;
    expect_eq("further messages", listener.take_queued()?.len(), 0)
}

fn listen_is_acknowledged_from_every_kind_of_namespace() -> TestResult {
    for user in [CloneFlags::empty(), USER] {
        for net in [CloneFlags::empty(), NET] {
            for pid in [CloneFlags::empty(), PID] {
                let kinds = user | net | pid;
                if lacking(kinds).is_some() {
                    continue;
                }
                // A process that is cut off from the host, but not by a pid namespace, must not see it.
                let err = match kinds.contains(USER | NET) && !kinds.contains(PID) {
                    true => Errno::EPERM as u32,
                    false => 0,
                };
                // From the first process, and from one that entered.
                Container::start(kinds, || expect_answer_to_listen(err))?
                    .finish()
                    .map_err(|failure| Failure::new(format!("{kinds:?}: {failure}")))?;
                Container::idle(kinds)?
                    .run(|| expect_answer_to_listen(err))
                    .map_err(|failure| Failure::new(format!("{kinds:?}: {failure}")))?;
            }
        }
    }
    Ok(())
}

/// The events that a child of the first process raises.
fn child_events(number: i32) -> [Event; 3] {
    let (parent, child) = (Task::leader(1), Task::leader(number));
    [
        Event::Fork { parent, child },
        Event::Comm {
            task: child,
            comm: comm("inside"),
        },
        exit(child, 0, parent),
    ]
}

/// As many as a receive buffer of the default size has room for.
const OFTEN: i32 = 50;

/// An unprivileged user follows this many processes of a container, from inside, while the host is
/// busy.
fn a_container_of_a_user_gets_its_own_events_alone(children: i32) -> TestResult {
    require(ALL)?;
    let mut outside = Listener::listen_all()?;
    let (listening, go_on) = (Gate::new()?, Gate::new()?);
    let user = child::fork(|| {
        status(|| {
            become_unprivileged_in(ALL)?;
            let first = child::fork(|| {
                status(|| {
                    let mut listener = open()?;
                    let request = [LISTEN, mask::FORK | mask::COMM | mask::EXIT];
                    let requested = listener.request(&request);
                    listening.open(i32::from(requested.is_err()))?;
                    requested?;
                    go_on.pass()?;
                    let mut expected = Vec::new();
                    for number in 2..2 + children {
                        succeed(child::fork(|| status(|| Ok(mark("inside")?)))?)?;
                        expected.extend(child_events(number));
                    }
                    expect_exactly("inside", &mut listener, &expected, |_| true)
                })
            })?;
            succeed(first)
        })
    })?;
    if listening.pass()? == 0 {
        every_kind(&mut outside)?;
        go_on.open(0)?;
        for _ in 0..children {
            succeed(child::fork(|| 0)?)?;
        }
    }
    succeed(user)
}

/// Raises COMM outside and inside, and expects a listener to get only the latter. The next process
/// in the container has this number.
fn expect_view_from_inside(
    container: &Container,
    listener: &mut Listener,
    number: i32,
) -> TestResult {
    events(listener)?;
    mark("outside")?;
    container.run(|| Ok(mark("inside")?))?;
    let (task, comm) = (Task::leader(number), comm("inside"));
    expect_exactly("inside", listener, &[Event::Comm { task, comm }], |_| true)
}

/// Raises COMM outside and inside, and expects a listener to get both in the numbers outside.
fn expect_view_from_outside(container: &Container, listener: &mut Listener) -> TestResult {
    events(listener)?;
    mark("outside")?;
    let (ready, go_on) = (Gate::new()?, Gate::new()?);
    let visitor = container.spawn(|| {
        ready.open(child::own_pid())?;
        mark("inside")?;
        go_on.pass()?;
        Ok(())
    })?;
    let inner = Task::leader(ready.pass()?);
    let outer = Task::leader(container.outer(inner.pid)?);
    go_on.open(0)?;
    succeed(visitor)?;
    let expected = [(own_task(), "outside"), (outer, "inside")].map(|(task, name)| Event::Comm {
        task,
        comm: comm(name),
    });
    let ours = [own_task(), outer, inner];
    expect_exactly("outside", listener, &expected, |event| {
        ours.contains(&event.subject())
    })
}

/// A process in a container sends LISTEN on a socket from outside, which then gets what the process
/// can see.
fn a_socket_from_outside_listens_inside(kinds: CloneFlags) -> TestResult {
    let container = Container::idle(kinds)?;
    let mut socket = Listener::open()?;
    container.run(|| Ok(socket.request(&[LISTEN, mask::COMM])?))?;
    expect_view_from_inside(&container, &mut socket, 3)
}

/// A socket that a process of a container opened and bound.
fn socket_of(container: &Container) -> Result<Listener, Failure> {
    let handover = Handover::new()?;
    container.run(|| handover.send(&open()?))?;
    handover.receive()
}

/// Expects that the LISTEN that was sent before was refused, and that no other message came.
#[track_caller]
fn expect_refusal(socket: &mut Listener) -> TestResult {
    mark("not received")?;
    let messages = socket.take_queued()?;
    let messages: Vec<_> = messages.iter().map(|received| received.event).collect();
    let err = Errno::EPERM as u32;
    expect_eq("messages", messages, vec![Event::Ack { err }])
}

fn a_socket_does_not_listen_from_a_sibling_container() -> TestResult {
    let (opener, sibling) = (Container::idle(ALL)?, Container::idle(ALL)?);
    let mut socket = socket_of(&opener)?;
    sibling.run(|| Ok(socket.request(&[LISTEN, mask::COMM])?))?;
    expect_refusal(&mut socket)?;
    // From further inside, it does.
    opener.run(|| {
        unshare(USER)?;
        Ok(socket.request(&[LISTEN, mask::COMM])?)
    })?;
    expect_view_from_inside(&opener, &mut socket, 4)
}

fn a_socket_from_inside_does_not_listen_from_outside() -> TestResult {
    // The opener of the socket decides, and not the owner of the network namespace.
    for kinds in [ALL, PID | USER] {
        let container = Container::idle(kinds)?;
        let mut socket = socket_of(&container)?;
        // A process with more rights that is tricked into sending LISTEN discloses nothing.
        socket.request(&[LISTEN, mask::COMM])?;
        expect_refusal(&mut socket)?;
        container.run(|| Ok(socket.request(&[LISTEN, mask::COMM])?))?;
        expect_view_from_inside(&container, &mut socket, 4)?;
    }
    Ok(())
}

fn without_user_namespaces_a_socket_sees_what_its_listener_outside_sees() -> TestResult {
    let container = Container::idle(PID.union(NET))?;
    let mut socket = socket_of(&container)?;
    socket.request(&[LISTEN, mask::COMM])?;
    expect_view_from_outside(&container, &mut socket)
}

fn listening_again_from_elsewhere_keeps_the_view() -> TestResult {
    let container = Container::idle(ALL)?;
    // A process with more rights that is tricked into sending LISTEN again must not widen the view.
    let mut inner = container.listen(mask::SID)?;
    inner.request(&[LISTEN, mask::COMM])?;
    expect_view_from_inside(&container, &mut inner, 3)?;
    let mut outer = Listener::listen(mask::SID)?;
    container.run(|| Ok(outer.request(&[LISTEN, mask::COMM])?))?;
    expect_view_from_outside(&container, &mut outer)
}

fn listening_after_ignore_has_a_new_view() -> TestResult {
    let container = Container::idle(PID)?;
    let mut socket = Listener::listen(mask::COMM)?;
    socket.ignore()?;
    container.run(|| Ok(socket.request(&[LISTEN, mask::COMM])?))?;
    expect_view_from_inside(&container, &mut socket, 3)?;
    socket.ignore()?;
    socket.request(&[LISTEN, mask::COMM])?;
    expect_view_from_outside(&container, &mut socket)
}

fn the_connector_is_listed_in_every_network_namespace() -> TestResult {
    expect_eq(
        "the initial one",
        fs::read_to_string("/proc/self/net/connector")?.as_str(),
        LISTED,
    )?;
    for kinds in [NET, ALL] {
        let container = Container::idle(kinds)?;
        let listed = fs::read_to_string(container.proc(CONNECTOR))?;
        expect_eq(&format!("{kinds:?}"), listed.as_str(), LISTED)?;
    }
    Ok(())
}
