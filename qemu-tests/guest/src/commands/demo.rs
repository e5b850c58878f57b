// SPDX-License-Identifier: GPL-2.0
//! Shows the events of a small real scenario: a thread, a change of user, a shell that starts
//! setsid(1), and a daemon that detaches.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::prctl;
use nix::sys::wait::WaitStatus;
use nix::unistd::{Uid, setresuid, setsid};

use crate::child::{self, Gate};
use crate::describe::sentence;
use crate::listener::Listener;
use crate::wire::{Event, Received, mask};

/// How long the whole scenario may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The user that a child of the scenario changes to.
const NOBODY: Uid = Uid::from_raw(65534);

/// Runs the scenario. Succeeds if the daemon's setsid() was reported with the right pid.
pub fn run() -> Result<ExitCode> {
    // The daemon becomes a child of this process when its parent ends, so that it can be waited for.
    prctl::set_child_subreaper(true)?;
    let mut listener = Listener::listen(mask::EVERYTHING)?;
    let (leader_gate, daemon_gate) = (Gate::new()?, Gate::new()?);
    let scenario = child::fork(|| match scenario(&leader_gate, &daemon_gate) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("the scenario failed: {error:#}");
            1
        }
    })?;
    let root = scenario.pid().as_raw();
    let mut story = Story::new(root);
    let deadline = Instant::now() + LIMIT;
    while story.living.contains(&root) {
        story.show(next(&mut listener, deadline)?)?;
    }
    let ended = scenario.wait()?;
    ensure!(
        matches!(ended, WaitStatus::Exited(_, 0)),
        "the scenario failed: {ended:?}"
    );
    let (leader, daemon) = (leader_gate.pass()?, daemon_gate.pass()?);
    ensure!(
        story.family.contains(&daemon),
        "no fork of {daemon} was reported"
    );
    // Every thread that a fork reported also ends. Its end may be reported after its process's.
    while !story.living.is_empty() {
        story.show(next(&mut listener, deadline)?)?;
    }
    Ok(story.sum_up(leader)?)
}

fn next(listener: &mut Listener, deadline: Instant) -> Result<Received> {
    let received = listener.receive(deadline)?;
    received.ok_or_else(|| anyhow!("the scenario did not end in {} s", LIMIT.as_secs()))
}

/// The scenario, which runs in a child.
fn scenario(leader_gate: &Gate, daemon_gate: &Gate) -> Result<()> {
    // Processes are forked first: a forking process must not have threads.
    let user = child::fork(|| i32::from(setresuid(NOBODY, NOBODY, NOBODY).is_err()))?;
    user.wait()?;
    let leader = child::fork(|| i32::from(daemonize(leader_gate, daemon_gate).is_err()))?;
    leader.wait()?;
    thread::spawn(|| rename("demo-thread"))
        .join()
        .map_err(|_| anyhow!("a thread panicked"))??;
    let shell = Command::new("/bin/sh")
        .args(["-c", "setsid true; exit 0"])
        .status();
    ensure!(
        shell.context("cannot start /bin/sh")?.success(),
        "the shell failed"
    );
    Ok(())
}

/// Makes a daemon in the classic way: a session, and then a process that does not lead it.
fn daemonize(leader_gate: &Gate, daemon_gate: &Gate) -> Result<()> {
    leader_gate.open(setsid()?.as_raw())?;
    let daemon = child::fork(|| {
        let renamed = rename("demo-daemon");
        let reported = daemon_gate.open(child::own_pid());
        i32::from(renamed.is_err() || reported.is_err())
    })?;
    // This process does not wait for it: it goes to the next reaper.
    let _ = daemon.into_pid();
    Ok(())
}

fn rename(name: &str) -> Result<()> {
    Ok(prctl::set_name(&CString::new(name)?)?)
}

/// The events of one process tree.
struct Story {
    /// Its processes.
    family: BTreeSet<i32>,
    /// The ids of its threads that have not ended.
    living: BTreeSet<i32>,
    leaders: Vec<i32>,
    counts: BTreeMap<&'static str, usize>,
    first_ns: Option<u64>,
}

impl Story {
    fn new(root: i32) -> Self {
        Self {
            family: BTreeSet::from([root]),
            living: BTreeSet::from([root]),
            leaders: Vec::new(),
            counts: BTreeMap::new(),
            first_ns: None,
        }
    }

    /// Prints an event, if it is about the family, and takes it into account.
    fn show(&mut self, received: Received) -> io::Result<()> {
        let event = received.event;
        if let Event::Fork { parent, child } = event {
            if self.family.contains(&parent.tgid) {
                self.family.insert(child.tgid);
                self.living.insert(child.pid);
            }
        }
        let subject = event.subject();
        if event.bit() == 0 || !self.family.contains(&subject.tgid) {
            return Ok(());
        }
        match event {
            Event::Sid { task, .. } => self.leaders.push(task.tgid),
            Event::Exit { task, .. } => {
                self.living.remove(&task.pid);
            }
            _ => {}
        }
        *self.counts.entry(event.kind()).or_default() += 1;
        let first = *self.first_ns.get_or_insert(received.timestamp_ns());
        let offset = received.timestamp_ns().saturating_sub(first) as f64 / 1e9;
        let (kind, pid) = (event.kind(), subject.pid);
        let mut output = io::stdout();
        writeln!(
            output,
            "{offset:>+10.6} s  {kind:<11} {pid:>6}  {}",
            sentence(&event)
        )?;
        output.flush()
    }

    /// Prints what was seen. Returns success if the daemon's session leader was reported once.
    fn sum_up(&self, leader: i32) -> io::Result<ExitCode> {
        let mut output = io::stdout();
        writeln!(output, "\nWhat was seen:")?;
        for (name, _) in mask::NAMES {
            if let Some(count) = self.counts.get(name) {
                writeln!(output, "  {name:<11} {count:>3}")?;
            }
        }
        let count = self.leaders.iter().filter(|pid| **pid == leader).count();
        let leaders: Vec<_> = self.leaders.iter().map(i32::to_string).collect();
        writeln!(output, "  session leaders: {}", leaders.join(", "))?;
        if count == 1 {
            writeln!(
                output,
                "  the daemon called setsid() as {leader}: reported, once"
            )?;
            Ok(ExitCode::SUCCESS)
        } else {
            writeln!(
                output,
                "  the daemon called setsid() as {leader}: reported {count} times"
            )?;
            Ok(ExitCode::FAILURE)
        }
    }
}
