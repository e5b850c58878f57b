// SPDX-License-Identifier: GPL-2.0
//! A load in the background: on each CPU, processes begin, lead sessions, run programs, detach and end,
//! one after the other. While the load pauses, the living processes stay, and nothing else happens.

use std::ffi::CStr;
use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, execv, setsid};

use super::process::pause_for_ever;
use super::process::status;
use super::procfs::in_container;
use super::threads::end_thread;
use crate::child::{self, Child, Gate, own_pid};
use crate::cpus::{cpus, pin};
use crate::harness::{Failure, TestResult};
use crate::timeouts;

/// How many processes live at most for each CPU, and how many of those that have ended wait to be
/// reaped.
const LIVING: usize = 12;
const ZOMBIES: usize = 3;

/// How many pids the processes and threads of a CPU need at most.
const PIDS_PER_CPU: usize = 2 * (LIVING + ZOMBIES) + 8;

/// How long a pause may last.
const PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// The handshakes with the process that makes the load of one CPU.
struct Handshakes {
    pause: Gate,
    paused: Gate,
    resume: Gate,
}

impl Handshakes {
    fn new() -> nix::Result<Self> {
        Ok(Self {
            pause: Gate::new()?,
            paused: Gate::new()?,
            resume: Gate::new()?,
        })
    }

    /// Pauses if the load is to pause.
    fn pause_if_asked(&self) -> TestResult {
        let mut asked = [PollFd::new(self.pause.as_fd(), PollFlags::POLLIN)];
        if poll(&mut asked, PollTimeout::ZERO)? > 0 {
            self.pause.pass()?;
            self.paused.open(0)?;
            self.resume.pass_within(timeouts::scaled(PAUSE_LIMIT))?;
        }
        Ok(())
    }
}

/// The load on all CPUs, until the end of this process's pid namespace, or of the test.
pub struct BackgroundLoad {
    handshakes: Vec<Handshakes>,
}

impl BackgroundLoad {
    /// Starts the load.
    pub fn start() -> Result<Self, Failure> {
        let mut all = Vec::new();
        for cpu in cpus()? {
            let handshakes = Handshakes::new()?;
            child::fork(|| status(|| run_on(cpu, &handshakes)))?.into_pid();
            all.push(handshakes);
        }
        Ok(Self { handshakes: all })
    }

    /// Asks for a pause, and waits until the load of each CPU pauses.
    pub fn pause(&self) -> TestResult {
        for handshakes in &self.handshakes {
            handshakes.pause.open(0)?;
        }
        for handshakes in &self.handshakes {
            handshakes.paused.pass()?;
        }
        Ok(())
    }

    /// Resumes the load.
    pub fn resume(&self) -> TestResult {
        for handshakes in &self.handshakes {
            handshakes.resume.open(0)?;
        }
        Ok(())
    }
}

/// Runs a function beside a load whose processes get the same pids again and again.
pub fn beside_load(function: impl FnOnce(&BackgroundLoad) -> TestResult) -> TestResult {
    /// The lowest pid that is used again, `RESERVED_PIDS`.
    const LOWEST: usize = 300;
    in_container(|| {
        let numbers = 2 * PIDS_PER_CPU * cpus()?.len();
        fs::write("/proc/sys/kernel/pid_max", (LOWEST + numbers).to_string())?;
        function(&BackgroundLoad::start()?)
    })
}

/// Makes the load of one CPU.
fn run_on(cpu: usize, handshakes: &Handshakes) -> TestResult {
    pin(cpu)?;
    // A process that detached is reaped here, too.
    set_child_subreaper(true)?;
    let mut random = Rng::with_seed(cpu as u64);
    let mut processes = Processes {
        living: Vec::new(),
        zombies: Vec::new(),
        settled: Gate::new()?,
    };
    loop {
        handshakes.pause_if_asked()?;
        processes.step(&mut random)?;
    }
}

/// The processes of one CPU.
struct Processes {
    living: Vec<Pid>,
    /// Processes that have ended, and were not reaped.
    zombies: Vec<Pid>,
    /// A process opens it before it pauses for ever.
    settled: Gate,
}

impl Processes {
    /// Does one thing, whose effects are over when this returns.
    fn step(&mut self, random: &mut Rng) -> TestResult {
        match random.u8(0..10) {
            0 => _ = child::fork(|| 0)?.wait()?,
            1 => _ = child::fork(|| i32::from(setsid().is_err()))?.wait()?,
            2 => _ = child::fork(|| run_by_thread(c"/bin/true", &[c"true"]))?.wait()?,
            3 => self.live(|| pause_for_ever())?,
            4 => self.lead()?,
            5 => self.live(|| run_by_thread(c"/bin/sleep", &[c"sleep", c"1000"]))?,
            6 => self.live(lose_first_thread)?,
            7 => self.detach()?,
            _ => self.kill(random)?,
        }
        while self.living.len() > LIVING {
            self.kill(random)?;
        }
        while self.zombies.len() > ZOMBIES {
            waitpid(self.zombies.remove(0), None)?;
        }
        Ok(())
    }

    /// Starts a process that stays alive.
    fn live(&mut self, function: impl FnOnce() -> i32) -> TestResult {
        self.living.push(child::fork(function)?.into_pid());
        Ok(())
    }

    /// Starts a process that leads a session.
    fn lead(&mut self) -> TestResult {
        let settled = &self.settled;
        let leader = child::fork(|| {
            let leads = setsid().is_ok() && settled.open(0).is_ok();
            if leads { pause_for_ever() } else { 1 }
        })?;
        self.living.push(leader.into_pid());
        settled.pass()?;
        Ok(())
    }

    /// Starts a process whose parent ends, as daemons do.
    fn detach(&mut self) -> TestResult {
        let settled = &self.settled;
        let parent = child::fork(|| {
            let detached = setsid().and_then(|_| {
                child::fork(|| match settled.open(own_pid()) {
                    Ok(()) => pause_for_ever(),
                    Err(_) => 1,
                })
            });
            i32::from(detached.map(Child::into_pid).is_err())
        })?;
        let pid = settled.pass()?;
        parent.wait()?;
        self.living.push(Pid::from_raw(pid));
        Ok(())
    }

    /// Kills a process, which may be a zombie for a while.
    fn kill(&mut self, random: &mut Rng) -> TestResult {
        if self.living.is_empty() {
            return Ok(());
        }
        let pid = self.living.swap_remove(random.usize(0..self.living.len()));
        kill(pid, Signal::SIGKILL)?;
        let keep = if random.bool() {
            self.zombies.push(pid);
            WaitPidFlag::WNOWAIT
        } else {
            WaitPidFlag::empty()
        };
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | keep)?;
        Ok(())
    }
}

/// Runs a program in a thread other than the first.
fn run_by_thread(program: &CStr, arguments: &[&CStr]) -> i32 {
    thread::scope(|scope| {
        scope.spawn(|| {
            let failed = execv(program, arguments).is_err();
            child::exit(|| i32::from(failed))
        });
        pause_for_ever()
    })
}

/// Ends the first thread, and keeps another one alive.
fn lose_first_thread() -> i32 {
    thread::scope(|scope| {
        scope.spawn(|| pause_for_ever());
        end_thread(0)
    })
}
