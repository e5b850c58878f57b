// SPDX-License-Identifier: GPL-2.0
//! The programs that the interface's documentation shows, and what they have to print.

use std::env;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, getpid, getsid, setsid};

use super::cgroup;
use super::program::RunningProgram;
use super::scenario::{is_exit, take_through_exit};
use crate::child::{self, Gate};
use crate::cpus::{cpus, pin};
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::identities;
use crate::listener::Listener;
use crate::wire::mask;

/// Why their tests do not run on the stock kernel.
pub const NEEDS: &str = "the programs say that they need newer features";

/// How long a session leader may wait for its end.
const LIMIT: Duration = Duration::from_secs(60);

/// More sessions than this room has space for.
const MANY: usize = 400;

fn new_session() -> i32 {
    i32::from(setsid().is_err())
}

/// A session whose leader waits until it is killed. The session exists when this returns.
fn waiting_leader() -> Result<child::Child, Failure> {
    let (ready, never) = (Gate::new()?, Gate::new()?);
    let leader = child::fork(|| {
        let failed = new_session();
        ready
            .open(failed)
            .and_then(|()| never.pass_within(LIMIT))
            .unwrap_or(1)
    })?;
    expect_eq("setsid() fails", ready.pass()?, 0)?;
    Ok(leader)
}

/// Waits for a process that was killed, and until no listener can get its EXIT any more. As on the
/// stock kernel, the parent may have reaped the process before its EXIT is reported.
fn wait_until_reported(process: child::Child, exits: &mut Listener) -> TestResult {
    let pid = process.pid().as_raw();
    process.wait()?;
    let what = format!("EXIT of {pid}");
    let exit = exits.wait_for(&what, |received| is_exit(received, pid))?;

    // The next event of this CPU is reported after it, to all listeners.
    pin(exit.message.body.cpu as usize)?;
    let next = child::fork(|| 0)?;
    let pid = next.pid().as_raw();
    next.wait()?;
    take_through_exit(exits, pid)?;
    Ok(())
}

/// Raises an event on each CPU, which takes a sequence number there.
fn exit_on_each_cpu() -> TestResult {
    for cpu in cpus()? {
        pin(cpu)?;
        child::fork(|| 0)?.wait()?;
    }
    Ok(())
}

/// A program, and a property of the system that has to be looked up while /proc is there.
pub struct Example {
    path: String,
    has_cgroups: bool,
}

impl Example {
    /// The program of this name, which scripts/examples puts where the harness is built.
    pub fn named(name: &str) -> Result<Self, Failure> {
        let path = env::current_exe()?.with_file_name(name);
        Ok(Self {
            path: path.to_string_lossy().into_owned(),
            has_cgroups: cgroup::are_there(),
        })
    }

    fn start(&self) -> Result<RunningProgram, Failure> {
        let mut program = RunningProgram::start(&[&self.path])?;
        program.wait_for("listening, features 0x")?;
        Ok(program)
    }

    /// What the program prints for the identity of a child in the test's own control group.
    fn identity(&self, child: Pid) -> Result<String, Failure> {
        let number = identities::number_of(child)?;
        let group = if self.has_cgroups {
            cgroup::id_of(&child::pidfd(getpid())?)?
        } else {
            0
        };
        Ok(format!("(pidfd inode {number}, cgroup {group})"))
    }

    /// Expects the program to print sessions that began before and after it, and their ends.
    pub fn follows_sessions(&self) -> TestResult {
        let before = waiting_leader()?;
        let of_before = self.identity(before.pid())?;
        let mut listener = self.start()?;
        listener.wait_for(&format!("session {} is there {of_before}\n", before.pid()))?;
        expect_processes(&mut listener)?;

        let new = child::fork(|| new_session() + 7)?;
        let pid = new.pid();
        let of_new = self.identity(pid)?;
        new.wait()?;
        let (parent, session, group) = (getpid(), getsid(None)?, getpgrp());
        listener.wait_for(&format!(
            "session {pid} began: child of {parent}, left session {session} and process group \
             {group} {of_new}\n"
        ))?;
        listener.wait_for(&format!("process {pid} exited with status 7 {of_new}\n"))?;

        exit_on_each_cpu()?;
        kill(before.pid(), Signal::SIGKILL)?;
        listener.wait_for(&format!(
            "process {} was killed by signal 9 {of_before}\n",
            before.pid()
        ))?;
        before.wait()?;
        expect_no_loss(&listener.stop(Signal::SIGTERM)?)
    }

    /// Expects the program to ask for the state after a loss. The caller gives it little room.
    pub fn recovers_from_a_loss(&self) -> TestResult {
        let known = waiting_leader()?;
        let mut listener = self.start()?;
        listener.wait_for(&format!("session {} is there ", known.pid()))?;
        expect_processes(&mut listener)?;
        let pid = listener.pause()?;
        for _ in 0..MANY {
            child::fork(new_session)?.wait()?;
        }
        let unseen = waiting_leader()?;
        let gone = format!("session {} is gone\n", known.pid());
        let mut exits = Listener::listen(mask::EXIT)?;
        kill(known.pid(), Signal::SIGKILL)?;
        wait_until_reported(known, &mut exits)?;
        kill(pid, Signal::SIGCONT)?;
        listener.wait_for("no room for more events\n")?;
        listener.wait_for(&format!("session {} is there ", unseen.pid()))?;
        listener.wait_for(&gone)?;
        expect_processes(&mut listener)?;
        kill(unseen.pid(), Signal::SIGKILL)?;
        unseen.wait()?;

        // The next message of a CPU shows how many are missing.
        exit_on_each_cpu()?;
        listener.wait_for("lost ")?;

        let after = child::fork(new_session)?;
        let began = format!("session {} began", after.pid());
        after.wait()?;
        listener.wait_for(&began)?;
        listener.stop(Signal::SIGTERM)?;
        Ok(())
    }
}

/// Waits for the end of a state. It has at least three processes: the test, the listener, and a
/// leader.
fn expect_processes(listener: &mut RunningProgram) -> TestResult {
    let count: usize = listener.wait_for_line("how many processes are there", |line| {
        line.strip_suffix(" processes are there")?.parse().ok()
    })?;
    expect(count >= 3, format!("3 processes, got {count}"))
}

fn expect_no_loss(said: &str) -> TestResult {
    expect_eq("losses", said.matches("lost ").count(), 0)?;
    expect_eq("overruns", said.matches("no room").count(), 0)
}
