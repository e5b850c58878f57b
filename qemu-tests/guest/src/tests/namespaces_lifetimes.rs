// SPDX-License-Identifier: GPL-2.0
//! Namespaces, listeners, tasks and the module end in every order, and nothing is left (C25, C27).

use std::time::Duration;

use nix::sched::unshare;
use nix::unistd::setsid;

use crate::child::{self, Child, Gate};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{Container, Handover, NET, PID, USER, open};
use crate::support::idle_processes::start_idle;
use crate::support::module::ModuleGuard;
use crate::support::namespace_user::{FREE_LIMIT, NamespaceUser};
use crate::support::polling::poll_until_done;
use crate::support::process::{pause_for_ever, status, succeed};
use crate::support::scenario::expect_count;
use crate::support::slabs::{self, Objects};
use crate::support::stock::{NO_MODULE, NO_NETWORK_NAMESPACES};
use crate::test;
use crate::wire::{LISTEN, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_NETWORK_NAMESPACES)
    .limit(LIMIT)
    .covers(&[Line::C25])
    .of([
        test!(the_tasks_end_and_then_the_listener).covers(&[Line::C27]),
        test!(the_listener_ends_and_then_the_tasks).covers(&[Line::C27]),
        test!(the_listener_is_killed_with_its_namespace).covers(&[Line::C27]),
        test!(listeners_are_killed_with_busy_namespaces)
            .limit(Duration::from_secs(60))
            .covers(&[Line::C27]),
        test!(the_module_goes_before_the_namespace)
            .not_on_stock(NO_MODULE)
            .covers(&[Line::C32]),
        test!(the_module_stays_for_a_listener_whose_namespace_has_no_tasks)
            .not_on_stock(NO_MODULE)
            .covers(&[Line::C32]),
        test!(namespaces_that_are_gone_left_no_sockets)
            .limit(Duration::from_secs(60))
            .covers(&[Line::C23]),
        test!(namespaces_that_are_gone_left_no_lists)
            .not_on_stock("namespaces have no lists of listeners")
            .limit(Duration::from_secs(60)),
    ]);

const LIMIT: Duration = Duration::from_secs(30);

/// The side that has the listener's socket open.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Container,
    Test,
}

/// A container of a user. Its first process has a sleeping child. If it also has the listener, it
/// goes on forking.
struct UserContainer {
    maker: Child,
    leave: Gate,
}

impl UserContainer {
    /// Makes the container. Also returns the listener if the test is to own it.
    fn new(user: &NamespaceUser, owner: Owner) -> Result<(Self, Option<Listener>), Failure> {
        let (ready, leave, handover) = (Gate::new()?, Gate::new()?, Handover::new()?);
        let maker = user.spawn(|| {
            // The user namespace that is counted has to be made here: the maker of a container maps ids
            // from outside.
            unshare(USER)?;
            let container = Container::start(PID | NET, || {
                let listener = open()?;
                let requested = listener.request(&[LISTEN, mask::FORK | mask::SID | mask::EXIT]);
                handover.send(&listener)?;
                ready.open(i32::from(requested.is_err()))?;
                requested?;
                let kept = (owner == Owner::Container).then_some(listener);
                // So the children that become session leaders leave a session of this namespace.
                setsid()?;
                start_idle(|| Ok(setsid().map(drop)?))?;
                ready.open(0)?;
                // Busy until it is killed.
                while kept.is_some() {
                    succeed(child::fork(|| status(|| Ok(setsid().map(drop)?)))?)?;
                }
                pause_for_ever()
            })?;
            leave.pass()?;
            container.kill()
        })?;
        expect_eq("errors of LISTEN", ready.pass()?, 0)?;
        ready.pass()?;
        let listener = handover.receive()?;
        let listener = (owner == Owner::Test).then_some(listener);
        Ok((Self { maker, leave }, listener))
    }

    /// Ends all tasks of the container.
    fn end(self) -> TestResult {
        self.leave.open(0)?;
        succeed(self.maker)
    }
}

fn the_tasks_end_and_then_the_listener() -> TestResult {
    let user = NamespaceUser::new()?;
    let (user_container, listener) = UserContainer::new(&user, Owner::Test)?;
    user_container.end()?;
    expect_count(1)?;
    user.expect_namespaces()?;
    drop(listener);
    expect_count(0)?;
    user.expect_nothing_left()
}

fn the_listener_ends_and_then_the_tasks() -> TestResult {
    let user = NamespaceUser::new()?;
    let (user_container, listener) = UserContainer::new(&user, Owner::Test)?;
    drop(listener);
    expect_count(0)?;
    user.expect_namespaces()?;
    user_container.end()?;
    user.expect_nothing_left()
}

fn the_listener_is_killed_with_its_namespace() -> TestResult {
    let user = NamespaceUser::new()?;
    let (user_container, _) = UserContainer::new(&user, Owner::Container)?;
    expect_count(1)?;
    user_container.end()?;
    expect_count(0)?;
    user.expect_nothing_left()
}

fn listeners_are_killed_with_busy_namespaces() -> TestResult {
    const ROUNDS: usize = 5;
    const CONTAINERS: usize = 4;
    let user = NamespaceUser::new()?;
    for _ in 0..ROUNDS {
        let mut containers = Vec::new();
        for _ in 0..CONTAINERS {
            containers.push(UserContainer::new(&user, Owner::Container)?.0);
        }
        expect_count(CONTAINERS)?;
        for user_container in containers {
            user_container.end()?;
        }
        expect_count(0)?;
    }
    user.expect_nothing_left()
}

fn the_module_goes_before_the_namespace() -> TestResult {
    let user = NamespaceUser::new()?;
    let (user_container, listener) = UserContainer::new(&user, Owner::Test)?;
    drop(listener);
    let unloaded = ModuleGuard::unloaded()?;
    user_container.end()?;
    user.expect_nothing_left()?;
    drop(unloaded);
    expect_count(0)
}

fn the_module_stays_for_a_listener_whose_namespace_has_no_tasks() -> TestResult {
    let user = NamespaceUser::new()?;
    let (user_container, listener) = UserContainer::new(&user, Owner::Test)?;
    user_container.end()?;
    let refused = ModuleGuard::unloaded().is_err();
    expect(refused, "unloading to be refused while a socket listens")?;
    drop(listener);
    let unloaded = ModuleGuard::unloaded()?;
    user.expect_nothing_left()?;
    drop(unloaded);
    expect_count(0)
}

/// The connector's own socket in a network namespace keeps no namespace alive. The test counts
/// sockets, and the objects of namespaces that such a socket would keep.
fn namespaces_that_are_gone_left_no_sockets() -> TestResult {
    const NAMESPACES: u64 = 64;
    let user = NamespaceUser::new()?;
    expect_no_growth(NAMESPACES, slabs::of_namespaces, || {
        for _ in 0..NAMESPACES {
            UserContainer::new(&user, Owner::Container)?.0.end()?;
        }
        expect_count(0)?;
        user.expect_nothing_left()
    })
}

/// A pid namespace has lists of its listeners, which are allocated for the first one.
fn namespaces_that_are_gone_left_no_lists() -> TestResult {
    /// Many, because each CPU keeps up to 60 free objects of a size, which count as in use.
    const NAMESPACES: u64 = 512;
    expect_no_growth(NAMESPACES, slabs::of_kmalloc, || {
        for _ in 0..NAMESPACES {
            Container::start(PID, || Ok(open()?.request(&[LISTEN, mask::EXIT])?))?.finish()?;
        }
        expect_count(0)
    })
}

/// Makes this many namespaces, and later makes them again. Expects fewer further objects to be in use
/// after the second time than half of that.
#[track_caller]
fn expect_no_growth(
    namespaces: u64,
    objects: fn() -> Result<Objects, Failure>,
    make: impl Fn() -> TestResult,
) -> TestResult {
    slabs::require()?;
    // Fills the caches that keep free objects for the next allocation.
    make()?;
    let before = objects()?;
    make()?;
    // The memory of a namespace is freed after a grace period, and after it is counted as gone.
    poll_until_done(FREE_LIMIT, || {
        let (name, more) = objects()?.most_more_than(&before);
        let grows = more >= namespaces / 2;
        Ok(grows
            .then(|| format!("{name} not to grow with {namespaces} namespaces, got {more} more")))
    })
}
