// SPDX-License-Identifier: GPL-2.0
//! Sessions in pid namespaces: the pids in each listener's namespace, and the end of a whole namespace
//! (C17, C21, C22).

use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use crate::child::{self, Gate};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::container::{ALL, Container, Handover, NET, PID, numbers_at};
use crate::support::process::{pause_for_ever, succeed};
use crate::support::scenario::{events, expect_exactly, own_task, take_through_exit};
use crate::support::sessions::{SESSIONS, end, lead, status_of};
use crate::support::stock::{NO_NETWORK_NAMESPACES, NO_SESSION_END};
use crate::support::threads::{await_end_of_thread, end_thread_as};
use crate::test;
use crate::wire::{Event, LISTEN, Left, Task, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_NETWORK_NAMESPACES)
    .covers(&[Line::C17])
    .of([
        test!(both_ends_of_a_session_have_each_levels_numbers)
            .limit(Duration::from_secs(20))
            .covers(&[Line::C11, Line::C21, Line::C22]),
        test!(a_sibling_container_gets_no_end_of_a_session).covers(&[Line::C22]),
        test!(all_sessions_of_a_dying_pid_namespace_end_once)
            .limit(Duration::from_secs(20))
            .covers(&[Line::C22]),
        test!(a_namespace_ends_with_the_last_thread_of_its_first_process)
            .stock_fails(NO_SESSION_END),
        test!(a_first_process_has_the_status_of_its_reboot[restart](
            RebootMode::RB_AUTOBOOT,
            Signal::SIGHUP
        ))
        .stock_fails(NO_SESSION_END),
        test!(a_first_process_has_the_status_of_its_reboot[power_off](
            RebootMode::RB_POWER_OFF,
            Signal::SIGINT
        ))
        .stock_fails(NO_SESSION_END),
        test!(a_first_process_has_the_status_of_a_reboot_by_a_child).stock_fails(NO_SESSION_END),
    ]);

/// Whether an event is about one of these processes.
fn about(pids: &[i32]) -> impl Fn(&Event) -> bool {
    move |event| pids.contains(&event.subject().tgid)
}

/// Two containers, one in the other, with a listener on each level and outside.
fn both_ends_of_a_session_have_each_levels_numbers() -> TestResult {
    const STATUS: i32 = 3;
    let mut listeners = vec![Listener::listen(SESSIONS)?];
    let handover = Handover::new()?;
    let (ready, go_on) = (Gate::new()?, Gate::new()?);
    let outer = Container::start(ALL, || {
        handover.listen(&[LISTEN, SESSIONS])?;
        // One more process on this level, so that pids differ.
        succeed(child::fork(|| 0)?)?;
        Container::start(PID | NET, || {
            handover.listen(&[LISTEN, SESSIONS])?;
            setsid()?;
            let leader = child::fork(|| {
                let waited = ready.open(0).and_then(|()| go_on.pass());
                if waited.is_ok() && setsid().is_ok() {
                    STATUS
                } else {
                    1
                }
            })?;
            expect_eq("status", status_of(leader)?, (STATUS as u32) << 8)
        })?
        .finish()
    })?;
    for _ in 0..2 {
        listeners.push(handover.receive_from(&outer)?);
    }
    ready.pass()?;
    let (inits, leaders) = (numbers_at(2, 1)?, numbers_at(2, 2)?);
    go_on.open(0)?;
    outer.finish()?;
    for (level, listener) in listeners.iter_mut().enumerate() {
        let (init, leader) = (inits[level], leaders[level]);
        let begin = Event::Sid {
            task: Task::leader(leader),
            left: Left {
                parent_pid: init,
                parent_tgid: init,
                session: init,
                process_group: init,
            },
        };
        let expected = [begin, end(leader, (STATUS as u32) << 8)];
        let name = format!("level {level}");
        expect_exactly(&name, listener, &expected, about(&[leader]))?;
    }
    Ok(())
}

fn a_sibling_container_gets_no_end_of_a_session() -> TestResult {
    let (busy, quiet) = (Container::idle(ALL)?, Container::idle(ALL)?);
    let (mut inside, mut beside) = (busy.listen(SESSIONS)?, quiet.listen(SESSIONS)?);
    busy.run(|| Ok(setsid().map(drop)?))?;
    quiet.run(|| Ok(()))?;
    let kinds: Vec<_> = events(&mut inside)?.iter().map(Event::kind).collect();
    expect_eq("inside", kinds, vec!["sid", "session-end"])?;
    expect_eq("beside", events(&mut beside)?, vec![])
}

fn all_sessions_of_a_dying_pid_namespace_end_once() -> TestResult {
    const LEADERS: i32 = 3;
    let mut outside = Listener::listen(SESSIONS)?;
    let handover = Handover::new()?;
    let ready = Gate::new()?;
    let container = Container::start(ALL, || {
        handover.listen(&[LISTEN, SESSIONS])?;
        setsid()?;
        for _ in 0..LEADERS {
            // They live until the namespace dies.
            let _ = lead(|| match ready.open(0) {
                Ok(()) => pause_for_ever(),
                Err(_) => 1,
            })?
            .into_pid();
        }
        pause_for_ever()
    })?;
    let mut inside = handover.receive_from(&container)?;
    (0..LEADERS).try_for_each(|_| ready.pass().map(drop))?;
    // The first process, and its children after it.
    let numbers: Vec<i32> = (1..=1 + LEADERS).collect();
    let outer = numbers
        .iter()
        .map(|number| container.outer(*number))
        .collect::<Result<Vec<_>, Failure>>()?;
    // All sessions began before the namespace ends.
    for (listener, pids) in [(&mut inside, &numbers), (&mut outside, &outer)] {
        let mut begun: Vec<_> = events(listener)?
            .iter()
            .map(|event| (event.kind(), event.subject().pid))
            .collect();
        begun.sort_unstable();
        let expected: Vec<_> = pids.iter().map(|pid| ("sid", *pid)).collect();
        expect_eq("begun", begun, expected)?;
    }
    container.kill()?;
    let killed = |pids: &[i32]| -> Vec<Event> {
        let code = Signal::SIGKILL as u32;
        pids.iter().map(|pid| end(*pid, code)).collect()
    };
    expect_exactly("inside", &mut inside, &killed(&numbers), |_| true)?;
    expect_exactly("outside", &mut outside, &killed(&outer), |_| true)
}

fn a_namespace_ends_with_the_last_thread_of_its_first_process() -> TestResult {
    let mut outside = Listener::listen(SESSIONS)?;
    let handover = Handover::new()?;
    let container = Container::start(PID, || {
        handover.listen(&[LISTEN, SESSIONS])?;
        setsid()?;
        std::thread::spawn(|| {
            await_end_of_thread(0);
            std::process::exit(0)
        });
        end_thread_as(0, 3)
    })?;
    let mut inside = handover.receive_from(&container)?;
    let pid = container.task().pid;
    container.finish()?;
    let ends = |listener: &mut Listener| -> Result<Vec<Event>, Failure> {
        let mut events = events(listener)?;
        events.retain(|event| event.kind() == "session-end");
        Ok(events)
    };
    expect_eq("inside", ends(&mut inside)?, vec![end(1, 0)])?;
    expect_eq("outside", ends(&mut outside)?, vec![end(pid, 0)])
}

/// Expects the end of a session, and of its leader, to have the status that reboot(2) gives to the first
/// process of a pid namespace. It is known only after the process was killed.
fn expect_reboot(container: Container, listener: &mut Listener, signal: Signal) -> TestResult {
    let pid = container.task().pid;
    let code = container.wait()?;
    expect_eq("status", code, signal as u32)?;
    let ends: Vec<_> = take_through_exit(listener, pid)?
        .into_iter()
        .map(|received| received.event)
        .filter(|event| event.subject().pid == pid && event.kind() != "sid")
        .collect();
    let exit = Event::Exit {
        task: Task::leader(pid),
        code,
        signal: Signal::SIGCHLD as u32,
        parent: own_task(),
    };
    expect_eq("ends", ends, vec![end(pid, code), exit])
}

fn a_first_process_has_the_status_of_its_reboot(mode: RebootMode, signal: Signal) -> TestResult {
    let mut listener = Listener::listen(SESSIONS | mask::EXIT)?;
    let container = Container::start(PID, || {
        setsid()?;
        match reboot(mode)? {}
    })?;
    expect_reboot(container, &mut listener, signal)
}

fn a_first_process_has_the_status_of_a_reboot_by_a_child() -> TestResult {
    let mut listener = Listener::listen(SESSIONS | mask::EXIT)?;
    let container = Container::start(PID, || {
        setsid()?;
        let _ = child::fork(|| match reboot(RebootMode::RB_AUTOBOOT) {
            Ok(never) => match never {},
            Err(_) => 1,
        })?
        .into_pid();
        pause_for_ever()
    })?;
    expect_reboot(container, &mut listener, Signal::SIGHUP)
}
