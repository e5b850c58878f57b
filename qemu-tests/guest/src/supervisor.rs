// SPDX-License-Identifier: GPL-2.0
//! A small supervisor: it keeps a service running, and leaves alone what detached from it.
//!
//! It listens for the begin and the end of sessions, and for nothing else. The service gets a
//! session of its own. Who leaves that session for one of their own has detached: with OpenSSH's
//! server, each login does. When the service fails, what has not detached is killed, and the service
//! is started again; logins go on. A service that ends well is not started again: if something
//! detached before, it has put itself into the background, as daemons do that fork twice.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, execvp, setsid};

use crate::child;
use crate::describe::ending;
use crate::listener::{EVENT_LIMIT, Listener};
use crate::patience;
use crate::wire::{Event, LISTEN, Left, mask};

/// `PROC_CN_FEATURE_SID_ORIGIN` and `PROC_CN_FEATURE_SESSION_END`.
const FEATURES: u32 = 0x8 | 0x10;

/// How long one wait for an event lasts; the next one follows.
const WAIT: Duration = Duration::from_secs(3600);

/// Status of a service whose program cannot be run, as shells have it.
const NOT_RUN: i32 = 127;

/// What to keep running.
#[derive(Args)]
pub struct Options {
    /// The service: a program that stays in the foreground, and its arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Supervises until the service ends well.
pub fn run(options: &Options) -> Result<ExitCode> {
    let words = options
        .command
        .iter()
        .map(|word| CString::new(word.as_str()));
    let words = words.collect::<Result<Vec<_>, _>>()?;
    let mut listener = follow_sessions()?;
    let mut service = Service::start(&words)?;
    // The leaders of the sessions that come from the service, or from one that did.
    let mut detached = BTreeSet::new();
    loop {
        let Some(received) = listener.receive(Instant::now() + WAIT)? else {
            continue;
        };
        match received.event {
            Event::Sid { task, left } if service.is_origin_of(&left, &detached) => {
                service.has_detached |= left.session == service.leader;
                detached.insert(task.tgid);
                say(&format!(
                    "session {} detached from {}",
                    task.tgid, left.session
                ))?;
            }
            Event::SessionEnd { task, code, .. } if task.tgid == service.leader => {
                say(&format!("service {} {}", task.tgid, ending(code)))?;
                service.clean_up()?;
                ensure!(code != (NOT_RUN as u32) << 8, "the service cannot be run");
                if code == 0 {
                    if service.has_detached {
                        say(&format!("service {} is in the background", task.tgid))?;
                    }
                    return Ok(ExitCode::SUCCESS);
                }
                service = Service::start(&words)?;
            }
            Event::SessionEnd { task, code, .. } if detached.remove(&task.tgid) => {
                say(&format!("session {} {}", task.tgid, ending(code)))?;
            }
            _ => {}
        }
    }
}

/// A listener for both ends of sessions, on a kernel that tells all that is needed.
fn follow_sessions() -> Result<Listener> {
    // The large buffer needs rights that who runs in a container has not.
    let mut listener = Listener::open().or_else(|_| Listener::open_unprivileged())?;
    listener.request(&[LISTEN, mask::SID | mask::SESSION_END])?;
    let answer = listener.receive(patience::deadline(EVENT_LIMIT))?;
    let Some(answer) = answer.filter(|answer| answer.event.bit() == 0) else {
        bail!("this kernel does not answer those who follow sessions: it is too old");
    };
    if let Event::Ack { err } = answer.event {
        ensure!(err == 0, "{}", io::Error::from_raw_os_error(err as i32));
    }
    ensure!(
        answer.features() & FEATURES == FEATURES,
        "this kernel does not tell the end of sessions, or where they come from: it is too old"
    );
    Ok(listener)
}

/// The service's process, which leads a session.
struct Service {
    leader: i32,
    /// Whether a session began that comes from the service's own.
    has_detached: bool,
}

impl Service {
    fn start(words: &[CString]) -> Result<Self> {
        let program = words.first().context("no service is named")?;
        let process = child::fork(|| {
            let error = match setsid() {
                Ok(_) => execvp(program, words).err(),
                Err(error) => Some(error),
            };
            eprintln!("cannot run {program:?}: {error:?}");
            NOT_RUN
        })?;
        let leader = process.into_pid().as_raw();
        say(&format!("service {leader} started"))?;
        Ok(Self {
            leader,
            has_detached: false,
        })
    }

    /// Whether a session that was left is the service's, or came from it.
    fn is_origin_of(&self, left: &Left, detached: &BTreeSet<i32>) -> bool {
        left.session == self.leader || detached.contains(&left.session)
    }

    /// Kills what the ended service leaves in its process group, which it led.
    fn clean_up(&self) -> Result<()> {
        let leader = Pid::from_raw(self.leader);
        // It is ours to reap, so the number is its own still.
        killpg(leader, Signal::SIGKILL).context("cannot kill the rest of the service")?;
        waitpid(leader, None).context("cannot reap the service")?;
        Ok(())
    }
}

/// Prints a line in one piece.
fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(format!("{line}\n").as_bytes())?;
    output.flush()
}
