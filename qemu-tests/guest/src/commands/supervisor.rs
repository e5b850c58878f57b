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
//! The state tells what the supervisor missed: which sessions exist when it is restarted, with a
//! record of those that it knew, and what became of them when events were lost. It does not read
//! `/proc`. The state contains a session leader until the process has ended, and not only until the
//! end of the session was reported. So the supervisor also listens for the end of processes. If a
//! process detached while events were lost, its parent identifies it, if the parent leads one of
//! the sessions and still exists. Nothing tells where other processes come from.

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
use crate::picture::{self, Picture};
use crate::wire::{
    Event, FEATURE_STATE, Identity, LISTEN, Left, PROCESSES, Received, mask, proc_listen,
};

/// `PROC_CN_FEATURE_SID_ORIGIN`, `PROC_CN_FEATURE_SESSION_END`, `PROC_CN_FEATURE_PROCESSES`, and what
/// the picture needs.
const FEATURES: u32 = 0x8 | 0x10 | 0x20 | identities::FEATURE | FEATURE_STATE;

/// What it listens for. Without forks, the picture has none of the processes that begin later but the
/// session leaders, which are all that it wants to know.
const MASK: u32 = mask::SID | mask::SESSION_END | mask::EXIT;

/// How long one wait for an event lasts; the next one follows.
const WAIT: Duration = Duration::from_secs(3600);

/// Status of a service whose program cannot be run, as shells have it.
const NOT_RUN: i32 = 127;

/// `PIDFD_SIGNAL_PROCESS_GROUP`.
const PROCESS_GROUP: libc::c_uint = 1 << 2;

/// What to keep running.
#[derive(Args)]
pub struct Options {
    /// A file for who the service and its sessions are, in a file system that does not outlive the
    /// system. A supervisor that is started again with it finds those that are there.
    #[arg(long)]
    record: Option<PathBuf>,
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
    let mut listener = listen()?;
    let mut picture = Picture::default();
    let mut supervisor = Supervisor::start(words, options.record.clone())?;
    let (mut losses, mut states) = (0, 0);
    loop {
        let Some(received) = picture.read(&mut listener, Instant::now() + WAIT)? else {
            continue;
        };
        if mem::replace(&mut losses, picture.losses()) != picture.losses() {
            say("events were lost")?;
        }
        let mut is_over = supervisor.hear(&received)?;
        if picture.is_exact() && mem::replace(&mut states, picture.states()) != picture.states() {
            is_over |= supervisor.settle(&leaders(&picture))?;
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
        "this kernel does not tell the end of sessions, where they come from, or which there are: it \
         is too old"
    );
    // The ends of threads are of no interest.
    listener.request(&proc_listen(LISTEN, MASK, picture::FLAGS | PROCESSES))?;
    Ok(listener)
}

/// The leader of a session: its number, and its identity.
type Leaders = BTreeMap<u64, (i32, Identity)>;

fn leaders(picture: &Picture) -> Leaders {
    let living = picture.living().iter();
    living
        .filter(|(_, process)| process.leads)
        .map(|(number, process)| (*number, (process.pid, process.identity)))
        .collect()
}

struct Supervisor {
    words: Vec<CString>,
    record: Option<PathBuf>,
    /// What is in the record.
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
        let (service, sessions) = parse(&written).context("this is no record of a supervisor")?;
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

    /// Takes note of an event; whether the service has ended well.
    fn hear(&mut self, received: &Received) -> Result<bool> {
        // Answers have none.
        let Some(who) = received.identity else {
            return Ok(false);
        };
        match received.event {
            Event::Sid { task, .. } if who.process == self.service.process => {
                self.sessions.begin(task.tgid, who);
            }
            // The state may have told of it before its begin was read.
            Event::Sid { task, .. } if self.sessions.know(task.tgid, &who) => {}
            Event::Sid { task, left } => {
                if let Some(origin) = self.sessions.origin(&left, &who) {
                    self.detach(task.tgid, who, (left.session, origin))?;
                }
            }
            Event::SessionEnd { task, code, .. } => {
                self.sessions.over.insert(who.process);
                return self.end(task.tgid, &who, code);
            }
            Event::Exit { task, code, .. } if task.pid == task.tgid => {
                self.sessions.over.remove(&who.process);
                return self.end(task.tgid, &who, code);
            }
            _ => {}
        }
        Ok(false)
    }

    /// A session began that comes from another one, with this number and leader.
    fn detach(&mut self, number: i32, who: Identity, origin: (i32, u64)) -> Result<()> {
        let (session, leader) = origin;
        self.service.has_detached |= leader == self.service.process;
        self.sessions.begin(number, who);
        self.note(&format!("session {number} detached from {session}"))
    }

    /// A session has ended, or the process that led it; whether it was the service, and ended well.
    fn end(&mut self, number: i32, who: &Identity, code: u32) -> Result<bool> {
        let is_known = self.sessions.end(number, who);
        if who.process == self.service.process {
            return self.end_service(code);
        }
        if is_known {
            self.note(&format!("session {number} {}", ending(code)))?;
        }
        Ok(false)
    }

    /// The service has ended; whether it ended well. Otherwise there is another one.
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

    /// Takes note of what was not heard, by all leaders that there are; whether the service has ended
    /// well.
    fn settle(&mut self, leaders: &Leaders) -> Result<bool> {
        let service = self.service.process;
        for (number, process, is_there) in self.sessions.keep(leaders) {
            if process != service {
                let what = if is_there { "there" } else { "gone" };
                self.note(&format!("session {number} is {what}"))?;
            }
        }
        match leaders.get(&service) {
            Some((number, who)) => self.sessions.begin(*number, *who),
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
        while let Some((number, who, origin)) = self.sessions.unheard(leaders) {
            self.detach(number, who, origin)?;
        }
        Ok(false)
    }

    /// Says something, of which the record knows by then.
    fn note(&mut self, line: &str) -> Result<()> {
        self.write()?;
        Ok(say(line)?)
    }

    /// Writes the record, if there is to be one, and it is another.
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

/// What the record says: a line for the service, and one for each session.
fn text(service: &Service, sessions: &Sessions) -> String {
    let mut text = format!("service {} {}\n", service.leader, service.process);
    for (number, session) in &sessions.leaders {
        let Identity {
            process, start_ns, ..
        } = session.who;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "session {number} {process} {start_ns}");
    }
    text
}

/// The service's number and process, and the sessions, that a record names.
fn parse(text: &str) -> Option<(Option<(i32, u64)>, Sessions)> {
    let (mut service, mut sessions) = (None, Sessions::default());
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["service", number, process] => {
                service = Some((number.parse().ok()?, process.parse().ok()?));
            }
            ["session", number, process, start_ns] => {
                let who = Identity {
                    process: process.parse().ok()?,
                    start_ns: start_ns.parse().ok()?,
                    ..Identity::default()
                };
                let is_recorded = true;
                let session = Session { who, is_recorded };
                sessions.leaders.insert(number.parse().ok()?, session);
            }
            _ => return None,
        }
    }
    Some((service, sessions))
}

/// A session, by its leader.
struct Session {
    who: Identity,
    /// Whether a record alone tells of it.
    is_recorded: bool,
}

/// The sessions that live: the service's, and those that come from it, or from one that did. Each
/// has the pid of its leader as its number, for as long as somebody is in it.
#[derive(Default)]
struct Sessions {
    leaders: BTreeMap<i32, Session>,
    /// Those that have led a session whose end was told, and have not ended themselves: the state tells
    /// of them still.
    over: BTreeSet<u64>,
}

impl Sessions {
    fn begin(&mut self, number: i32, who: Identity) {
        let is_recorded = false;
        self.leaders.insert(number, Session { who, is_recorded });
    }

    /// Whether there is one that another process leads.
    fn has_others(&self, process: u64) -> bool {
        let mut leaders = self.leaders.values();
        leaders.any(|session| session.who.process != process)
    }

    /// Who leads the session that a process left, if it is one of these.
    fn origin(&self, left: &Left, who: &Identity) -> Option<u64> {
        let leader = self.leaders.get(&left.session)?.who;
        // A process that is older than the leader was in an earlier session with this number.
        (leader.start_ns <= who.start_ns).then_some(leader.process)
    }

    /// Whether a session is one of these, and not another one with the same number.
    fn know(&self, number: i32, who: &Identity) -> bool {
        let known = self.leaders.get(&number);
        known.is_some_and(|known| known.who.process == who.process)
    }

    /// Forgets a session, if it is one of these.
    fn end(&mut self, number: i32, who: &Identity) -> bool {
        let is_known = self.know(number, who);
        if is_known {
            self.leaders.remove(&number);
        }
        is_known
    }

    /// Forgets those that are not among all leaders. Tells of these, and of those that were recorded:
    /// the number, the leader, and whether it is there.
    fn keep(&mut self, leaders: &Leaders) -> Vec<(i32, u64, bool)> {
        let mut changes = Vec::new();
        self.over.retain(|process| leaders.contains_key(process));
        self.leaders.retain(|number, session| {
            let known = leaders.get(&session.who.process);
            let is_there = known.is_some_and(|(_, who)| who.start_ns == session.who.start_ns);
            if !is_there || session.is_recorded {
                changes.push((*number, session.who.process, is_there));
            }
            session.is_recorded = false;
            is_there
        });
        changes
    }

    /// One of all leaders that is none of these, and is the child of one: its number, who it is, and
    /// the number and the leader of the session that it comes from.
    fn unheard(&self, leaders: &Leaders) -> Option<(i32, Identity, (i32, u64))> {
        let known: BTreeMap<u64, i32> = self
            .leaders
            .iter()
            .map(|(number, session)| (session.who.process, *number))
            .collect();
        let is_unknown =
            |process: &u64| !known.contains_key(process) && !self.over.contains(process);
        let mut strangers = leaders.iter().filter(|(process, _)| is_unknown(process));
        strangers.find_map(|(_, (number, who))| {
            let session = known.get(&who.other)?;
            Some((*number, *who, (*session, who.other)))
        })
    }
}

/// The service's process, which leads a session.
struct Service {
    leader: Pid,
    pidfd: OwnedFd,
    /// What events have for it.
    process: u64,
    /// Whether it is ours to reap, and not from a supervisor before.
    is_child: bool,
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

    /// The one with this number, if it is this process.
    fn find(number: i32, process: u64) -> Option<Self> {
        let leader = Pid::from_raw(number);
        // Whoever has the number has had it since then.
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

    /// With what status it has ended, if it is ours and has.
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

    /// Kills what the ended service leaves in its process group, which it led.
    fn clean_up(&self) -> Result<()> {
        // By the pidfd: the number may be another group's, if somebody else has reaped it.
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
        let (old, new) = (who(100, 10), who(101, 30));
        let mut sessions = Sessions::default();
        sessions.begin(7, new);
        assert!(!sessions.end(7, &old));
        assert_eq!(sessions.origin(&left(7), &who(102, 20)), None);
        assert_eq!(sessions.origin(&left(7), &who(103, 40)), Some(101));
        assert_eq!(sessions.origin(&left(8), &who(103, 40)), None);
        assert!(sessions.end(7, &new));
        assert!(!sessions.end(7, &new));
        assert_eq!(sessions.origin(&left(7), &who(103, 40)), None);
    }

    /// Leaders of sessions: number, process, start and parent's process of each.
    fn all(leaders: &[(i32, u64, u64, u64)]) -> Leaders {
        let leaders = leaders.iter().map(|(number, process, start_ns, other)| {
            let who = Identity {
                other: *other,
                ..who(*process, *start_ns)
            };
            (*process, (*number, who))
        });
        leaders.collect()
    }

    #[test]
    fn who_is_not_among_all_leaders_is_gone() {
        let mut sessions = Sessions::default();
        sessions.begin(7, who(100, 10));
        sessions.begin(8, who(101, 20));
        let changes = sessions.keep(&all(&[(1, 1, 0, 0), (8, 101, 20, 1), (7, 102, 30, 1)]));
        assert_eq!(changes, [(7, 100, false)]);
        assert!(sessions.end(8, &who(101, 20)));
        assert!(!sessions.end(7, &who(100, 10)));
    }

    #[test]
    fn who_detached_unheard_is_known_by_the_parent() {
        let mut sessions = Sessions::default();
        sessions.begin(7, who(100, 10));
        sessions.over.insert(103);
        // A stranger, a child, and its child; and one whose session is over.
        let leaders = all(&[
            (1, 1, 0, 0),
            (7, 100, 10, 1),
            (9, 102, 40, 101),
            (8, 101, 20, 100),
            (10, 103, 50, 100),
        ]);
        assert_eq!(sessions.keep(&leaders), []);
        let mut unheard = Vec::new();
        while let Some((number, who, origin)) = sessions.unheard(&leaders) {
            sessions.begin(number, who);
            unheard.push((number, origin));
        }
        assert_eq!(unheard, [(8, (7, 100)), (9, (8, 101))]);
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
