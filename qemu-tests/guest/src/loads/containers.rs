// SPDX-License-Identifier: GPL-2.0
//! Many containers at the same time, each with a listener.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use clap::Args;

use crate::child::{self, Gate, allow_descriptors, own_pid};
use crate::debugfs::Listing;
use crate::harness::{Failure, TestResult, expect_eq};
use crate::listener::Listener;
use crate::results;
use crate::support::container::{Container, NET, PID, is_room, open};
use crate::support::fault_injection::Setting;
use crate::support::namespace_user::NamespaceUser;
use crate::support::process::succeed;
use crate::support::scenario::{exit, expect_count, expect_exactly};
use crate::timeouts;
use crate::wire::{Event, LISTEN, Task, mask};

/// How many containers the test has, and how many raise events at one time.
pub const CONTAINERS: usize = 200;

/// How much to do in the command, which runs longer than the test.
#[derive(Args)]
pub struct Options {
    /// How many containers; fewer, if the memory is used up before.
    #[arg(long, default_value_t = 10_000)]
    pub count: usize,
}

/// Processes that each container makes.
const FORKS: i32 = 5;

/// After how many containers the progress is printed.
const PROGRESS: usize = 1000;

/// How long [`CONTAINERS`] containers may take for a step.
const ALL_LIMIT: Duration = Duration::from_secs(60);

/// The handshakes between the containers and the test.
struct Handshakes {
    /// How long to wait for a handshake: all containers have to be there first.
    limit: Duration,
    listening: Gate,
    /// One gate for each group, since all waiters of a gate wake up whenever it opens.
    begin: Vec<Gate>,
    done: Gate,
    end: Vec<Gate>,
}

impl Handshakes {
    fn new(most: usize) -> nix::Result<Self> {
        let groups = most.div_ceil(CONTAINERS);
        let gates = || (0..groups).map(|_| Gate::new()).collect::<nix::Result<_>>();
        let steps = u32::try_from(groups).unwrap_or(u32::MAX);

        Ok(Self {
            limit: timeouts::scaled(ALL_LIMIT).saturating_mul(steps),
            listening: Gate::new()?,
            begin: gates()?,
            done: Gate::new()?,
            end: gates()?,
        })
    }
}

/// What each container of this group does.
fn fork_and_listen(handshakes: &Handshakes, group: usize) -> TestResult {
    let mut listener = open()?;
    let requested = listener.request(&[LISTEN, mask::FORK | mask::EXIT]);
    handshakes.listening.open(i32::from(requested.is_err()))?;
    requested?;
    handshakes.begin[group].pass_within(handshakes.limit)?;
    let parent = Task::leader(own_pid());
    let mut expected = Vec::new();
    for number in 0..FORKS {
        let process = child::fork(|| number)?;
        let child = Task::leader(process.pid().as_raw());
        process.wait()?;
        // The first process of a pid namespace is 1, and its children follow.
        expect_eq("own numbers", (parent.pid, child.pid), (1, 2 + number))?;
        expected.push(Event::Fork { parent, child });
        expected.push(exit(child, (number as u32) << 8, parent));
    }
    expect_exactly("inside", &mut listener, &expected, |_| true)?;
    handshakes.done.open(0)?;
    handshakes.end[group].pass_within(handshakes.limit)?;
    let nothing: &[Event] = &[];
    expect_exactly("inside, at the end", &mut listener, nothing, |_| true)
}

/// Makes this many containers listen, and prints how many there was memory for.
pub fn run(options: &Options) -> TestResult {
    let started = Instant::now();
    let _limits = raise_limits(options.count)?;
    let made = listen_in(options.count)?;
    let seconds = started.elapsed().as_secs_f64();
    results::figure("containers that listened", made as f64);
    println!("containers: {made} of {} ({seconds:.1} s)", options.count);
    Ok(())
}

/// Allows this many containers, until the returned settings are dropped.
fn raise_limits(count: usize) -> Result<Vec<Setting>, Failure> {
    allow_descriptors(count)?;
    let limits = [
        ("/proc/sys/user", "max_pid_namespaces"),
        ("/proc/sys/user", "max_net_namespaces"),
        ("/proc/sys/user", "max_proc_listeners"),
        ("/proc/sys/kernel", "threads-max"),
    ];
    let raised = limits.map(|(directory, name)| {
        // With room for the listener outside, and for the processes that run anyway.
        let value = (2 * count + 1000).to_string();
        Setting::change(directory, name, &value)
    });
    Ok(raised.into_iter().collect::<Result<_, _>>()?)
}

/// Starts up to `most` containers, each of which listens and raises events. Expects each listener to
/// get its own container's events, and nothing to be left. Returns how many containers there were.
pub fn listen_in(most: usize) -> Result<usize, Failure> {
    let user = NamespaceUser::new()?;
    let handshakes = Handshakes::new(most)?;
    // A number that is no process's pid: there are no more containers.
    const NO_MORE: i32 = 0;
    let made = Gate::new()?;
    let maker = user.spawn(|| {
        let mut containers = Vec::new();
        while containers.len() < most && is_room()? {
            let group = containers.len() / CONTAINERS;
            let container = Container::start(PID | NET, || fork_and_listen(&handshakes, group))?;
            made.open(container.task().pid)?;
            containers.push(container);
            if containers.len() % PROGRESS == 0 {
                println!("containers: {} of {most}", containers.len());
            }
        }
        made.open(NO_MORE)?;
        containers.into_iter().try_for_each(Container::finish)
    })?;
    let mut firsts = BTreeSet::new();
    loop {
        let first = made.pass()?;
        if first == NO_MORE {
            break;
        }
        expect_eq("errors of LISTEN", handshakes.listening.pass()?, 0)?;
        firsts.insert(first);
    }
    let count = firsts.len();
    let mut outside = Listener::listen(mask::FORK | mask::EXIT)?;
    let mut events = Vec::new();
    let groups = || {
        (0..count)
            .step_by(CONTAINERS)
            .map(|first| CONTAINERS.min(count - first))
    };
    // In groups, so that the listener outside is not overrun.
    for (group, begin) in groups().zip(&handshakes.begin) {
        (0..group).try_for_each(|_| begin.open(0))?;
        (0..group).try_for_each(|_| handshakes.done.pass_within(handshakes.limit).map(drop))?;
        events.extend(crate::support::scenario::events(&mut outside)?);
    }
    expect_accounts(count)?;
    expect_all_outside(&events, &firsts)?;
    for (group, end) in groups().zip(&handshakes.end) {
        (0..group).try_for_each(|_| end.open(0))?;
    }
    succeed(maker)?;
    expect_count(1)?;
    drop(outside);
    expect_count(0)?;
    user.expect_nothing_left()?;
    Ok(count)
}

/// Expects the kernel's accounts of the containers' listeners to match what each of them got.
fn expect_accounts(count: usize) -> TestResult {
    let listing = Listing::read()?;
    expect_eq("listeners", listing.count, count + 1)?;
    // The test's listener is the only one in the initial pid namespace.
    let own = fs::read_link("/proc/self/ns/pid")?;
    let own = own.to_string_lossy().into_owned();
    let inside: Vec<_> = listing
        .lines
        .iter()
        .filter(|line| format!("pid:[{}]", line.pid_ns) != own)
        .collect();
    let pid_namespaces: BTreeSet<_> = inside.iter().map(|line| line.pid_ns).collect();
    let net_namespaces: BTreeSet<_> = inside.iter().map(|line| line.net_ns).collect();
    expect_eq("pid namespaces", pid_namespaces.len(), count)?;
    expect_eq("network namespaces", net_namespaces.len(), count)?;
    for line in inside {
        let events = 2 * FORKS as u64;
        expect_eq("delivered, lost", (line.delivered, line.lost), (events, 0))?;
    }
    Ok(())
}

/// The children that a container's first process forked, and those that exited.
type Children = (BTreeSet<i32>, BTreeSet<i32>);

/// Expects the listener outside to get the events of all containers, with the pids outside.
fn expect_all_outside(events: &[Event], firsts: &BTreeSet<i32>) -> TestResult {
    let mut children: BTreeMap<i32, Children> = BTreeMap::new();
    for event in events {
        match *event {
            Event::Fork { parent, child } => {
                children.entry(parent.pid).or_default().0.insert(child.pid);
            }
            Event::Exit { task, parent, .. } => {
                children.entry(parent.pid).or_default().1.insert(task.pid);
            }
            _ => {}
        }
    }
    for first in firsts {
        let (forked, exited) = children.remove(first).unwrap_or_default();
        expect_eq("forks of a container", forked.len(), FORKS as usize)?;
        expect_eq("exits of a container", exited, forked)?;
    }
    Ok(())
}
