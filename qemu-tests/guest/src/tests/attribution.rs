// SPDX-License-Identifier: GPL-2.0
//! Whose a new session is: by its event, and the old way, by /proc after its event (C11).
//!
//! What a supervisor reads in /proc is what is there by the time it reads: the leader may be gone,
//! its parent may be, and which session it left is nowhere. The event says what was.

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

/// A service that makes leaders, and what is known of a leader that came from it.
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

/// Makes leaders that end at once, and waits until the kernel has reaped them all: one that had
/// not called setsid() yet would have another parent.
fn make_short_sessions() -> TestResult {
    for _ in 0..LEADERS {
        let _ = child::fork(|| i32::from(setsid().is_err()))?.into_pid();
    }
    while waitpid(None, None).is_ok() {}
    Ok(())
}

/// What the next leader left, according to its event; the service's own session is passed over.
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

/// A process's parent and session, according to /proc; none if it is gone.
fn by_proc(pid: i32) -> Option<(i32, i32)> {
    let stat = Stat::of(pid).ok()?;
    (stat.session > 0).then_some((stat.parent, stat.session))
}

fn leaders_that_are_gone_are_attributed_by_their_events() -> TestResult {
    let mut listener = Listener::listen(mask::SID)?;
    let service = Service::start(make_short_sessions)?;
    let pid = service.process.pid();
    // The reader is as late as it may be: all leaders are gone.
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
        // The classic daemon: its parent ends when it has begun, and somebody else becomes its.
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
        format!("/proc to know nothing of {expected:?}, got {parent} and {session}"),
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
