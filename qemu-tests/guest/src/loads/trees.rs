// SPDX-License-Identifier: GPL-2.0
//! Trees of processes whose threads end in every order and in many ways, with a listener for processes
//! only. Each process has to have exactly one FORK and exactly one EXIT, with the status that waitpid(2)
//! returns.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use fastrand::Rng;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::pipe;

use super::rounds::{NO_LIMIT, rounds};
use crate::child::{self, Child, Gate, execute_true};
use crate::cpus::cpus;
use crate::debugfs::Listing;
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::{EVENT_LIMIT, Listener};
use crate::results;
use crate::support::container::{Container, PID};
use crate::support::polling::poll_until_done;
use crate::support::process::{pause_for_ever, status, succeed};
use crate::support::sequence_numbers::SequenceNumbers;
use crate::support::sessions::{code_of, status_of};
use crate::support::threads::{ORDERS, end_all, end_in_turn, end_thread};
use crate::timeouts;
use crate::wire::{BATCH, Event, PROCESSES, Task, mask};

/// How much to do.
#[derive(Args)]
pub struct Options {
    /// How many trees.
    #[arg(long, default_value_t = 10_000)]
    pub trees: usize,
    /// The seed of the trees.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How long a tree may take.
const TREE_LIMIT: Duration = Duration::from_secs(20);

/// How many threads a process has if it has more than one, the first one included.
const THREADS: usize = 3;

/// How a process of a tree ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Its only thread ends it.
    Alone,
    /// One thread after the other, in this order.
    InTurn([usize; THREADS]),
    /// All threads at the same moment.
    AtOnce,
    /// This thread ends all threads, while the others end themselves.
    EndsAll(usize),
    /// This thread gets a signal that ends all threads, while the others wait.
    Dies(usize, Signal),
    /// This thread executes a program, while the others end themselves.
    Executes(usize),
}

impl End {
    fn any(random: &mut Rng) -> Self {
        let thread = random.usize(0..THREADS);
        match random.u8(0..40) {
            0..8 => Self::Alone,
            8..22 => Self::InTurn(ORDERS[random.usize(0..ORDERS.len())]),
            22..29 => Self::AtOnce,
            29..34 => Self::EndsAll(thread),
            34..36 => Self::Dies(thread, Signal::SIGKILL),
            36..38 => Self::Dies(thread, Signal::SIGTERM),
            38 => Self::Dies(thread, Signal::SIGQUIT),
            _ => Self::Executes(thread),
        }
    }
}

/// A process of a tree.
#[derive(Debug)]
struct Plan {
    end: End,
    status: i32,
    children: Vec<Plan>,
    /// Whether it waits for its children. Otherwise they go to the process that makes the trees.
    waits: bool,
    /// Whether it is killed from outside, at any point of what it does.
    killed: bool,
}

impl Plan {
    /// A random process, with descendants on up to this many levels.
    fn any(random: &mut Rng, levels: usize) -> Self {
        let children = match levels {
            0 => 0,
            _ => random.usize(0..8).saturating_sub(5),
        };
        let waits = random.bool();
        Self {
            end: End::any(random),
            status: random.i32(0..200),
            children: (0..children)
                .map(|_| Self::any(random, levels - 1))
                .collect(),
            waits,
            // A process that waits could be killed after the wait, before it reports the status.
            killed: !waits && random.u8(0..8) == 0,
        }
    }

    /// What the process does.
    fn live(&self, reports: &StatusReports) -> i32 {
        let mut children = Vec::new();
        for child in &self.children {
            match child::fork(|| child.live(reports)) {
                Ok(process) => children.push(process.into_pid()),
                Err(error) => eprintln!("a process of a tree has no child: {error}"),
            }
        }
        if self.waits {
            for child in children {
                let reported = status(|| reports.send(waitpid(child, None)?));
                if reported != 0 {
                    return reported;
                }
            }
        }
        if let End::Alone = self.end {
            return self.status;
        }
        let all = Barrier::new(THREADS);
        let act = |index| {
            if let End::InTurn(order) = self.end {
                end_in_turn(order, index)
            }
            all.wait();
            self.act(index)
        };
        thread::scope(|scope| {
            for index in 1..THREADS {
                scope.spawn(move || act(index));
            }
            act(0)
        })
    }

    /// What a thread does when all are there.
    fn act(&self, index: usize) -> i32 {
        match self.end {
            End::EndsAll(thread) if thread == index => end_all(self.status),
            End::Dies(thread, signal) if thread == index => _ = raise(signal),
            End::Dies(..) => pause_for_ever(),
            End::Executes(thread) if thread == index => _ = execute_true(),
            _ => {}
        }
        end_thread(self.status + index as i32)
    }
}

/// Statuses that wait(2) returned, from all processes to the one that compares them.
struct StatusReports {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// How many bytes a report has: a process's pid and its status.
const REPORT: usize = 8;

impl StatusReports {
    fn new() -> Result<Self, Failure> {
        let (reader, writer) = pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { reader, writer })
    }

    fn send(&self, ended: WaitStatus) -> TestResult {
        let (Some(pid), Some(code)) = (ended.pid(), code_of(ended)) else {
            return Err(Failure::new(format!("expected an end, got {ended:?}")));
        };
        let mut report = [0; REPORT];
        report[..4].copy_from_slice(&pid.as_raw().to_ne_bytes());
        report[4..].copy_from_slice(&code.to_ne_bytes());
        // Written as a whole, since a write of so few bytes to a pipe is atomic.
        File::from(self.writer.try_clone()?).write_all(&report)?;
        Ok(())
    }

    /// The reports that have arrived.
    fn take(&self) -> Result<Vec<(i32, u32)>, Failure> {
        let mut reports = Vec::new();
        let mut bytes = [0; 512 * REPORT];
        let mut pipe = File::from(self.reader.try_clone()?);
        loop {
            let length = match pipe.read(&mut bytes) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(reports),
                Err(error) => return Err(error.into()),
            };
            expect_eq("bytes of an incomplete report", length % REPORT, 0)?;
            reports.extend(bytes[..length].chunks_exact(REPORT).map(|report| {
                let (pid, code) = report.split_at(4);
                let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("a word"));
                (word(pid) as i32, word(code))
            }));
        }
    }
}

/// The handshakes with the processes that make the trees, each one tree after the other.
struct Handshakes {
    /// Hands out the number of the next tree, or [`NO_MORE`].
    next: Gate,
    /// Hands over the number of a tree of which all processes were waited for.
    over: Gate,
    reports: StatusReports,
}

/// A number that is no tree's.
const NO_MORE: i32 = 0;

impl Handshakes {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            next: Gate::new()?,
            over: Gate::new()?,
            reports: StatusReports::new()?,
        })
    }

    /// Makes trees until there are no more. Each follows from the seed and its number.
    fn plant(&self, seed: u64) -> TestResult {
        set_child_subreaper(true)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        let base = Rng::with_seed(seed).u64(..);
        loop {
            let tree = self.next.pass()?;
            if tree == NO_MORE {
                return Ok(());
            }
            self.make_tree(Rng::with_seed(base.wrapping_add(tree as u64)))?;
            self.over.open(tree)?;
        }
    }

    /// Makes a tree, and waits for all of its processes that no other process waits for.
    fn make_tree(&self, mut random: Rng) -> TestResult {
        let plan = Plan::any(&mut random, 2);
        let root = child::fork(|| plan.live(&self.reports))?.into_pid();
        if plan.killed {
            // At any point of what it does.
            for _ in 0..random.u32(0..20_000) {
                std::hint::spin_loop();
            }
            kill(root, Signal::SIGKILL)?;
        }
        // The process that hands out the trees limits how long this takes.
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Err(Errno::ECHILD) => return Ok(()),
                ended => self.reports.send(ended?)?,
            }
        }
    }
}

/// What was reported about a pid, and what wait(2) returned, for each process that had the pid.
#[derive(Debug, Default)]
struct PidHistory {
    begun: usize,
    reported: Vec<u32>,
    waited: Vec<u32>,
}

impl PidHistory {
    /// Whether both are the same. The ends of two processes may be reported and waited for in different
    /// orders.
    fn is_complete(&mut self) -> bool {
        self.reported.sort_unstable();
        self.waited.sort_unstable();
        self.begun == self.waited.len() && self.reported == self.waited
    }
}

/// What a listener and wait(2) report about all processes. A pid may be used again before the end of
/// its last process is reported.
#[derive(Debug, Default)]
struct Lives {
    /// The pids about which the two do not agree, or not yet.
    incomplete: BTreeMap<i32, PidHistory>,
    /// How many processes began once and ended once, with the status of wait(2).
    complete: usize,
}

impl Lives {
    /// Adds an event that the listener read.
    fn add_event(&mut self, event: &Event) -> TestResult {
        let Task { pid, tgid } = event.subject();
        expect(pid == tgid, format!("only processes, got {event:?}"))?;
        match *event {
            Event::Fork { .. } => self.add(pid, |history| history.begun += 1),
            Event::Exit { code, .. } => self.add(pid, |history| history.reported.push(code)),
            _ => return expect(false, format!("FORK or EXIT, got {event:?}")),
        }
        Ok(())
    }

    /// Adds a status that wait(2) returned.
    fn add_waited(&mut self, pid: i32, code: u32) {
        self.add(pid, |history| history.waited.push(code));
    }

    fn add(&mut self, pid: i32, change: impl FnOnce(&mut PidHistory)) {
        let history = self.incomplete.entry(pid).or_default();
        change(history);
        if history.is_complete() {
            self.complete += history.waited.len();
            self.incomplete.remove(&pid);
        }
    }
}

/// The growing trees, and the listener.
struct Forest {
    listener: Listener,
    numbers: SequenceNumbers,
    handshakes: Handshakes,
    /// Trees that were handed out.
    begun: usize,
    /// The trees that are not over, and when they were handed out.
    growing: BTreeMap<i32, Instant>,
    lives: Lives,
}

impl Forest {
    fn new() -> Result<Self, Failure> {
        let mut listener = Listener::listen_with(mask::FORK | mask::EXIT, PROCESSES | BATCH)?;
        Ok(Self {
            numbers: SequenceNumbers::first(&mut listener)?,
            listener,
            handshakes: Handshakes::new()?,
            begun: 0,
            growing: BTreeMap::new(),
            lives: Lives::default(),
        })
    }

    /// Reads the events and the statuses that have arrived.
    fn read(&mut self) -> TestResult {
        let messages = self.listener.take_queued()?;
        let missing = self.numbers.advance(&messages)?;
        expect_eq("missing numbers", missing, 0)?;
        for received in &messages {
            self.lives.add_event(&received.event)?;
        }
        for (pid, code) in self.handshakes.reports.take()? {
            self.lives.add_waited(pid, code);
        }
        Ok(())
    }

    /// Makes a process plant the next of this many trees, or end if there are no more.
    fn hand_out(&mut self, trees: usize) -> TestResult {
        let mut number = NO_MORE;
        if self.begun < trees {
            self.begun += 1;
            number = i32::try_from(self.begun)?;
            self.growing.insert(number, Instant::now());
        }
        Ok(self.handshakes.next.open(number)?)
    }

    /// Waits until a tree is over. Expects the oldest growing tree not to take too long.
    fn await_tree(&mut self) -> TestResult {
        let limit = timeouts::scaled(TREE_LIMIT);
        let over = self.handshakes.over.pass_within(limit).map_err(|error| {
            let growing = self.growing.keys();
            Failure::from(error).about(format!("from any of the trees {growing:?}"))
        })?;
        self.growing.remove(&over);
        self.read()?;
        let oldest = self.growing.first_key_value();
        let late = oldest.filter(|(_, begun)| begun.elapsed() > limit);
        expect_eq("trees that take too long", late.map(|(tree, _)| tree), None)
    }

    /// Waits for a process that makes trees, which is to end now.
    fn await_planter(&mut self, planter: Child) -> TestResult {
        let pid = planter.pid();
        let has_ended = child::has_ended(&child::pidfd(pid)?, timeouts::scaled(EVENT_LIMIT))?;
        expect(has_ended, "the end of a process that makes trees")?;
        succeed(planter)?;
        self.lives.add_waited(pid.as_raw(), 0);
        Ok(())
    }

    /// Expects all processes to have begun and ended once.
    fn expect_complete(&mut self) -> TestResult {
        // A second report comes before another process has begun and ended.
        let marker = child::fork(|| 77)?;
        let pid = marker.pid().as_raw();
        let code = status_of(marker)?;
        expect_eq("status", code, 77 << 8)?;
        self.lives.add_waited(pid, code);
        // The last EXIT events may come after the processes were waited for.
        poll_until_done(EVENT_LIMIT, || {
            self.read()?;
            let incomplete = &self.lives.incomplete;
            let wrong = !incomplete.is_empty();
            Ok(wrong.then(|| format!("complete lives, got {incomplete:?}")))
        })?;
        expect_eq("lost", Listing::of(self.listener.port_id()?)?.lost, 0)
    }
}

/// Makes the trees, and prints the figures.
pub fn run(options: &Options) -> TestResult {
    let Options { trees, seed } = *options;
    println!("trees: {trees} from the seed {seed}");
    grow(trees, NO_LIMIT, seed)
}

/// Makes this many trees, but begins none after this time. They are in a pid namespace without other
/// processes.
pub fn grow(trees: usize, time: Duration, seed: u64) -> TestResult {
    Container::start(PID, || grow_here(trees, time, seed))?.finish()
}

fn grow_here(trees: usize, time: Duration, seed: u64) -> TestResult {
    let mut forest = Forest::new()?;
    let mut planters = Vec::new();
    for _ in cpus()? {
        let handshakes = &forest.handshakes;
        planters.push(child::fork(|| status(|| handshakes.plant(seed)))?);
        forest.hand_out(trees)?;
    }
    rounds(("trees", "trees of processes"), trees, time, |_| {
        forest.await_tree()?;
        forest.hand_out(trees)
    })?;
    // These trees were begun before the time was over.
    while !forest.growing.is_empty() {
        forest.await_tree()?;
        forest.hand_out(0)?;
    }
    let others = planters.len() + 1;
    for planter in planters {
        forest.await_planter(planter)?;
    }
    forest.expect_complete()?;
    let (begun, processes) = (forest.begun, forest.lives.complete);
    results::figure("trees of processes", begun as f64);
    results::figure("processes that began and ended", processes as f64);
    println!("trees: {processes} processes in {begun} trees, each with one FORK and one EXIT");
    expect(processes >= begun + others, "a process in each tree")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::scenario::exit;

    const PARENT: Task = Task::leader(1);

    fn begin(pid: i32) -> Event {
        Event::Fork {
            parent: PARENT,
            child: Task::leader(pid),
        }
    }

    /// Adds events, and then statuses. Returns how many lives are complete, and how many pids are not.
    fn lives(events: &[Event], waited: &[(i32, u32)]) -> (usize, usize) {
        let mut lives = Lives::default();
        for event in events {
            let added = lives.add_event(event);
            added.expect("the event is of a process");
        }
        for (pid, code) in waited {
            lives.add_waited(*pid, *code);
        }
        (lives.complete, lives.incomplete.len())
    }

    fn end(pid: i32, code: u32) -> Event {
        exit(Task::leader(pid), code, PARENT)
    }

    #[test]
    fn one_begin_and_one_end_with_the_status_are_complete() {
        let events = [begin(5), begin(6), end(6, 9), end(5, 0)];
        assert_eq!(lives(&events, &[(5, 0), (6, 9)]), (2, 0));
    }

    #[test]
    fn a_number_that_is_used_again_has_two_lives() {
        let events = [begin(5), begin(5), end(5, 9), end(5, 0)];
        assert_eq!(lives(&events, &[(5, 0), (5, 9)]), (2, 0));
    }

    #[test]
    fn anything_else_is_incomplete() {
        let cases: [(&[Event], Option<u32>); 6] = [
            (&[end(5, 0)], Some(0)),
            (&[begin(5)], Some(0)),
            (&[begin(5), end(5, 0)], None),
            (&[begin(5), begin(5), end(5, 0)], Some(0)),
            (&[begin(5), end(5, 0), end(5, 0)], Some(0)),
            (&[begin(5), end(5, 1)], Some(0)),
        ];
        for (events, code) in cases {
            let waited = code.map(|code| (5, code));
            assert_eq!(
                lives(events, waited.as_slice()),
                (0, 1),
                "{events:?}, {code:?}"
            );
        }
    }

    #[test]
    fn an_end_that_is_reported_again_later_is_incomplete() {
        let mut seen = Lives::default();
        seen.add_waited(5, 0);
        for event in [begin(5), end(5, 0), end(5, 0)] {
            let added = seen.add_event(&event);
            added.expect("the event is of a process");
        }
        assert_eq!((seen.complete, seen.incomplete.len()), (1, 1));
    }

    #[test]
    fn a_thread_is_refused() {
        let thread = Task { pid: 6, tgid: 5 };
        assert!(
            Lives::default()
                .add_event(&exit(thread, 0, PARENT))
                .is_err()
        );
    }
}
