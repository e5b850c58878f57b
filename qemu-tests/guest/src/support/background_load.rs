// SPDX-License-Identifier: GPL-2.0
//! Unrest: on all CPUs, processes begin, lead sessions, run programs, detach and end, one after the
//! other, until they are to rest. Who lives then lives on, and nothing happens.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, execv, pause, setsid};

use super::process::status;
use super::threads::end_thread;
use crate::child::{self, Child, Gate, own_pid};
use crate::cpus::{cpus, pin};
use crate::harness::{Failure, TestResult};
use crate::timeouts;

/// How many processes live at most for each CPU, and how many of those that have ended wait to be
/// reaped.
const LIVING: usize = 12;
const ZOMBIES: usize = 3;

/// How many numbers the processes and threads of a CPU need at most.
pub const NUMBERS: usize = 2 * (LIVING + ZOMBIES) + 8;

/// How long a rest may last.
const LIMIT: Duration = Duration::from_secs(60);

/// The handshakes with who makes the unrest of one CPU.
struct Cues {
    rest: Gate,
    resting: Gate,
    go_on: Gate,
}

impl Cues {
    fn new() -> nix::Result<Self> {
        Ok(Self {
            rest: Gate::new()?,
            resting: Gate::new()?,
            go_on: Gate::new()?,
        })
    }

    /// Rests if that is to be.
    fn follow(&self) -> TestResult {
        let mut asked = [PollFd::new(self.rest.as_fd(), PollFlags::POLLIN)];
        if poll(&mut asked, PollTimeout::ZERO)? > 0 {
            self.rest.pass()?;
            self.resting.open(0)?;
            self.go_on.pass_within(timeouts::scaled(LIMIT))?;
        }
        Ok(())
    }
}

/// Unrest on all CPUs, up to the end of this process's pid namespace, or of the test.
pub struct Unrest {
    cues: Vec<Cues>,
}

impl Unrest {
    /// Begins.
    pub fn begin() -> Result<Self, Failure> {
        let mut all = Vec::new();
        for cpu in cpus()? {
            let cues = Cues::new()?;
            child::fork(|| status(|| make(cpu, &cues)))?.into_pid();
            all.push(cues);
        }
        Ok(Self { cues: all })
    }

    /// Has all come to rest, and waits until they have.
    pub fn rest(&self) -> TestResult {
        for cues in &self.cues {
            cues.rest.open(0)?;
        }
        for cues in &self.cues {
            cues.resting.pass()?;
        }
        Ok(())
    }

    /// Goes on.
    pub fn go_on(&self) -> TestResult {
        for cues in &self.cues {
            cues.go_on.open(0)?;
        }
        Ok(())
    }
}

/// Makes the unrest of one CPU.
fn make(cpu: usize, cues: &Cues) -> TestResult {
    pin(cpu)?;
    // Who detached is ours to reap, too.
    set_child_subreaper(true)?;
    let mut random = Rng::with_seed(cpu as u64);
    let mut family = Family {
        living: Vec::new(),
        zombies: Vec::new(),
        settled: Gate::new()?,
    };
    loop {
        cues.follow()?;
        family.stir(&mut random)?;
    }
}

/// The processes of one CPU.
struct Family {
    living: Vec<Pid>,
    /// Who has ended, and was not reaped.
    zombies: Vec<Pid>,
    /// Opened by who has done what it does.
    settled: Gate,
}

impl Family {
    /// Something happens, whose consequences are over when this returns.
    fn stir(&mut self, random: &mut Rng) -> TestResult {
        match random.u8(0..10) {
            0 => _ = child::fork(|| 0)?.wait()?,
            1 => _ = child::fork(|| i32::from(setsid().is_err()))?.wait()?,
            2 => _ = child::fork(|| run_by_thread(c"/bin/true", &[c"true"]))?.wait()?,
            3 => self.live(pause_for_ever)?,
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

    /// Somebody who lives on.
    fn live(&mut self, function: impl FnOnce() -> i32) -> TestResult {
        self.living.push(child::fork(function)?.into_pid());
        Ok(())
    }

    /// Somebody who leads a session.
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

    /// Somebody whose parent ends, as daemons do it.
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

    /// Somebody ends, and may be a zombie for a while.
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

fn pause_for_ever() -> i32 {
    loop {
        pause();
    }
}

/// Runs a program by another thread than the first.
fn run_by_thread(program: &CStr, arguments: &[&CStr]) -> i32 {
    thread::scope(|scope| {
        scope.spawn(|| {
            let failed = execv(program, arguments).is_err();
            child::exit(|| i32::from(failed))
        });
        pause_for_ever()
    })
}

/// Ends the first thread, and lets another one live.
fn lose_first_thread() -> i32 {
    thread::scope(|scope| {
        scope.spawn(pause_for_ever);
        end_thread(0)
    })
}
