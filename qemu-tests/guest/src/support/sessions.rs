// SPDX-License-Identifier: GPL-2.0
//! Children that lead sessions, the events about them, and the statuses with which children end.

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{getpgrp, getsid, setsid};

use super::clone3::arguments;
use super::scenario::own_task;
use crate::child::{self, Child};
use crate::harness::{Failure, TestResult};
use crate::wire::{Event, Left, Task, mask};

/// The events that a listener for sessions asks for.
pub const SESSIONS: u32 = mask::SID | mask::SESSION_END;

/// The bit of a status that shows that a core was dumped.
pub const CORE_FLAG: u32 = 0x80;

/// Starts a child that leads a session of its own, and ends with what the function returns.
pub fn lead(function: impl FnOnce() -> i32) -> nix::Result<Child> {
    child::fork(|| lead_here(function))
}

pub fn lead_here(function: impl FnOnce() -> i32) -> i32 {
    match setsid() {
        Ok(_) => function(),
        Err(_) => 1,
    }
}

/// Waits for a child's end. Returns its status, as wait(2) encodes it.
pub fn status_of(child: Child) -> Result<u32, Failure> {
    let ended = waitpid(child.into_pid(), Some(WaitPidFlag::__WALL))?;
    code_of(ended).ok_or_else(|| Failure::new(format!("expected an end, got {ended:?}")))
}

/// A status, as wait(2) encodes it, if it is that of an end.
pub fn code_of(ended: WaitStatus) -> Option<u32> {
    match ended {
        WaitStatus::Exited(_, status) => Some((status as u32) << 8),
        WaitStatus::Signaled(_, signal, core) => {
            Some(signal as u32 | if core { CORE_FLAG } else { 0 })
        }
        _ => None,
    }
}

/// The start of a session that a child of this process leads.
pub fn begin(pid: i32) -> Result<Event, Failure> {
    let parent = own_task();
    Ok(Event::Sid {
        task: Task::leader(pid),
        left: Left {
            parent_pid: parent.pid,
            parent_tgid: parent.tgid,
            session: getsid(None)?.as_raw(),
            process_group: getpgrp().as_raw(),
        },
    })
}

/// The end of a session whose leader was forked.
pub fn end(pid: i32, code: u32) -> Event {
    Event::SessionEnd {
        task: Task::leader(pid),
        code,
        signal: Signal::SIGCHLD as u32,
    }
}

/// Forks a child with a pid of the caller's choice, as soon as the pid is free.
pub fn fork_as(pid: i32, deadline: Instant, function: impl FnOnce() -> i32) -> TestResult {
    let mut arguments = arguments(0);
    arguments.set_tid = (&raw const pid) as u64;
    arguments.set_tid_size = 1;
    // Each attempt has the function, but only the child of a successful attempt takes it.
    let mut function = Some(function);
    loop {
        let run = || function.take().map_or(1, |function| function());
        match child::clone3(&arguments, run) {
            Ok(child) => {
                child.into_pid();
                return Ok(());
            }
            // Nothing reports when a pid becomes free.
            Err(Errno::EEXIST) if Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
    }
}
