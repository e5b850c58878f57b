// SPDX-License-Identifier: GPL-2.0
//! A small supervisor: it keeps a service running, and does not touch processes that detached from
//! it.
//!
//! It listens for the start and the end of sessions. The service gets a session of its own. A
//! process that leaves this session for a new one has detached: with OpenSSH's server, each login
//! does. If the service fails, the supervisor kills what has not detached, and restarts the
//! service; logins continue. If the service exits with status 0, it is not restarted. If a process
//! detached before, the service has put itself into the background, as daemons do that fork twice.
//!
//! When an event is read, its pid may belong to another process, for example to the service that
//! was just started. So the supervisor distinguishes processes by their identities.
//!
//! The state shows what the supervisor missed. When the supervisor is restarted with a record of the
//! sessions that it knew, the state shows which of them still exist. When events were lost, it shows
//! which sessions remain. The supervisor does not read `/proc`. The state contains a session leader
//! until the process has ended, and not only until the end of the session was reported. So the
//! supervisor also listens for the end of processes. If a process detached while events were lost,
//! its parent identifies it, if the parent leads one of the sessions and still exists. The origin of
//! other processes is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, mem};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, execvp, setsid};

use crate::child;
use crate::describe::ending;
use crate::identities;
use crate::listener::Listener;
use crate::process_table::{self, ProcessTable};
use crate::wire::{
    Event, FEATURE_STATE, Identity, LISTEN, Left, PROCESSES, Received, mask, proc_listen,
};

/// `PROC_CN_FEATURE_SID_ORIGIN`, `PROC_CN_FEATURE_SESSION_END`, `PROC_CN_FEATURE_PROCESSES`, and the
/// features that the table needs.
const FEATURES: u32 = 0x8 | 0x10 | 0x20 | identities::FEATURE | FEATURE_STATE;

/// The events that the supervisor listens for. Without forks, the only later processes in the table
/// are session leaders, and the supervisor needs no others.
const MASK: u32 = mask::SID | mask::SESSION_END | mask::EXIT;

/// How long one wait for an event lasts before the next one follows.
const WAIT: Duration = Duration::from_secs(3600);

/// Status of a service whose program cannot be run, as in shells.
const NOT_RUN: i32 = 127;

/// `PIDFD_SIGNAL_PROCESS_GROUP`.
const PROCESS_GROUP: libc::c_uint = 1 << 2;

/// What to keep running.
#[derive(Args)]
pub struct Options {
    /// A file that records the service and its sessions, in a file system that does not survive a
    /// reboot. A supervisor that is restarted with this file finds those that still exist.
    #[arg(long)]
    record: Option<PathBuf>,
    /// The service: a program that stays in the foreground, and its arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Supervises until the service ends successfully.
pub fn run(options: &Options) -> Result<ExitCode> {
    let words = options
        .command
        .iter()
        .map(|word| CString::new(word.as_str()));
    let words = words.collect::<Result<Vec<_>, _>>()?;
    let mut listener = listen()?;
    let mut table = ProcessTable::default();
    let mut supervisor = Supervisor::start(words, options.record.clone())?;
    let (mut losses, mut states) = (0, 0);
    loop {
        let Some(received) = table.read(&mut listener, Instant::now() + WAIT)? else {
            continue;
        };
        if mem::replace(&mut losses, table.losses()) != table.losses() {
            say("events were lost")?;
        }
        let mut is_over = supervisor.handle(&received)?;
        if table.is_exact() && mem::replace(&mut states, table.states()) != table.states() {
            is_over |= supervisor.settle(&leaders(&table))?;
        }
        supervisor.write()?;
        if is_over {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// A listener for the start and the end of sessions, on a kernel with the features that it needs.
fn listen() -> Result<Listener> {
    // The large buffer needs privileges that a process in a container does not have.
    let mut listener = Listener::open().or_else(|_| Listener::open_unprivileged())?;
    let features = identities::listen(&mut listener, MASK)?;
    ensure!(
        features & FEATURES == FEATURES,
        "this kernel does not report the end of sessions, where they come from, or which exist: it \
         is too old"
    );
    // The ends of threads are of no interest.
    listener.request(&proc_listen(LISTEN, MASK, process_table::FLAGS | PROCESSES))?;
    Ok(listener)
}

/// The leaders of sessions, by the numbers in their identities: the pid and the identity of each.
type Leaders = BTreeMap<u64, (i32, Identity)>;

fn leaders(table: &ProcessTable) -> Leaders {
    let living = table.living().iter();
    living
        .filter(|(_, process)| process.leads)
        .map(|(number, process)| (*number, (process.pid, process.identity)))
        .collect()
}

struct Supervisor {
    words: Vec<CString>,
    record: Option<PathBuf>,
    /// The content of the record.
    written: String,
    service: Service,
    sessions: Sessions,
}

impl Supervisor {
    /// Takes over the service that is recorded, or starts one.
    fn start(words: Vec<CString>, record: Option<PathBuf>) -> Result<Self> {
        let written = match &record {
            Some(file) if file.exists() => fs::read_to_string(file)?,
            _ => String::new(),
        };
        let (service, sessions) = parse(&written).context("this is not a supervisor's record")?;
        let service = match service.and_then(|(pid, process)| Service::find(pid, process)) {
            Some(mut service) => {
                say(&format!("service {} is there", service.leader))?;
                service.has_detached = sessions.has_others(service.process);
                service
            }
            None => Service::start(&words)?,
        };
        let mut supervisor = Self {
            words,
            record,
            written,
            service,
            sessions,
        };
        supervisor.write()?;
        Ok(supervisor)
    }

    /// Handles an event. Returns whether the service has ended successfully.
    fn handle(&mut self, received: &Received) -> Result<bool> {
        // Answers have no identity.
        let Some(identity) = received.identity else {
            return Ok(false);
        };
        match received.event {
            Event::Sid { task, .. } if identity.process == self.service.process => {
                self.sessions.begin(task.tgid, identity);
            }
            // The state may have reported it before its begin was read.
            Event::Sid { task, .. } if self.sessions.know(task.tgid, &identity) => {}
            Event::Sid { task, left } => {
                if let Some(origin) = self.sessions.origin(&left, &identity) {
                    self.detach(task.tgid, identity, (left.session, origin))?;
                }
            }
            Event::SessionEnd { task, code, .. } => {
                self.sessions.over.insert(identity.process);
                return self.end(task.tgid, &identity, code);
            }
            Event::Exit { task, code, .. } if task.pid == task.tgid => {
                self.sessions.over.remove(&identity.process);
                return self.end(task.tgid, &identity, code);
            }
            _ => {}
        }
        Ok(false)
    }

    /// A session began that comes from another one, which has this number and leader.
    fn detach(&mut self, number: i32, identity: Identity, origin: (i32, u64)) -> Result<()> {
        let (session, leader) = origin;
        self.service.has_detached |= leader == self.service.process;
        self.sessions.begin(number, identity);
        self.note(&format!("session {number} detached from {session}"))
    }

    /// A session has ended, or the process that led it. Returns whether it was the service, and ended
    /// successfully.
    fn end(&mut self, number: i32, identity: &Identity, code: u32) -> Result<bool> {
        let is_known = self.sessions.end(number, identity);
        if identity.process == self.service.process {
            return self.end_service(code);
        }
        if is_known {
            self.note(&format!("session {number} {}", ending(code)))?;
        }
        Ok(false)
    }

    /// The service has ended. Returns whether it ended successfully. Otherwise starts another one.
    fn end_service(&mut self, code: u32) -> Result<bool> {
        let number = self.service.leader;
        self.note(&format!("service {number} {}", ending(code)))?;
        self.service.clean_up()?;
        ensure!(code != (NOT_RUN as u32) << 8, "the service cannot be run");
        if code == 0 {
            if self.service.has_detached {
                self.note(&format!("service {number} is in the background"))?;
            }
            return Ok(true);
        }
        self.service = Service::start(&self.words)?;
        Ok(false)
    }

    /// Catches up on lost events from the list of all existing session leaders. Returns whether the
    /// service has ended successfully.
    fn settle(&mut self, leaders: &Leaders) -> Result<bool> {
        let service = self.service.process;
        for (number, process, is_there) in self.sessions.keep(leaders) {
            if process != service {
                let what = if is_there { "there" } else { "gone" };
                self.note(&format!("session {number} is {what}"))?;
            }
        }
        match leaders.get(&service) {
            Some((number, identity)) => self.sessions.begin(*number, *identity),
            None if self.service.is_child => {
                if let Some(code) = self.service.status()? {
                    return self.end_service(code);
                }
            }
            None => {
                self.note(&format!("service {} is gone", self.service.leader))?;
                self.service.clean_up()?;
                self.service = Service::start(&self.words)?;
            }
        }
        while let Some((number, identity, origin)) = self.sessions.missed(leaders) {
            self.detach(number, identity, origin)?;
        }
        Ok(false)
    }

    /// Prints a line after the record has been updated.
    fn note(&mut self, line: &str) -> Result<()> {
        self.write()?;
        Ok(say(line)?)
    }

    /// Writes the record, if the supervisor keeps one and it has changed.
    fn write(&mut self) -> Result<()> {
        let Some(file) = &self.record else {
            return Ok(());
        };
        let text = text(&self.service, &self.sessions);
        if text != self.written {
            let new = file.with_extension("new");
            fs::write(&new, &text)?;
            fs::rename(new, file)?;
            self.written = text;
        }
        Ok(())
    }
}

/// The text of the record: a line for the service, and one for each session.
fn text(service: &Service, sessions: &Sessions) -> String {
    let mut text = format!("service {} {}\n", service.leader, service.process);
    for (number, session) in &sessions.leaders {
        let Identity {
            process, start_ns, ..
        } = session.identity;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "session {number} {process} {start_ns}");
    }
    text
}

/// Parses a record: the service's pid and process, and the sessions.
fn parse(text: &str) -> Option<(Option<(i32, u64)>, Sessions)> {
    let (mut service, mut sessions) = (None, Sessions::default());
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["service", number, process] => {
                service = Some((number.parse().ok()?, process.parse().ok()?));
            }
            ["session", number, process, start_ns] => {
                let identity = Identity {
                    process: process.parse().ok()?,
                    start_ns: start_ns.parse().ok()?,
                    ..Identity::default()
                };
                let is_recorded = true;
                let session = Session {
                    identity,
                    is_recorded,
                };
                sessions.leaders.insert(number.parse().ok()?, session);
            }
            _ => return None,
        }
    }
    Some((service, sessions))
}

/// A session, by its leader.
struct Session {
    identity: Identity,
    /// Whether it is only known from a record.
    is_recorded: bool,
}

/// The sessions that live: the service's, and those that come from it, or from one that did. Each
/// has the pid of its leader as its number, for as long as a process is in it.
#[derive(Default)]
struct Sessions {
    leaders: BTreeMap<i32, Session>,
    /// The processes that led a session whose end was reported, and have not ended themselves. The state
    /// still contains them.
    over: BTreeSet<u64>,
}

impl Sessions {
    fn begin(&mut self, number: i32, identity: Identity) {
        let is_recorded = false;
        self.leaders.insert(
            number,
            Session {
                identity,
                is_recorded,
            },
        );
    }

    /// Whether one of the sessions has another leader than this process.
    fn has_others(&self, process: u64) -> bool {
        let mut leaders = self.leaders.values();
        leaders.any(|session| session.identity.process != process)
    }

    /// The leader of the session that a process left, if the session is one of these.
    fn origin(&self, left: &Left, identity: &Identity) -> Option<u64> {
        let leader = self.leaders.get(&left.session)?.identity;
        // A process that is older than the leader was in an earlier session with this number.
        (leader.start_ns <= identity.start_ns).then_some(leader.process)
    }

    /// Whether a session is one of these, and not another one with the same number.
    fn know(&self, number: i32, identity: &Identity) -> bool {
        let known = self.leaders.get(&number);
        known.is_some_and(|known| known.identity.process == identity.process)
    }

    /// Forgets a session, if it is one of these.
    fn end(&mut self, number: i32, identity: &Identity) -> bool {
        let is_known = self.know(number, identity);
        if is_known {
            self.leaders.remove(&number);
        }
        is_known
    }

    /// Forgets sessions that are not among all leaders. Returns these, and those that were recorded:
    /// the number, the leader, and whether the session exists.
    fn keep(&mut self, leaders: &Leaders) -> Vec<(i32, u64, bool)> {
        let mut changes = Vec::new();
        self.over.retain(|process| leaders.contains_key(process));
        self.leaders.retain(|number, session| {
            let known = leaders.get(&session.identity.process);
            let is_there =
                known.is_some_and(|(_, identity)| identity.start_ns == session.identity.start_ns);
            if !is_there || session.is_recorded {
                changes.push((*number, session.identity.process, is_there));
            }
            session.is_recorded = false;
            is_there
        });
        changes
    }

    /// Finds a leader that is not known, and is the child of a known one. Returns its number, its
    /// identity, and the number and the leader of the session that it comes from.
    fn missed(&self, leaders: &Leaders) -> Option<(i32, Identity, (i32, u64))> {
        let known: BTreeMap<u64, i32> = self
            .leaders
            .iter()
            .map(|(number, session)| (session.identity.process, *number))
            .collect();
        let is_unknown =
            |process: &u64| !known.contains_key(process) && !self.over.contains(process);
        let mut strangers = leaders.iter().filter(|(process, _)| is_unknown(process));
        strangers.find_map(|(_, (number, identity))| {
            let session = known.get(&identity.other)?;
            Some((*number, *identity, (*session, identity.other)))
        })
    }
}

/// The service's process, which leads a session.
struct Service {
    leader: Pid,
    pidfd: OwnedFd,
    /// Its number in events.
    process: u64,
    /// Whether it is a child of this supervisor, and not of an earlier one.
    is_child: bool,
    /// Whether a session detached from the service's own.
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
        let leader = process.into_pid();
        say(&format!("service {leader} started"))?;
        Ok(Self {
            leader,
            pidfd: child::pidfd(leader)?,
            process: identities::number_of(leader)?,
            is_child: true,
            has_detached: false,
        })
    }

    /// The service with this pid, if it is this process.
    fn find(number: i32, process: u64) -> Option<Self> {
        let leader = Pid::from_raw(number);
        // If the process has the pid at the check below, it also has it here.
        let pidfd = child::pidfd(leader).ok()?;
        let is_it = identities::number_of(leader).ok()? == process;
        is_it.then_some(Self {
            leader,
            pidfd,
            process,
            is_child: false,
            has_detached: false,
        })
    }

    /// The status with which it has ended, if it is a child and has ended.
    fn status(&self) -> nix::Result<Option<u32>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(match waitid(Id::Pid(self.leader), flags)? {
            WaitStatus::Exited(_, status) => Some((status as u32) << 8),
            WaitStatus::Signaled(_, signal, has_core) => {
                Some(signal as u32 | u32::from(has_core) << 7)
            }
            _ => None,
        })
    }

    /// Kills the processes that the ended service leaves in its process group, which it led.
    fn clean_up(&self) -> Result<()> {
        // The pidfd identifies the group. The pid may be another group's, if another process has
        // reaped the service.
        // SAFETY: The call takes numbers, and a null pointer.
        let result = unsafe {
            let no_info: *const libc::siginfo_t = std::ptr::null();
            let (pidfd, signal) = (self.pidfd.as_raw_fd(), Signal::SIGKILL as i32);
            let call = libc::SYS_pidfd_send_signal;
            libc::syscall(call, pidfd, signal, no_info, PROCESS_GROUP)
        };
        match Errno::result(result) {
            Ok(_) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("cannot kill the rest of the service"),
        }
        if self.is_child {
            waitpid(self.leader, None).context("cannot reap the service")?;
        }
        Ok(())
    }
}

/// Prints a line with one write.
fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(format!("{line}\n").as_bytes())?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(process: u64, start_ns: u64) -> Identity {
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
        let (old, new) = (identity(100, 10), identity(101, 30));
        let mut sessions = Sessions::default();
        sessions.begin(7, new);
        assert!(!sessions.end(7, &old));
        assert_eq!(sessions.origin(&left(7), &identity(102, 20)), None);
        assert_eq!(sessions.origin(&left(7), &identity(103, 40)), Some(101));
        assert_eq!(sessions.origin(&left(8), &identity(103, 40)), None);
        assert!(sessions.end(7, &new));
        assert!(!sessions.end(7, &new));
        assert_eq!(sessions.origin(&left(7), &identity(103, 40)), None);
    }

    /// Leaders of sessions: number, process, start and parent's process of each.
    fn all(leaders: &[(i32, u64, u64, u64)]) -> Leaders {
        let leaders = leaders.iter().map(|(number, process, start_ns, other)| {
            let identity = Identity {
                other: *other,
                ..identity(*process, *start_ns)
            };
            (*process, (*number, identity))
        });
        leaders.collect()
    }

    #[test]
    fn a_session_without_its_leader_is_gone() {
        let mut sessions = Sessions::default();
        sessions.begin(7, identity(100, 10));
        sessions.begin(8, identity(101, 20));
        let changes = sessions.keep(&all(&[(1, 1, 0, 0), (8, 101, 20, 1), (7, 102, 30, 1)]));
        assert_eq!(changes, [(7, 100, false)]);
        assert!(sessions.end(8, &identity(101, 20)));
        assert!(!sessions.end(7, &identity(100, 10)));
    }

    #[test]
    fn a_missed_session_is_identified_by_the_parent() {
        let mut sessions = Sessions::default();
        sessions.begin(7, identity(100, 10));
        sessions.over.insert(103);
        // A stranger, a known leader, its grandchild and its child, and one whose session is over.
        let leaders = all(&[
            (1, 1, 0, 0),
            (7, 100, 10, 1),
            (9, 102, 40, 101),
            (8, 101, 20, 100),
            (10, 103, 50, 100),
        ]);
        assert_eq!(sessions.keep(&leaders), []);
        let mut missed = Vec::new();
        while let Some((number, identity, origin)) = sessions.missed(&leaders) {
            sessions.begin(number, identity);
            missed.push((number, origin));
        }
        assert_eq!(missed, [(8, (7, 100)), (9, (8, 101))]);
        sessions.keep(&all(&[(7, 100, 10, 1)]));
        assert!(sessions.over.is_empty());
    }

    #[test]
    fn a_record_names_the_service_and_its_sessions() {
        let record = "service 7 100\nsession 7 100 10\nsession 8 101 20\n";
        let (service, mut sessions) = parse(record).unwrap();
        assert_eq!(service, Some((7, 100)));
        let leaders = all(&[(7, 100, 10, 1), (8, 101, 21, 1)]);
        // The second one is of another boot.
        let changes = sessions.keep(&leaders);
        assert_eq!(changes, [(7, 100, true), (8, 101, false)]);
        assert_eq!(sessions.keep(&leaders), []);
        assert!(parse("").unwrap().0.is_none());
        assert!(parse("session 7\n").is_none());
        assert!(parse("service 7 100 10\n").is_none());
    }
}
