// SPDX-License-Identifier: GPL-2.0
//! Many containers at once.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::container::{Container, NET, PID, expect_exactly, open, succeed};
use super::counting::expect_count;
use super::namespaces_lifetimes::Account;
use crate::child::{self, Gate, own_pid};
use crate::harness::{Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::listing::Listing;
use crate::patience;
use crate::test;
use crate::wire::{Event, LISTEN, Task, mask};

pub const TESTS: &[Test] = &[test!(two_hundred_containers_get_their_own_events)
    .covers(&[Line::C21, Line::C22, Line::C25, Line::C30])
    .stock_fails(REFUSED)
    .limit(Duration::from_secs(120))];

const REFUSED: &str = "LISTEN from another network namespace is refused";

const CONTAINERS: usize = 200;

/// Processes that each container makes.
const FORKS: i32 = 5;

/// How long all containers together may take for a step.
const ALL_LIMIT: Duration = Duration::from_secs(60);

/// The handshakes between the containers and the test.
struct Cues {
    listening: Gate,
    begin: Gate,
    done: Gate,
    end: Gate,
}

/// What happens in each of the containers.
fn fork_and_listen(cues: &Cues) -> TestResult {
    let mut listener = open()?;
    let requested = listener.request(&[LISTEN, mask::FORK | mask::EXIT]);
    cues.listening.open(i32::from(requested.is_err()))?;
    requested?;
    cues.begin.pass_within(patience::stretched(ALL_LIMIT))?;
    let parent = Task::leader(own_pid());
    let mut expected = Vec::new();
    for number in 0..FORKS {
        let process = child::fork(|| number)?;
        let child = Task::leader(process.pid().as_raw());
        process.wait()?;
        // The first process of a pid namespace is 1, and its children follow.
        expect_eq("own numbers", (parent.pid, child.pid), (1, 2 + number))?;
        expected.push(Event::Fork { parent, child });
        expected.push(Event::Exit {
            task: child,
            code: (number as u32) << 8,
            signal: Signal::SIGCHLD as u32,
            parent,
        });
    }
    expect_exactly("inside", &mut listener, &expected, |_| true)?;
    cues.done.open(0)?;
    cues.end.pass_within(patience::stretched(ALL_LIMIT))?;
    let nothing: &[Event] = &[];
    expect_exactly("inside, at the end", &mut listener, nothing, |_| true)
}

fn two_hundred_containers_get_their_own_events() -> TestResult {
    let account = Account::new()?;
    let cues = Cues {
        listening: Gate::new()?,
        begin: Gate::new()?,
        done: Gate::new()?,
        end: Gate::new()?,
    };
    let made = Gate::new()?;
    let maker = account.spawn(|| {
        let mut containers = Vec::new();
        for _ in 0..CONTAINERS {
            let container = Container::start(PID | NET, || fork_and_listen(&cues))?;
            made.open(container.task().pid)?;
            containers.push(container);
        }
        containers.into_iter().try_for_each(Container::finish)
    })?;
    let mut firsts = BTreeSet::new();
    for _ in 0..CONTAINERS {
        expect_eq("errors of LISTEN", cues.listening.pass()?, 0)?;
        firsts.insert(made.pass()?);
    }
    let mut outside = Listener::listen(mask::FORK | mask::EXIT)?;
    (0..CONTAINERS).try_for_each(|_| cues.begin.open(0))?;
    (0..CONTAINERS).try_for_each(|_| {
        cues.done
            .pass_within(patience::stretched(ALL_LIMIT))
            .map(drop)
    })?;
    expect_accounts()?;
    expect_all_outside(&mut outside, &firsts)?;
    (0..CONTAINERS).try_for_each(|_| cues.end.open(0))?;
    succeed(maker)?;
    expect_count(1)?;
    drop(outside);
    expect_count(0)?;
    account.expect_nothing_left()
}

/// Expects the kernel's accounts of the containers' listeners to be what each of them got.
fn expect_accounts() -> TestResult {
    let listing = Listing::read()?;
    expect_eq("listeners", listing.count, CONTAINERS + 1)?;
    // The test is in the initial pid namespace, the only one in which it is alone.
    let own = fs::read_link("/proc/self/ns/pid")?;
    let own = own.to_string_lossy().into_owned();
    let inside: Vec<_> = listing
        .lines
        .iter()
        .filter(|line| format!("pid:[{}]", line.pid_ns) != own)
        .collect();
    let pid_namespaces: BTreeSet<_> = inside.iter().map(|line| line.pid_ns).collect();
    let net_namespaces: BTreeSet<_> = inside.iter().map(|line| line.net_ns).collect();
    expect_eq("pid namespaces", pid_namespaces.len(), CONTAINERS)?;
    expect_eq("network namespaces", net_namespaces.len(), CONTAINERS)?;
    for line in inside {
        let events = 2 * FORKS as u64;
        expect_eq("delivered, lost", (line.delivered, line.lost), (events, 0))?;
    }
    Ok(())
}

/// Expects the events of all containers outside, in the numbers outside.
fn expect_all_outside(outside: &mut Listener, firsts: &BTreeSet<i32>) -> TestResult {
    let events = super::container::events(outside)?;
    for first in firsts {
        let parent = Task::leader(*first);
        let mut forked = BTreeSet::new();
        let mut exited = BTreeSet::new();
        for event in &events {
            match *event {
                Event::Fork { parent: of, child } if of == parent => {
                    forked.insert(child.pid);
                }
                Event::Exit {
                    task, parent: of, ..
                } if of == parent => {
                    exited.insert(task.pid);
                }
                _ => {}
            }
        }
        expect_eq("forks of a container", forked.len(), FORKS as usize)?;
        expect_eq("exits of a container", exited, forked)?;
    }
    Ok(())
}
