// SPDX-License-Identifier: GPL-2.0
//! Storms of processes whose threads run programs, end and are killed at the same time. A model
//! follows by FORK and EXIT only which numbers are in use. It has to agree with /proc after each storm.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use fastrand::Rng;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{execv, pause, pipe2};

use super::rounds::{NO_LIMIT, rounds};
use crate::child;
use crate::harness::{Failure, TestResult, expect_eq};
use crate::listener::Listener;
use crate::proc_stat::{has_ended, processes, threads_of};
use crate::results;
use crate::support::container::{Container, PID, available, keep_mounts, mount_own_proc};
use crate::support::polling::poll_until_done;
use crate::support::threads::end_thread;
use crate::timeouts;
use crate::wire::{Event, Task, mask};

/// How much to do.
#[derive(Args)]
pub struct Options {
    /// How many storms.
    #[arg(long, default_value_t = 10_000)]
    pub rounds: usize,
    /// The seed of the storms.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Processes of a storm.
const PROCESSES: usize = 4;

/// How many threads a process has at most.
const THREADS: usize = 6;

/// How long a storm may take.
const STORM_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take until what has happened is reported, and shown in /proc.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What a thread does when all threads of its process are there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Executes,
    Ends,
    EndsAll,
    Waits,
}

impl Action {
    fn any(random: &mut Rng) -> Self {
        match random.u8(0..10) {
            0..4 => Self::Executes,
            4..7 => Self::Ends,
            7 => Self::EndsAll,
            _ => Self::Waits,
        }
    }
}

/// Runs the storms, and prints the figures.
pub fn run(options: &Options) -> TestResult {
    let Options { rounds, seed } = *options;
    println!("execs: {rounds} rounds from the seed {seed}");
    let own_numbers = available(PID) == PID;
    let kinds = available(PID) | CloneFlags::CLONE_NEWNS;
    Container::start(kinds, || {
        if own_numbers {
            keep_mounts()?;
            mount_own_proc()?;
        }
        do_storms(rounds, &mut Rng::with_seed(seed), own_numbers)
    })?
    .finish()
}

fn do_storms(storms: usize, random: &mut Rng, own_numbers: bool) -> TestResult {
    let mut model = Model::begin()?;
    let count = rounds(("execs", "storms"), storms, NO_LIMIT, |_| {
        storm(&mut model, random, own_numbers)
    })?;
    let Model { begun, ended, .. } = model;
    results::figure("storms of execs", count as f64);
    results::figure("numbers that began and ended", ended as f64);
    println!("execs: {begun} numbers began, {ended} ended, the model agrees with /proc");
    Ok(())
}

/// Runs one storm. Compares the model with /proc when the storm is over, and when all its processes are
/// gone.
fn storm(model: &mut Model, random: &mut Rng, own_numbers: bool) -> TestResult {
    let (over, last) = pipe2(OFlag::O_CLOEXEC)?;
    let mut processes = Vec::new();
    let mut plans = Vec::new();
    for _ in 0..PROCESSES {
        let actions: Vec<_> = (0..random.usize(1..=THREADS))
            .map(|_| Action::any(random))
            .collect();
        let plan = actions.clone();
        let last = last.as_raw_fd();
        processes.push(child::fork(move || act(plan, last))?.into_pid());
        plans.push(actions);
    }
    drop(last);
    for process in &processes {
        if random.u8(0..4) == 0 {
            // At any point of what it does.
            for _ in 0..random.u32(0..20_000) {
                std::hint::spin_loop();
            }
            kill(*process, Signal::SIGKILL)?;
        }
    }
    let family = |own_numbers: bool| {
        let mut family: Vec<_> = processes.iter().map(|pid| pid.as_raw()).collect();
        family.push(child::own_pid());
        (!own_numbers).then_some(family)
    };
    let about = |failure: Failure| failure.about(format!("of {processes:?}, which do {plans:?}"));
    await_end(&over).map_err(about)?;
    model.agree(family(own_numbers)).map_err(about)?;
    for process in &processes {
        kill(*process, Signal::SIGKILL)?;
        waitpid(*process, None)?;
    }
    model.agree(family(own_numbers)).map_err(about)
}

/// Waits until no process has the other end of a pipe any more.
fn await_end(pipe: &OwnedFd) -> TestResult {
    let limit = timeouts::for_poll(timeouts::scaled(STORM_LIMIT));
    let mut closed = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    expect_eq("the end of a storm", poll(&mut closed, limit)?, 1)
}

/// A process of a storm. Its `last` descriptor is open until all of its actions are done: exec closes
/// it, and so does the end of the process, or the last thread that does something else.
fn act(actions: Vec<Action>, last: i32) -> i32 {
    // These live as long as the process.
    let barrier: &'static Barrier = Box::leak(Box::new(Barrier::new(actions.len())));
    let undone: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(actions.len())));
    let closes_itself = actions.contains(&Action::Executes) || actions.contains(&Action::EndsAll);
    let act = move |action| {
        barrier.wait();
        if undone.fetch_sub(1, Ordering::AcqRel) == 1 && !closes_itself {
            // SAFETY: The descriptor is this process's own, and nothing in the process uses it.
            unsafe { libc::close(last) };
        }
        match action {
            Action::Executes => {
                let _ = execv(c"/bin/sleep", &[c"sleep", c"1000"]);
                // Another thread was first, or the process was killed: there is nothing to return to.
                end_thread(1)
            }
            Action::Ends => end_thread(0),
            // SAFETY: The call ends the process, so that nothing is left to be unsound.
            Action::EndsAll => unsafe { libc::_exit(0) },
            Action::Waits => loop {
                pause();
            },
        }
    };
    for action in &actions[1..] {
        let action = *action;
        thread::spawn(move || act(action));
    }
    act(actions[0])
}

/// The numbers in use, each with its process: from /proc once, and then by FORK and EXIT only.
struct Model {
    listener: Listener,
    living: BTreeMap<i32, i32>,
    begun: u64,
    ended: u64,
}

impl Model {
    fn begin() -> Result<Self, Failure> {
        let listener = Listener::listen(mask::FORK | mask::EXIT)?;
        let mut model = Self {
            listener,
            living: in_proc()?,
            begun: 0,
            ended: 0,
        };
        // What happened before /proc was read is in both.
        for event in model.read_events()? {
            match event {
                Event::Fork { child, .. } => _ = model.living.insert(child.pid, child.tgid),
                Event::Exit { task, .. } => _ = model.living.remove(&task.pid),
                _ => {}
            }
        }
        Ok(model)
    }

    fn read_events(&mut self) -> Result<Vec<Event>, Failure> {
        let messages = self.listener.take_queued()?;
        Ok(messages.iter().map(|received| received.event).collect())
    }

    /// Takes what was reported. Expects each number to begin once before it ends, and to end once.
    fn follow(&mut self) -> TestResult {
        for event in self.read_events()? {
            match event {
                Event::Fork { child, .. } => {
                    let before = self.living.insert(child.pid, child.tgid);
                    expect_eq(&format!("{event:?} of a number in use"), before, None)?;
                    self.begun += 1;
                }
                Event::Exit {
                    task: Task { pid, tgid },
                    ..
                } => {
                    let before = self.living.remove(&pid);
                    expect_eq(&format!("{event:?} of a number in use"), before, Some(tgid))?;
                    self.ended += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Expects the model to agree with /proc in the end: about all numbers, or about those of a family
    /// of processes.
    fn agree(&mut self, family: Option<Vec<i32>>) -> TestResult {
        // Nothing reports when /proc stops showing what has ended.
        poll_until_done(SETTLE_LIMIT, || {
            let in_proc = restrict(in_proc()?, family.as_deref());
            self.follow()?;
            let living = restrict(self.living.clone(), family.as_deref());
            Ok((living != in_proc)
                .then(|| format!("the numbers {in_proc:?}, by /proc, got {living:?}, by events")))
        })
    }
}

fn restrict(mut numbers: BTreeMap<i32, i32>, family: Option<&[i32]>) -> BTreeMap<i32, i32> {
    if let Some(family) = family {
        numbers.retain(|_, process| family.contains(process));
    }
    numbers
}

/// The numbers in use according to /proc, each with its process.
///
/// A thread that has ended, and waits to be reaped, no longer uses its number. But the first thread
/// does as long as its process lives.
fn in_proc() -> Result<BTreeMap<i32, i32>, Failure> {
    let mut numbers = BTreeMap::new();
    for process in processes()? {
        let tasks = threads_of(process);
        for task in &tasks {
            let has_ended = has_ended(format!("{process}/task/{task}"));
            if !has_ended || (*task == process && tasks.len() > 1) {
                numbers.insert(*task, process);
            }
        }
    }
    Ok(numbers)
}
