// SPDX-License-Identifier: GPL-2.0
//! A small supervisor: it keeps a service running, and leaves alone what detached from it.
//!
//! It listens for the begin and the end of sessions, and for nothing else. The service gets a
//! session of its own. Who leaves that session for one of their own has detached: with OpenSSH's
//! server, each login does. When the service fails, what has not detached is killed, and the service
//! is started again; logins go on. A service that ends well is not started again: if something
//! detached before, it has put itself into the background, as daemons do that fork twice.
//!
//! When an event is read, the pid in it may be another process's: that of the service which was just
//! started, say. So processes are told apart by their identities, where the kernel has them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, execvp, setsid};

use crate::child;
use crate::describe::ending;
use crate::identities;
use crate::listener::Listener;
use crate::wire::{Event, Identity, Left, Task, mask};

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
    let mut follower = Follower::listen()?;
    let mut service = Service::start(&words, &follower)?;
    let mut sessions = Sessions::default();
    loop {
        let Some((event, who)) = follower.next()? else {
            continue;
        };
        match event {
            Event::Sid { task, .. } if who.process == service.process => {
                sessions.begin(task, who);
            }
            Event::Sid { task, left } => {
                let Some(origin) = sessions.origin(&left, &who) else {
                    continue;
                };
                service.has_detached |= origin == service.process;
                sessions.begin(task, who);
                say(&format!(
                    "session {} detached from {}",
                    task.tgid, left.session
                ))?;
            }
            Event::SessionEnd { task, code, .. } if who.process == service.process => {
                say(&format!("service {} {}", task.tgid, ending(code)))?;
                sessions.end(task, &who);
                service.clean_up()?;
                ensure!(code != (NOT_RUN as u32) << 8, "the service cannot be run");
                if code == 0 {
                    if service.has_detached {
                        say(&format!("service {} is in the background", task.tgid))?;
                    }
                    return Ok(ExitCode::SUCCESS);
                }
                service = Service::start(&words, &follower)?;
            }
            Event::SessionEnd { task, code, .. } if sessions.end(task, &who) => {
                say(&format!("session {} {}", task.tgid, ending(code)))?;
            }
            _ => {}
        }
    }
}

/// Hears of both ends of sessions, and of which processes lead them.
struct Follower {
    listener: Listener,
    has_identities: bool,
}

impl Follower {
    /// Listens, on a kernel that tells all that is needed.
    fn listen() -> Result<Self> {
        // The large buffer needs rights that who runs in a container has not.
        let mut listener = Listener::open().or_else(|_| Listener::open_unprivileged())?;
        let features = identities::listen(&mut listener, mask::SID | mask::SESSION_END)?;
        ensure!(
            features & FEATURES == FEATURES,
            "this kernel does not tell the end of sessions, or where they come from: it is too old"
        );
        Ok(Self {
            listener,
            has_identities: features & identities::FEATURE != 0,
        })
    }

    /// What happened next, and to which process: on an older kernel, pids have to do.
    fn next(&mut self) -> Result<Option<(Event, Identity)>> {
        let Some(received) = self.listener.receive(Instant::now() + WAIT)? else {
            return Ok(None);
        };
        let event = received.event;
        let who = if self.has_identities {
            // Who has none was reported before they were asked for, and so before the service.
            received.identity
        } else {
            Some(Identity {
                process: event.subject().tgid as u64,
                ..Identity::default()
            })
        };
        Ok(who.map(|who| (event, who)))
    }

    /// What events have for a child that was not reaped.
    fn number_of(&self, child: Pid) -> io::Result<u64> {
        if self.has_identities {
            identities::number_of(child)
        } else {
            Ok(child.as_raw() as u64)
        }
    }
}

/// The sessions that live: the service's, and those that come from it, or from one that did. Each
/// has the pid of its leader as its number, for as long as somebody is in it.
#[derive(Default)]
struct Sessions {
    leaders: BTreeMap<i32, Identity>,
}

impl Sessions {
    fn begin(&mut self, leader: Task, who: Identity) {
        self.leaders.insert(leader.tgid, who);
    }

    /// Who leads the session that a process left, if it is one of these.
    fn origin(&self, left: &Left, who: &Identity) -> Option<u64> {
        let leader = self.leaders.get(&left.session)?;
        // Who is older than the leader was in a session that had the number before.
        (leader.start_ns <= who.start_ns).then_some(leader.process)
    }

    /// Forgets a session, if it is one of these and not another one with the same number.
    fn end(&mut self, leader: Task, who: &Identity) -> bool {
        let known = self.leaders.get(&leader.tgid);
        let is_known = known.is_some_and(|known| known.process == who.process);
        if is_known {
            self.leaders.remove(&leader.tgid);
        }
        is_known
    }
}

/// The service's process, which leads a session.
struct Service {
    leader: Pid,
    /// What events have for it.
    process: u64,
    /// Whether a session began that comes from the service's own.
    has_detached: bool,
}

impl Service {
    fn start(words: &[CString], follower: &Follower) -> Result<Self> {
        let program = words.first().context("no service is named")?;
        let process = child::fork(|| {
            let error = match setsid() {
                Ok(_) => execvp(program, words).err(),
                Err(error) => Some(error),
            };
            eprintln!("cannot run {program:?}: {error:?}");
            NOT_RUN
        })?;
        let leader = process.into_pid();
        say(&format!("service {leader} started"))?;
        Ok(Self {
            leader,
            process: follower.number_of(leader)?,
            has_detached: false,
        })
    }

    /// Kills what the ended service leaves in its process group, which it led.
    fn clean_up(&self) -> Result<()> {
        // It is ours to reap, so the number is its own still.
        killpg(self.leader, Signal::SIGKILL).context("cannot kill the rest of the service")?;
        waitpid(self.leader, None).context("cannot reap the service")?;
        Ok(())
    }
}

/// Prints a line in one piece.
fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(format!("{line}\n").as_bytes())?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(process: u64, start_ns: u64) -> Identity {
        Identity {
            process,
            start_ns,
            ..Identity::default()
        }
    }

    fn left(session: i32) -> Left {
        Left {
            session,
            ..Left::default()
        }
    }

    #[test]
    fn a_session_is_known_by_its_leader_and_not_by_its_number() {
        let (number, old, new) = (Task::leader(7), who(100, 10), who(101, 30));
        let mut sessions = Sessions::default();
        sessions.begin(number, new);
        assert!(!sessions.end(number, &old));
        assert_eq!(sessions.origin(&left(7), &who(102, 20)), None);
        assert_eq!(sessions.origin(&left(7), &who(103, 40)), Some(101));
        assert_eq!(sessions.origin(&left(8), &who(103, 40)), None);
        assert!(sessions.end(number, &new));
        assert!(!sessions.end(number, &new));
        assert_eq!(sessions.origin(&left(7), &who(103, 40)), None);
    }

    #[test]
    fn without_identities_pids_have_to_do() {
        let (number, it) = (Task::leader(7), who(7, 0));
        let mut sessions = Sessions::default();
        sessions.begin(number, it);
        assert_eq!(sessions.origin(&left(7), &who(8, 0)), Some(7));
        assert!(sessions.end(number, &it));
    }
}
