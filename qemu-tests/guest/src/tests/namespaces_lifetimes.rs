// SPDX-License-Identifier: GPL-2.0
//! Namespaces, listeners, tasks and the module end in every order, and nothing is left (C25, C27).
//!
//! Whether a namespace is gone, the kernel tells by the number that it lets a user have: with a
//! limit of one, another one can be made only when no other is left, however hidden it is.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::WaitStatus;
use nix::unistd::setsid;

use super::counting::expect_count;
use super::module::Changed;
use crate::child::{self, Child, Gate};
use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::patience;
use crate::support::container::{
    Container, Handover, NET, PID, USER, open, require, sleep, status, succeed,
};
use crate::support::slabs;
use crate::test;
use crate::wire::{LISTEN, mask};

pub const TESTS: &[Test] = &[
    test!(the_tasks_end_and_then_the_listener)
        .covers(&[Line::C25, Line::C27])
        .stock_fails(REFUSED)
        .limit(LIMIT),
    test!(the_listener_ends_and_then_the_tasks)
        .covers(&[Line::C25, Line::C27])
        .stock_fails(REFUSED)
        .limit(LIMIT),
    test!(the_listener_is_killed_with_its_namespace)
        .covers(&[Line::C25, Line::C27])
        .stock_fails(REFUSED)
        .limit(LIMIT),
    test!(listeners_are_killed_with_busy_namespaces)
        .covers(&[Line::C25, Line::C27])
        .stock_fails(REFUSED)
        .limit(Duration::from_secs(60)),
    test!(the_module_goes_before_the_namespace)
        .covers(&[Line::C25, Line::C32])
        .not_on_stock(NO_MODULE)
        .limit(LIMIT),
    test!(the_module_stays_for_a_listener_whose_namespace_has_no_tasks)
        .covers(&[Line::C25, Line::C32])
        .not_on_stock(NO_MODULE)
        .limit(LIMIT),
    test!(namespaces_that_are_gone_left_no_sockets)
        .covers(&[Line::C23, Line::C25])
        .stock_fails(REFUSED)
        .limit(Duration::from_secs(60)),
];

const REFUSED: &str = "LISTEN from another network namespace is refused";

const NO_MODULE: &str = "cn_proc is built in, there is no module";

const LIMIT: Duration = Duration::from_secs(30);

/// How long the kernel may take to free namespaces: it does so after grace periods, in a work
/// queue.
const FREE_LIMIT: Duration = Duration::from_secs(15);

/// How often to look whether it did.
const GLANCE: Duration = Duration::from_millis(10);

/// Exit status of a process that was refused a namespace.
const REFUSED_STATUS: i32 = 2;

/// What may be made while namespaces are not counted.
const MANY: u32 = 1000;

/// What is counted.
const COUNTED: CloneFlags = USER.union(PID).union(NET);

/// A user who makes namespaces, and whose namespaces can be counted.
pub struct Account {
    users: Container,
}

impl Account {
    /// A user without namespaces.
    pub fn new() -> Result<Self, Failure> {
        require(COUNTED)?;
        Ok(Self {
            users: Container::idle(USER)?,
        })
    }

    /// Runs a function in a new process of that user.
    pub fn spawn(&self, function: impl FnOnce() -> TestResult) -> Result<Child, Failure> {
        self.users.spawn(function)
    }

    fn allow(&self, number: u32) -> TestResult {
        self.users.run(|| {
            for kind in ["user", "pid", "net"] {
                let file = format!("/proc/sys/user/max_{kind}_namespaces");
                fs::write(file, number.to_string())?;
            }
            Ok(())
        })
    }

    /// Whether that user has no namespace now.
    fn is_empty(&self) -> Result<bool, Failure> {
        let attempt = child::fork(|| {
            let made = self.users.enter(USER).map(|()| unshare(COUNTED));
            match made {
                Ok(Ok(())) => 0,
                Ok(Err(Errno::ENOSPC)) => REFUSED_STATUS,
                _ => 1,
            }
        })?;
        match attempt.wait()? {
            WaitStatus::Exited(_, 0) => Ok(true),
            WaitStatus::Exited(_, REFUSED_STATUS) => Ok(false),
            ended => Err(Failure::new(format!("cannot make namespaces: {ended:?}"))),
        }
    }

    /// Expects the user to have namespaces.
    pub fn expect_namespaces(&self) -> TestResult {
        self.allow(1)?;
        let is_empty = self.is_empty()?;
        self.allow(MANY)?;
        expect(!is_empty, "namespaces that are still in use to be counted")
    }

    /// Waits until all namespaces of the user are gone.
    pub fn expect_nothing_left(&self) -> TestResult {
        self.allow(1)?;
        let limit = patience::stretched(FREE_LIMIT);
        let deadline = Instant::now() + limit;
        while !self.is_empty()? {
            let in_time = Instant::now() < deadline;
            expect(in_time, format!("namespaces to be free in {limit:?}"))?;
            thread::sleep(GLANCE);
        }
        self.allow(MANY)
    }
}

/// Who has the listener's socket open.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Container,
    Test,
}

/// A container of an account. Its first process has a sleeping child; if it has the listener as
/// well, it goes on forking.
struct Tenant {
    maker: Child,
    leave: Gate,
}

impl Tenant {
    /// Makes the container; the listener, if the test is to own it.
    fn new(account: &Account, owner: Owner) -> Result<(Self, Option<Listener>), Failure> {
        let (ready, leave, handover) = (Gate::new()?, Gate::new()?, Handover::new()?);
        let maker = account.spawn(|| {
            // What is counted has to be made here: who makes a container maps ids from outside.
            unshare(USER)?;
            let container = Container::start(PID | NET, || {
                let listener = open()?;
                let requested = listener.request(&[LISTEN, mask::FORK | mask::SID | mask::EXIT]);
                handover.send(&listener)?;
                ready.open(i32::from(requested.is_err()))?;
                requested?;
                let kept = (owner == Owner::Container).then_some(listener);
                // So that those leave a session of this namespace who lead one.
                setsid()?;
                let sleeper = child::fork(|| {
                    status(|| {
                        setsid()?;
                        ready.open(0)?;
                        sleep()
                    })
                })?;
                sleeper.into_pid();
                // Busy until it is killed.
                while kept.is_some() {
                    succeed(child::fork(|| status(|| Ok(setsid().map(drop)?)))?)?;
                }
                sleep()
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
    let account = Account::new()?;
    let (tenant, listener) = Tenant::new(&account, Owner::Test)?;
    tenant.end()?;
    expect_count(1)?;
    account.expect_namespaces()?;
    drop(listener);
    expect_count(0)?;
    account.expect_nothing_left()
}

fn the_listener_ends_and_then_the_tasks() -> TestResult {
    let account = Account::new()?;
    let (tenant, listener) = Tenant::new(&account, Owner::Test)?;
    drop(listener);
    expect_count(0)?;
    account.expect_namespaces()?;
    tenant.end()?;
    account.expect_nothing_left()
}

fn the_listener_is_killed_with_its_namespace() -> TestResult {
    let account = Account::new()?;
    let (tenant, _) = Tenant::new(&account, Owner::Container)?;
    expect_count(1)?;
    tenant.end()?;
    expect_count(0)?;
    account.expect_nothing_left()
}

fn listeners_are_killed_with_busy_namespaces() -> TestResult {
    const ROUNDS: usize = 5;
    const TENANTS: usize = 4;
    let account = Account::new()?;
    for _ in 0..ROUNDS {
        let mut tenants = Vec::new();
        for _ in 0..TENANTS {
            tenants.push(Tenant::new(&account, Owner::Container)?.0);
        }
        expect_count(TENANTS)?;
        for tenant in tenants {
            tenant.end()?;
        }
        expect_count(0)?;
    }
    account.expect_nothing_left()
}

fn the_module_goes_before_the_namespace() -> TestResult {
    let account = Account::new()?;
    let (tenant, listener) = Tenant::new(&account, Owner::Test)?;
    drop(listener);
    let unloaded = Changed::unloaded()?;
    tenant.end()?;
    account.expect_nothing_left()?;
    drop(unloaded);
    expect_count(0)
}

fn the_module_stays_for_a_listener_whose_namespace_has_no_tasks() -> TestResult {
    let account = Account::new()?;
    let (tenant, listener) = Tenant::new(&account, Owner::Test)?;
    tenant.end()?;
    let refused = Changed::unloaded().is_err();
    expect(refused, "unloading to be refused while a socket listens")?;
    drop(listener);
    let unloaded = Changed::unloaded()?;
    account.expect_nothing_left()?;
    drop(unloaded);
    expect_count(0)
}

/// The connector's own socket in a network namespace keeps no namespace alive: it is counted itself,
/// and so is what it would keep of its namespace.
fn namespaces_that_are_gone_left_no_sockets() -> TestResult {
    const NAMESPACES: u64 = 64;
    slabs::require()?;
    let account = Account::new()?;
    let round = || {
        for _ in 0..NAMESPACES {
            Tenant::new(&account, Owner::Container)?.0.end()?;
        }
        expect_count(0)?;
        account.expect_nothing_left()
    };
    // Fills what keeps free objects for the next one who wants some.
    round()?;
    let before = slabs::objects()?;
    round()?;
    // A namespace is gone for its user before the memory of all that was in it is free.
    let deadline = patience::deadline(FREE_LIMIT);
    loop {
        let (name, more) = slabs::objects()?.most_more_than(&before);
        if more < NAMESPACES / 2 {
            return Ok(());
        }
        let in_time = Instant::now() < deadline;
        let what = format!("{name} not to grow with {NAMESPACES} namespaces, got {more} more");
        expect(in_time, what)?;
        thread::sleep(GLANCE);
    }
}
