// SPDX-License-Identifier: GPL-2.0
//! Which process a new session came from: by its event, and the old way, by /proc after its event
//! (C11).
//!
//! /proc shows a supervisor the state at the time when it reads. By then, the leader or its parent
//! may be gone, and nothing shows which session the leader left. The event has the state at
//! setsid().

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::setsid;

use crate::child::{self, Child, Gate};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::proc_stat::Stat;
use crate::results;
use crate::support::process::{ignore_children, status, succeed};
use crate::test;
use crate::wire::{Event, Left, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_FIELDS)
    .covers(&[Line::C11])
    .of([
        test!(leaders_that_are_gone_are_attributed_by_their_events),
        test!(leaders_whose_parents_are_gone_are_attributed_by_their_events),
        test!(short_sessions_are_missed_in_proc_and_reported_by_events),
    ]);

const NO_FIELDS: &str = "the event has no such fields";

/// How many sessions begin in each test.
const LEADERS: usize = 200;

/// A service that makes leaders, and what each of its leaders left.
struct Service {
    process: Child,
    left: Left,
}

impl Service {
    /// Starts a function in a session of its own; the kernel reaps its children.
    fn start(function: impl FnOnce() -> TestResult) -> Result<Self, Failure> {
        let process = child::fork(|| {
            status(|| {
                setsid()?;
                ignore_children()?;
                function()
            })
        })?;
        let pid = process.pid().as_raw();
        let left = Left {
            parent_pid: pid,
            parent_tgid: pid,
            session: pid,
            process_group: pid,
        };
        Ok(Self { process, left })
    }
}

/// Makes leaders that end immediately, and waits until the kernel has reaped them all. If the
/// service ended earlier, a child that had not called setsid() yet would have another parent.
fn make_short_sessions() -> TestResult {
    for _ in 0..LEADERS {
        let _ = child::fork(|| i32::from(setsid().is_err()))?.into_pid();
    }
    while waitpid(None, None).is_ok() {}
    Ok(())
}

/// Returns the next leader, and what it left according to its event. Skips the service's own
/// session.
fn next(listener: &mut Listener, service: &Service) -> Result<(i32, Left), Failure> {
    let pid = service.process.pid().as_raw();
    let received = listener.wait_for("SID", |received| {
        received.event.bit() == mask::SID && received.event.subject().pid != pid
    })?;
    match received.event {
        Event::Sid { task, left } => Ok((task.pid, left)),
        other => Err(Failure::new(format!("expected SID, got {other:?}"))),
    }
}

/// Returns a process's parent and session according to /proc, or `None` if the process is gone.
fn by_proc(pid: i32) -> Option<(i32, i32)> {
    let stat = Stat::of(pid).ok()?;
    (stat.session > 0).then_some((stat.parent, stat.session))
}

fn leaders_that_are_gone_are_attributed_by_their_events() -> TestResult {
    let mut listener = Listener::listen(mask::SID)?;
    let service = Service::start(make_short_sessions)?;
    let pid = service.process.pid();
    // The reader is as late as possible: all leaders are gone.
    expect_eq("service", waitpid(pid, None)?, WaitStatus::Exited(pid, 0))?;
    let (mut by_event, mut by_proc_too) = (0, 0);
    for _ in 0..LEADERS {
        let (pid, left) = next(&mut listener, &service)?;
        by_event += usize::from(left == service.left);
        by_proc_too += usize::from(by_proc(pid).is_some());
    }
    expect_eq("attributed by /proc", by_proc_too, 0)?;
    expect_eq("attributed by events", by_event, LEADERS)
}

fn leaders_whose_parents_are_gone_are_attributed_by_their_events() -> TestResult {
    let mut listener = Listener::listen(mask::SID)?;
    let (begun, never) = (Gate::new()?, Gate::new()?);
    let service = Service::start(|| {
        // The classic daemon: its parent ends once the daemon has begun, and the daemon gets
        // another parent.
        let _ = child::fork(|| {
            let waited = setsid().map(drop).map_err(Into::into).and_then(|()| {
                begun.open(0)?;
                never.pass()
            });
            i32::from(waited.is_err())
        })?;
        begun.pass()?;
        Ok(())
    })?;
    let expected = service.left;
    let pid = service.process.pid();
    expect_eq("service", waitpid(pid, None)?, WaitStatus::Exited(pid, 0))?;
    let (leader, left) = next(&mut listener, &service)?;
    let (parent, session) = by_proc(leader).ok_or_else(|| Failure::new("the leader is gone"))?;
    expect(
        parent != expected.parent_tgid && session == leader,
        format!("/proc to show nothing of {expected:?}, got {parent} and {session}"),
    )?;
    expect_eq("left", left, expected)
}

fn short_sessions_are_missed_in_proc_and_reported_by_events() -> TestResult {
    let mut listener = Listener::listen(mask::SID)?;
    let service = Service::start(make_short_sessions)?;
    let (mut gone, mut unknown) = (0, 0);
    for _ in 0..LEADERS {
        let (pid, left) = next(&mut listener, &service)?;
        match by_proc(pid) {
            None => gone += 1,
            Some((_, session)) => expect_eq("session by /proc", session, pid)?,
        }
        unknown += usize::from(left != service.left);
    }
    results::figure("gone when looked up in /proc", f64::from(gone));
    succeed(service.process)?;
    expect_eq("not attributed by events", unknown, 0)
}
