// SPDX-License-Identifier: GPL-2.0
//! A process that a user and a network namespace separate from the host, and that still shares the
//! host's pid namespace, gets no events of the host (C46). LISTEN is allowed if the process's user
//! namespace owns the pid namespace, or is above the owner. It is also allowed if this is true of the
//! user namespace that owns the network namespace of the socket.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};

use crate::child::{self, own_pid};
use crate::debugfs::{self, Listing};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::container::{
    ALL, Container, Handover, NET, PID, USER, become_root_as, become_unprivileged_in, open, require,
};
use crate::support::process::{pause_for_ever, status, succeed};
use crate::support::scenario::{ask, comm, events, expect_count, expect_exactly, mark, own_task};
use crate::test;
use crate::wire::{Event, IGNORE, LISTEN, Task, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_ANSWER)
    .covers(&[Line::C46])
    .of([
        test!(a_sandbox_that_root_made_is_refused),
        test!(a_sandbox_that_a_user_made_is_refused),
        test!(a_sandbox_within_a_container_is_refused),
        test!(the_maker_of_a_pid_namespace_is_refused_and_a_process_in_it_is_not)
            .covers(&[Line::C23]),
        test!(pid_namespaces_nested_in_a_users_container_listen).covers(&[Line::C23]),
        test!(a_process_that_joins_the_pid_namespace_of_a_container_below_listens)
            .covers(&[Line::C21]),
        test!(a_process_that_joins_a_container_below_from_a_sandbox_listens),
        test!(a_process_that_joins_a_container_below_with_another_network_listens),
        test!(a_listener_changes_its_mask_from_a_sandbox).covers(&[Line::C18]),
        test!(a_user_namespace_in_the_hosts_network_listens),
    ]);

const NO_ANSWER: &str = "LISTEN is ignored or refused in other namespaces than the initial ones";

const EPERM: u32 = Errno::EPERM as u32;

/// Expects each LISTEN of this process to be refused, and hands over the socket.
fn try_to_listen(handover: &Handover) -> TestResult {
    let mut socket = open()?;
    for words in [&[LISTEN] as &[u32], &[LISTEN, mask::COMM]] {
        expect_eq("answer to LISTEN", ask(&mut socket, words)?, EPERM)?;
    }
    // IGNORE does not change that.
    expect_eq("answer to IGNORE", ask(&mut socket, &[IGNORE])?, 0)?;
    expect_eq("answer", ask(&mut socket, &[LISTEN, mask::COMM])?, EPERM)?;
    handover.send(&socket)
}

/// Lets a new process call `enter` and then try to listen. Expects it to be refused, to get no event of
/// the host, and not to be counted.
fn expect_refusal(enter: impl FnOnce() -> TestResult) -> TestResult {
    let handover = Handover::new()?;
    let mut host = Listener::listen(mask::COMM)?;
    succeed(child::fork(|| {
        status(|| {
            enter()?;
            try_to_listen(&handover)
        })
    })?)?;
    let mut refused = handover.receive()?;
    events(&mut host)?;
    mark("secret")?;
    let (task, comm) = (own_task(), comm("secret"));
    expect_exactly("host", &mut host, &[Event::Comm { task, comm }], |event| {
        event.subject() == task
    })?;
    expect_eq("events in the sandbox", events(&mut refused)?, vec![])?;
    expect_count(1)?;
    drop(host);
    expect_count(0)
}

/// The namespaces of a sandbox that has no pid namespace of its own.
const SANDBOX: CloneFlags = USER.union(NET);

fn a_sandbox_that_root_made_is_refused() -> TestResult {
    let sandbox = Container::idle(SANDBOX)?;
    expect_refusal(|| sandbox.enter(SANDBOX))
}

fn a_sandbox_that_a_user_made_is_refused() -> TestResult {
    require(SANDBOX)?;
    expect_refusal(|| become_unprivileged_in(SANDBOX))
}

fn a_sandbox_within_a_container_is_refused() -> TestResult {
    let container = Container::idle(ALL)?;
    for is_mapped in [false, true] {
        let handover = Handover::new()?;
        container.run(|| {
            unshare(SANDBOX)?;
            if is_mapped {
                become_root_as(0)?;
            }
            try_to_listen(&handover)
        })?;
        let mut refused = handover.receive()?;
        container.run(|| Ok(mark("secret")?))?;
        expect_eq("events in the sandbox", events(&mut refused)?, vec![])?;
    }
    expect_count(0)
}

/// Runs a function in a new process, which has to succeed.
fn in_child(function: impl FnOnce() -> TestResult) -> TestResult {
    succeed(child::fork(|| status(function))?)
}

/// Expects this process to become a listener, and to get only its own event, with this number.
fn expect_to_listen_as(number: i32) -> TestResult {
    expect_eq("own number", own_pid(), number)?;
    let mut socket = open()?;
    let answer = ask(&mut socket, &[LISTEN, mask::COMM])?;
    expect_eq("answer to LISTEN", answer, 0)?;
    mark("received")?;
    let (task, comm) = (Task::leader(number), comm("received"));
    expect_exactly("inside", &mut socket, &[Event::Comm { task, comm }], |_| {
        true
    })
}

fn the_maker_of_a_pid_namespace_is_refused_and_a_process_in_it_is_not() -> TestResult {
    require(ALL)?;
    let handover = Handover::new()?;
    in_child(|| {
        become_unprivileged_in(ALL)?;
        // Its children will be in the new pid namespace. The process itself is not.
        try_to_listen(&handover)?;
        in_child(|| expect_to_listen_as(1))
    })?;
    expect_count(0)
}

fn pid_namespaces_nested_in_a_users_container_listen() -> TestResult {
    require(ALL)?;
    for nested in [PID, USER | PID, ALL] {
        in_child(|| {
            become_unprivileged_in(ALL)?;
            in_child(|| {
                expect_to_listen_as(1)?;
                unshare(nested)?;
                in_child(|| expect_to_listen_as(1))
            })
        })?;
    }
    Ok(())
}

fn a_process_that_joins_the_pid_namespace_of_a_container_below_listens() -> TestResult {
    let container = Container::idle(ALL)?;
    let handover = Handover::new()?;
    // The socket is in the container's network namespace.
    succeed(container.spawn_in(PID | NET, || {
        let mut socket = open()?;
        let answer = ask(&mut socket, &[LISTEN, mask::COMM])?;
        expect_eq("answer to LISTEN", answer, 0)?;
        handover.send(&socket)
    })?)?;
    let mut joined = handover.receive()?;
    mark("outside")?;
    container.run(|| Ok(mark("inside")?))?;
    // The first process and the listening one have the numbers 1 and 2.
    let (task, comm) = (Task::leader(3), comm("inside"));
    expect_exactly("joined", &mut joined, &[Event::Comm { task, comm }], |_| {
        true
    })
}

/// Starts a process in namespaces of these kinds. Their owner is a user namespace below this process's.
fn start_below(kinds: CloneFlags) -> Result<OwnedFd, Failure> {
    let flags = (USER | kinds).bits() | libc::SIGCHLD;
    let first = child::clone_with(flags, || pause_for_ever())?;
    Ok(child::pidfd(first.into_pid())?)
}

/// The first process of a container that this process makes, in a user namespace below its own.
struct Below(OwnedFd);

impl Below {
    fn new() -> Result<Self, Failure> {
        Ok(Self(start_below(PID)?))
    }

    /// Runs a function in a new process of the container's pid namespace, and of this process's user
    /// namespace.
    fn run(&self, function: impl FnOnce() -> TestResult) -> TestResult {
        in_child(|| {
            setns(&self.0, PID)?;
            in_child(function)
        })
    }
}

fn a_process_that_joins_a_container_below_from_a_sandbox_listens() -> TestResult {
    require(ALL)?;
    let handover = Handover::new()?;
    in_child(|| {
        become_unprivileged_in(SANDBOX)?;
        try_to_listen(&handover)?;
        // The sandbox's user namespace is above the one that owns the pid namespace.
        Below::new()?.run(|| expect_to_listen_as(2))
    })?;
    expect_count(0)
}

/// The owner of the network is neither above nor below the owner of the pid namespace. Both are below
/// the user namespace of the process that listens.
fn a_process_that_joins_a_container_below_with_another_network_listens() -> TestResult {
    require(ALL)?;
    in_child(|| {
        become_unprivileged_in(SANDBOX)?;
        let network = start_below(NET)?;
        Below::new()?.run(|| {
            setns(&network, NET)?;
            expect_to_listen_as(2)
        })
    })?;
    expect_count(0)
}

/// Expects a listener to get only the event of a process that has this number below, or no event.
fn expect_event_below(listener: &mut Listener, below: &Below, number: Option<i32>) -> TestResult {
    events(listener)?;
    mark("outside")?;
    below.run(|| Ok(mark("below")?))?;
    let expected = number.map(|number| Event::Comm {
        task: Task::leader(number),
        comm: comm("below"),
    });
    expect_exactly("sandbox", listener, expected.as_slice(), |_| true)
}

fn a_listener_changes_its_mask_from_a_sandbox() -> TestResult {
    require(ALL)?;
    let listing = debugfs::is_there().then(debugfs::open).transpose()?;
    in_child(|| {
        become_unprivileged_in(SANDBOX)?;
        let mut socket = open()?;
        expect_eq("answer", ask(&mut socket, &[LISTEN])?, EPERM)?;
        let below = Below::new()?;
        // It becomes a listener where LISTEN is allowed.
        below.run(|| {
            let answer = ask(&mut socket, &[LISTEN, mask::SID])?;
            expect_eq("answer below", answer, 0)
        })?;
        expect_event_below(&mut socket, &below, None)?;
        // From here on, a process in the sandbox sends the requests. The listener's view stays the same.
        let wanted = mask::SID | mask::COMM;
        let answer = ask(&mut socket, &[LISTEN, wanted])?;
        expect_eq("answer to listening again", answer, 0)?;
        if let Some(listing) = listing {
            let lines = Listing::read_from(&listing)?.lines;
            let masks: Vec<_> = lines.iter().map(|line| line.mask).collect();
            expect_eq("masks", masks, vec![wanted])?;
        }
        expect_event_below(&mut socket, &below, Some(4))?;
        expect_eq("answer to IGNORE", ask(&mut socket, &[IGNORE])?, 0)?;
        expect_event_below(&mut socket, &below, None)?;
        // The socket is no longer a listener.
        expect_eq("answer", ask(&mut socket, &[LISTEN])?, EPERM)?;
        expect_event_below(&mut socket, &below, None)
    })?;
    expect_count(0)
}

fn a_user_namespace_in_the_hosts_network_listens() -> TestResult {
    require(USER)?;
    // It shares the host's network namespace. In one of its own, it would be refused.
    for enter in [|| become_unprivileged_in(USER), || Ok(unshare(USER)?)] {
        in_child(|| {
            enter()?;
            let mut socket = open()?;
            let answer = ask(&mut socket, &[LISTEN, mask::COMM])?;
            expect_eq("answer to LISTEN", answer, 0)?;
            mark("received")?;
            let (task, comm) = (own_task(), comm("received"));
            expect_exactly(
                "there",
                &mut socket,
                &[Event::Comm { task, comm }],
                |event| event.subject() == task,
            )
        })?;
    }
    Ok(())
}
