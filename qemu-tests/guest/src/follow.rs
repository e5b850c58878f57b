// SPDX-License-Identifier: GPL-2.0
//! A small supervisor: it starts a daemon, and tells the daemon's end from that of the children
//! that detached from it.
//!
//! A child that calls setsid() has detached: it lives its own life, and a daemon that is started
//! again must not touch it. The SID event names the parent, so that nothing has to be looked up
//! in /proc, where a child that ended at once is not found any more.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::describe::sentence;
use crate::listener::Listener;
use crate::wire::{Event, LISTEN, mask};

/// How long one wait lasts; the next one follows.
const WAIT: Duration = Duration::from_secs(3600);

/// What to supervise.
#[derive(Args)]
pub struct Options {
    /// Program and arguments of the daemon, which stays in the foreground.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What a supervisor notices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Notice {
    /// The daemon itself became a session leader.
    Leads,
    /// A child of the daemon became one, and is on its own from now on.
    Detached(i32),
    /// Such a child ended.
    Left(i32),
    /// The daemon ended, with a status as wait(2) has it.
    Ended(u32),
}

impl fmt::Display for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leads => write!(formatter, "the daemon leads a session"),
            Self::Detached(child) => write!(formatter, "{child} detached"),
            Self::Left(child) => write!(formatter, "{child} ended, which had detached"),
            Self::Ended(status) => write!(formatter, "the daemon ended with status {status:#x}"),
        }
    }
}

/// A listener for what a supervisor needs, which the kernel has agreed to.
fn listen() -> Result<Listener> {
    let mut listener = Listener::open_unprivileged()?;
    listener.request(&[LISTEN, mask::SID | mask::EXIT])?;
    let answer = listener.wait_for("an answer to LISTEN", |received| received.event.bit() == 0)?;
    match answer.event {
        Event::Ack { err: 0 } => Ok(listener),
        event => bail!("{}", sentence(&event)),
    }
}

/// A daemon, and those who detached from it.
pub struct Supervisor {
    listener: Listener,
    daemon: Child,
    is_running: bool,
    detached: BTreeSet<i32>,
}

impl Supervisor {
    /// Starts the daemon, after asking for events: none of it is missed.
    pub fn start(command: &[String]) -> Result<Self> {
        let [program, arguments @ ..] = command else {
            bail!("no daemon is named");
        };
        let listener = listen().context("cannot listen for process events here")?;
        let daemon = Command::new(program)
            .args(arguments)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self {
            listener,
            daemon,
            is_running: true,
            detached: BTreeSet::new(),
        })
    }

    /// The daemon's process id.
    pub fn daemon(&self) -> i32 {
        self.daemon.id() as i32
    }

    /// Waits for the next thing to notice; `None` when the daemon and all who detached have ended.
    pub fn next(&mut self) -> Result<Option<Notice>> {
        while self.is_running || !self.detached.is_empty() {
            let received = self.listener.receive(Instant::now() + WAIT)?;
            let notice = received.and_then(|received| self.interpret(&received.event));
            if notice.is_some() {
                return Ok(notice);
            }
        }
        self.daemon.wait()?;
        Ok(None)
    }

    fn interpret(&mut self, event: &Event) -> Option<Notice> {
        let daemon = self.daemon();
        match *event {
            Event::Sid { task, .. } if task.tgid == daemon => Some(Notice::Leads),
            Event::Sid { task, left } if left.parent_tgid == daemon => {
                self.detached.insert(task.tgid);
                Some(Notice::Detached(task.tgid))
            }
            // The end of a thread is none of the process.
            Event::Exit { task, code, .. } if task.pid == daemon => {
                self.is_running = false;
                Some(Notice::Ended(code))
            }
            Event::Exit { task, .. } if self.detached.remove(&task.pid) => {
                Some(Notice::Left(task.pid))
            }
            _ => None,
        }
    }
}

/// Supervises a daemon, and shows what is noticed.
pub fn run(options: &Options) -> Result<()> {
    let mut supervisor = Supervisor::start(&options.command)?;
    let mut output = io::stdout();
    writeln!(output, "{} is the daemon", supervisor.daemon())?;
    while let Some(notice) = supervisor.next()? {
        writeln!(output, "{notice}")?;
    }
    Ok(())
}
