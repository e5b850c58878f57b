// SPDX-License-Identifier: GPL-2.0
//! A process with several threads, one of which calls exec. The variants differ in which thread calls it,
//! how exec ends, and what other threads do.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::ptrace;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stdin, execv, fexecve, pause, setsid};

use super::container::Handover;
use super::scenario::{is_exit, take_through_exit};
use super::scheduling::{preempt_others, share_a_cpu};
use super::threads::end_thread;
use super::threads::{await_zombie, reap, reap_all};
use crate::child::{self, Child, Gate};
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::wire::{Event, LISTEN, Received, mask};

/// How the exec ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ExecResult {
    /// The program runs.
    Runs,
    /// There is no such program: the process goes on.
    FailsAtOnce,
    /// The program turns out to be unusable when the old one is gone: the process is killed.
    FailsLate,
    /// The process is killed while exec waits for a thread that a tracer does not reap.
    Killed,
}

impl ExecResult {
    /// How the process ends, as wait(2) encodes it.
    pub fn status(self) -> u32 {
        match self {
            Self::Runs => PROGRAM_STATUS << 8,
            Self::FailsAtOnce => PROCESS_STATUS << 8,
            Self::FailsLate => Signal::SIGSEGV as u32,
            Self::Killed => Signal::SIGKILL as u32,
        }
    }
}

/// Which thread calls exec.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Caller {
    First,
    /// Another thread, while the first one does this.
    Other(FirstThread),
}

/// What a first thread does while another one calls exec.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FirstThread {
    Waits,
    /// It ended long before, by itself.
    EndedBefore,
    /// It ends at the same moment.
    EndsMeanwhile,
}

/// Which kind of process calls exec.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Ordinary,
    /// It leads a session, whose end is asked for, too.
    LeadsSession,
    /// The first process of a pid namespace, in which there is a listener, too.
    FirstOfNamespace,
}

/// A variant of the scenario.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub outcome: ExecResult,
    pub caller: Caller,
    /// How many more threads there are.
    pub bystanders: usize,
    /// All threads are on one CPU, on which the caller runs whenever it can.
    pub hurried: bool,
    /// Each thread has a tracer.
    pub traced: bool,
    pub place: Place,
}

impl Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "in the variant {self:?}")
    }
}

/// Exit statuses of the threads and programs that can end by themselves.
pub const FIRST_STATUS: u32 = 3;
const PROGRAM_STATUS: u32 = 5;
const PROCESS_STATUS: u32 = 6;

/// What a listener received about the process.
pub struct Observed {
    /// The process, by its pid in the listener's pid namespace.
    pub pid: i32,
    /// The other threads, in the order in which they were made.
    pub threads: Vec<i32>,
    /// All numbers that FORK events announced, in their order.
    pub announced: Vec<i32>,
    /// All events about the process.
    pub events: Vec<Event>,
    /// Whether the last of the threads called exec.
    other_called: bool,
}

impl Observed {
    /// The old number of a caller that is not the first thread.
    pub fn caller(&self) -> Option<i32> {
        self.threads.last().copied().filter(|_| self.other_called)
    }
}

/// What both listeners received.
pub struct Observations {
    pub outside: Observed,
    /// In the process's pid namespace, if it has one of its own.
    pub inside: Option<Observed>,
}

/// A listener, and what it received about the process so far.
struct Observer {
    listener: Listener,
    pid: i32,
    events: Vec<Event>,
}

impl Observer {
    fn keep(&mut self, messages: Vec<Received>) {
        let events = messages.iter().map(|received| received.event);
        let pid = self.pid;
        self.events
            .extend(events.filter(|event| event.bit() != 0 && event.subject().tgid == pid));
    }

    fn take_queued(&mut self) -> TestResult {
        let messages = self.listener.take_queued()?;
        self.keep(messages);
        Ok(())
    }

    fn take_through(&mut self, what: &str, wanted: impl Fn(&Received) -> bool) -> TestResult {
        let messages = self.listener.take_through(what, wanted)?;
        self.keep(messages);
        Ok(())
    }

    /// Waits for the ends of these numbers, unless the listener has received them already.
    fn take_through_exits(&mut self, pids: &[i32]) -> TestResult {
        for pid in pids {
            let is_end =
                |event: &Event| matches!(event, Event::Exit { task, .. } if task.pid == *pid);
            if !self.events.iter().any(is_end) {
                let what = format!("EXIT of {pid}");
                self.take_through(&what, |received| is_exit(received, *pid))?;
            }
        }
        Ok(())
    }

    /// The numbers that FORK events announced.
    fn announced(&self) -> Vec<i32> {
        let forks = self.events.iter().filter(|event| event.bit() == mask::FORK);
        forks.map(|event| event.subject().pid).collect()
    }

    /// These numbers without that of the first thread.
    fn threads(&self) -> Vec<i32> {
        let mut threads = self.announced();
        threads.retain(|pid| *pid != self.pid);
        threads
    }

    fn has_received_the_end(&self) -> bool {
        let pid = self.pid;
        let end = |event: &Event| matches!(event, Event::Exit { task, .. } if task.pid == pid);
        self.events.iter().any(end)
    }

    fn finish(mut self, variant: Variant) -> Result<Observed, Failure> {
        // This is the last event, unless one is reported twice.
        self.take_through_exits(&[self.pid])?;
        self.take_queued()?;
        Ok(Observed {
            pid: self.pid,
            threads: self.threads(),
            announced: self.announced(),
            events: self.events,
            other_called: variant.caller != Caller::First,
        })
    }
}

/// The handshakes with the process, and what it may run.
struct Gates {
    /// The caller is about to call exec.
    ready: Gate,
    /// The caller may go on.
    go: Gate,
    /// The program that is run waits for this.
    end: Gate,
    /// Exec failed.
    failed: Gate,
    /// A program that fails late.
    broken: File,
}

/// Newlines, for a shell that reads a line.
const LINE: i32 = i32::from_ne_bytes(*b"\n\n\n\n");

/// Runs a variant. Returns what the listeners received.
pub fn run(variant: Variant) -> Result<Observations, Failure> {
    let mask = mask::FORK
        | mask::EXEC
        | mask::EXIT
        | match variant.place {
            Place::LeadsSession => mask::SESSION_END,
            Place::Ordinary | Place::FirstOfNamespace => 0,
        };
    let listener = Listener::listen(mask)?;
    let handover = Handover::new()?;
    let gates = Gates {
        ready: Gate::new()?,
        go: Gate::new()?,
        end: Gate::new()?,
        failed: Gate::new()?,
        broken: broken_program()?,
    };
    let process = start(variant, || {
        if variant.place == Place::FirstOfNamespace {
            handover.listen(&[LISTEN, mask])?;
        }
        act(variant, &gates)
    })?;
    gates.ready.pass()?;
    let mut outside = Observer {
        listener,
        pid: process.pid().as_raw(),
        events: Vec::new(),
    };
    outside.take_queued()?;
    let inside = match variant.place {
        Place::FirstOfNamespace => Some(Observer {
            listener: handover.receive()?,
            pid: 1,
            events: Vec::new(),
        }),
        Place::Ordinary | Place::LeadsSession => None,
    };
    direct(variant, &gates, process, &mut outside)?;
    let outside = outside.finish(variant)?;
    let inside = inside.map(|inside| inside.finish(variant)).transpose()?;
    Ok(Observations { outside, inside })
}

/// Starts the process, in a pid namespace of its own if the variant has one.
fn start(variant: Variant, function: impl FnOnce() -> TestResult) -> nix::Result<Child> {
    let flags = match variant.place {
        Place::FirstOfNamespace => libc::CLONE_NEWPID,
        Place::Ordinary | Place::LeadsSession => 0,
    };
    child::clone_with(flags | libc::SIGCHLD, || {
        crate::support::process::status(function)
    })
}

/// What the process does.
fn act(variant: Variant, gates: &Gates) -> TestResult {
    if variant.place == Place::LeadsSession {
        setsid()?;
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    dup2_stdin(gates.end.reader())?;
    if variant.hurried {
        share_a_cpu()?;
    }
    let meanwhile = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..variant.bystanders {
            scope.spawn(pause);
        }
        let Caller::Other(first) = variant.caller else {
            return call(variant, gates, &meanwhile);
        };
        scope.spawn(|| crate::support::process::status(|| call(variant, gates, &meanwhile)));
        match first {
            // The first thread waits until the others have ended, which they don't.
            FirstThread::Waits => {}
            FirstThread::EndedBefore => end_thread(FIRST_STATUS as i32),
            FirstThread::EndsMeanwhile => {
                while !meanwhile.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                end_thread(FIRST_STATUS as i32)
            }
        }
        Ok(())
    })
}

/// What the caller does.
fn call(variant: Variant, gates: &Gates, meanwhile: &AtomicBool) -> TestResult {
    if variant.caller == Caller::Other(FirstThread::EndedBefore) {
        await_zombie("self")?;
    }
    gates.ready.open(0)?;
    gates.go.pass()?;
    if variant.hurried {
        preempt_others()?;
    }
    meanwhile.store(true, Ordering::Release);
    let failed = match variant.outcome {
        ExecResult::Runs | ExecResult::Killed => {
            let script = format!("read line; exit {PROGRAM_STATUS}");
            let script = std::ffi::CString::new(script).expect("the script contains no NUL");
            execv(c"/bin/sh", &[c"sh", c"-c", script.as_c_str()])
        }
        ExecResult::FailsAtOnce => execv(c"/nonexistent/program", &[c"program"]),
        ExecResult::FailsLate => fexecve(
            gates.broken.as_fd(),
            &[c"broken"],
            &[] as &[&std::ffi::CStr],
        ),
    };
    gates
        .failed
        .open(failed.err().map_or(0, |error| error as i32))?;
    gates.go.pass()?;
    std::process::exit(PROCESS_STATUS as i32)
}

/// Lets the process go on, and does to it what the variant says.
fn direct(variant: Variant, gates: &Gates, process: Child, outside: &mut Observer) -> TestResult {
    let pid = process.into_pid();
    let threads = outside.threads();
    let made = variant.bystanders + usize::from(variant.caller != Caller::First);
    expect_eq("other threads", threads.len(), made)?;
    let bystanders = &threads[..variant.bystanders];
    // With a tracer, the first process of a namespace survives the signal for a late failure.
    let survives =
        variant.outcome == ExecResult::FailsLate && variant.place == Place::FirstOfNamespace;
    let mut traced: Vec<i32> = match (variant.traced, variant.outcome) {
        (true, _) if survives => bystanders.to_vec(),
        (true, _) => threads.clone(),
        // A thread for which exec has to wait.
        (false, ExecResult::Killed) => bystanders[..1].to_vec(),
        (false, _) => vec![],
    };
    for thread in &traced {
        ptrace::seize(Pid::from_raw(*thread), ptrace::Options::empty())?;
    }
    let gone = variant.caller == Caller::Other(FirstThread::EndedBefore);
    if variant.traced && !survives && !gone {
        ptrace::seize(pid, ptrace::Options::empty())?;
    }
    gates.go.open(0)?;
    match variant.outcome {
        ExecResult::Runs | ExecResult::FailsLate => {
            // No thread has the caller's number by then.
            traced.retain(|thread| bystanders.contains(thread));
        }
        ExecResult::FailsAtOnce => {
            expect_eq("exec", gates.failed.pass()?, Errno::ENOENT as i32)?;
            outside.take_queued()?;
            let others = outside
                .events
                .iter()
                .filter(|event| event.bit() != mask::FORK);
            expect_eq(
                "events of the failed exec",
                others.copied().collect(),
                vec![],
            )?;
            gates.go.open(0)?;
        }
        ExecResult::Killed => {
            outside.take_through_exits(bystanders)?;
            kill(pid, Signal::SIGKILL)?;
            outside.take_through_exits(&threads)?;
            // The last thread of a namespace's first process does not end before all in it are gone.
            if variant.place != Place::FirstOfNamespace {
                await_zombie(&pid.to_string())?;
            }
            outside.take_queued()?;
            expect(
                !outside.has_received_the_end(),
                "no EXIT of a process while a tracer has one of its threads",
            )?;
        }
    }
    let traced: Vec<_> = traced.into_iter().map(Pid::from_raw).collect();
    reap_all(&traced)?;
    if variant.outcome == ExecResult::Runs {
        outside.take_through("EXEC", |received| {
            received.event.bit() == mask::EXEC && received.event.subject().pid == pid.as_raw()
        })?;
        gates.end.open(LINE)?;
    }
    expect_eq("status", reap(pid)?, variant.outcome.status())?;
    outside.take_through_exits(&[pid.as_raw()])?;
    // A second report would come before another process has begun and ended.
    let marker = child::fork(|| 0)?;
    let messages = take_through_exit(&mut outside.listener, marker.pid().as_raw())?;
    outside.keep(messages);
    marker.wait()?;
    Ok(())
}

/// A program that is found to have an impossible address when the old program is gone.
fn broken_program() -> Result<File, Failure> {
    const PROGRAM_HEADER: usize = 64;
    // The header of this program names the machine.
    let mut image = [0; PROGRAM_HEADER + 56];
    File::open("/proc/self/exe")?.read_exact(&mut image[..PROGRAM_HEADER])?;
    let mut put = |place: usize, bytes: &[u8]| {
        image[place..place + bytes.len()].copy_from_slice(bytes);
    };
    // An executable with one program header and no sections.
    put(16, &2u16.to_ne_bytes());
    put(24, &0x40_0000u64.to_ne_bytes());
    put(32, &(PROGRAM_HEADER as u64).to_ne_bytes());
    put(40, &0u64.to_ne_bytes());
    put(54, &56u16.to_ne_bytes());
    put(56, &1u16.to_ne_bytes());
    put(58, &[0; 6]);
    // A segment to load, readable and executable, from the file's start to an address of the kernel.
    put(PROGRAM_HEADER, &1u32.to_ne_bytes());
    put(PROGRAM_HEADER + 4, &5u32.to_ne_bytes());
    put(PROGRAM_HEADER + 16, &0xffff_8000_0000_0000u64.to_ne_bytes());
    put(PROGRAM_HEADER + 32, &64u64.to_ne_bytes());
    put(PROGRAM_HEADER + 40, &64u64.to_ne_bytes());
    put(PROGRAM_HEADER + 48, &4096u64.to_ne_bytes());
    let mut file = File::from(memfd_create(c"broken", MFdFlags::empty())?);
    file.write_all(&image)?;
    Ok(file)
}
