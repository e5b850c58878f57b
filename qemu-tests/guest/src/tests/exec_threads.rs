// SPDX-License-Identifier: GPL-2.0
//! Which numbers end when a process with several threads runs another program (C45).
//!
//! The caller goes on as the process, with its first thread's number. So the number that ends with
//! the first thread is the caller's. The process's own number ends when the whole process does.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::loads::execs::{self, Options};
use crate::support::container::{self, PID};
use crate::support::exec_variants::{
    self, Caller, ExecResult, FirstThread, Observed, Place, Variant,
};
use crate::support::scenario::own_task;
use crate::support::sessions::end;
use crate::support::stock::FIRST_THREAD_ENDS_PROCESS;
use crate::test;
use crate::wire::{Event, Task};

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(FIRST_THREAD_ENDS_PROCESS)
    .covers(&[Line::C45])
    .of([
        test!(an_exec_ends_the_other_threads_before_it_is_reported)
            .stock_fails(LATE)
            .limit(LIMIT),
        test!(an_exec_by_another_thread_ends_the_number_that_vanishes).limit(LIMIT),
        test!(an_exec_that_fails_at_once_ends_nothing).limit(LIMIT),
        test!(an_exec_that_fails_late_ends_the_process).limit(LIMIT),
        test!(an_exec_that_is_killed_ends_the_process).limit(LIMIT),
        test!(the_ends_name_the_parent_of_the_process)
            .stock_fails("a thread is reaped immediately, and its parent is then reported as 0"),
        test!(the_living_numbers_follow_from_fork_and_exit)
            .not_on_stock("a listener in a pid namespace gets no events")
            .limit(LIMIT),
    ]);

const LATE: &str =
    "the end of a thread that exec ends is reported when exec may already have continued";

/// For all variants of a test.
const LIMIT: Duration = Duration::from_secs(60);

/// Exit signal of a thread that notifies no process: -1.
const NO_SIGNAL: u32 = u32::MAX;

/// Callers other than the first thread, by what the first thread does.
const OTHERS: [Caller; 3] = [
    Caller::Other(FirstThread::Waits),
    Caller::Other(FirstThread::EndedBefore),
    Caller::Other(FirstThread::EndsMeanwhile),
];

/// How many threads there are besides the first one and the caller. With one bystander, the caller
/// runs before it whenever possible.
const BYSTANDERS: [usize; 3] = [0, 1, 12];

fn an_exec_ends_the_other_threads_before_it_is_reported() -> TestResult {
    expect_all(ExecResult::Runs, &[Caller::First], &BYSTANDERS)
}

fn an_exec_by_another_thread_ends_the_number_that_vanishes() -> TestResult {
    expect_all(ExecResult::Runs, &OTHERS, &BYSTANDERS)
}

fn an_exec_that_fails_at_once_ends_nothing() -> TestResult {
    expect_all(ExecResult::FailsAtOnce, &all_callers(), &BYSTANDERS)
}

fn an_exec_that_fails_late_ends_the_process() -> TestResult {
    expect_all(ExecResult::FailsLate, &all_callers(), &BYSTANDERS)
}

fn an_exec_that_is_killed_ends_the_process() -> TestResult {
    // The exec waits for a bystander.
    expect_all(ExecResult::Killed, &all_callers(), &BYSTANDERS[1..])
}

fn all_callers() -> Vec<Caller> {
    [&[Caller::First], OTHERS.as_slice()].concat()
}

/// Runs all variants with this outcome, and expects the promised events of each.
fn expect_all(outcome: ExecResult, callers: &[Caller], bystanders: &[usize]) -> TestResult {
    let places = [
        Place::Ordinary,
        Place::LeadsSession,
        Place::FirstOfNamespace,
    ];
    for place in places {
        if place == Place::FirstOfNamespace && container::lacking(PID).is_some() {
            continue;
        }
        for caller in callers {
            for bystanders in bystanders {
                for traced in [false, true] {
                    let variant = Variant {
                        outcome,
                        caller: *caller,
                        bystanders: *bystanders,
                        hurried: *bystanders == 1,
                        traced,
                        place,
                    };
                    expect_variant(variant).map_err(|failure| failure.about(variant))?;
                }
            }
        }
    }
    Ok(())
}

fn expect_variant(variant: Variant) -> TestResult {
    let observed = exec_variants::run(variant)?;
    expect_promised("outside", variant, &observed.outside)?;
    match &observed.inside {
        Some(inside) => expect_promised("inside", variant, inside),
        None => Ok(()),
    }
}

/// Expects the events of a process to be those that its variant promises.
fn expect_promised(listener: &str, variant: Variant, observed: &Observed) -> TestResult {
    let expected = promised(variant, observed)?;
    let reported: Vec<_> = observed
        .events
        .iter()
        .map(|event| settled(*event, variant, observed))
        .collect();
    // Events that may come in any order are sorted on both sides before they are compared.
    let mut rest = reported.as_slice();
    for mut together in expected {
        let (mut got, behind) = match rest.split_at_checked(together.len()) {
            Some((got, behind)) => (got.to_vec(), behind),
            None => (rest.to_vec(), &[][..]),
        };
        let by_name = |event: &Event| format!("{event:?}");
        got.sort_by_key(by_name);
        together.sort_by_key(by_name);
        if got != together {
            return Err(Failure::new(format!(
                "{listener}: expected {together:?}, got {got:?}, out of {reported:#?}"
            )));
        }
        rest = behind;
    }
    expect_eq(&format!("{listener}: further events"), rest, &[])
}

/// An event without the fields that are not promised, or that another test checks.
fn settled(event: Event, variant: Variant, observed: &Observed) -> Event {
    match event {
        Event::Fork { child, .. } => Event::Fork {
            parent: Task::NONE,
            child,
        },
        Event::Exit {
            task, code, signal, ..
        } => {
            let meanwhile = variant.caller == Caller::Other(FirstThread::EndsMeanwhile)
                && observed.caller() == Some(task.pid)
                && code == exec_variants::FIRST_STATUS << 8;
            Event::Exit {
                task,
                // Only the kernel knows whether the first thread ended by itself or by exec.
                code: if meanwhile { 0 } else { code },
                signal,
                parent: Task::NONE,
            }
        }
        other => other,
    }
}

/// The events that are promised, in this order. Those of one group may come in any order.
fn promised(variant: Variant, observed: &Observed) -> Result<Vec<Vec<Event>>, Failure> {
    let process = Task::leader(observed.pid);
    let exit = |task, code, signal| Event::Exit {
        task,
        code,
        signal,
        parent: Task::NONE,
    };
    let by_exec = matches!(variant.outcome, ExecResult::Runs | ExecResult::FailsLate);
    let status = variant.outcome.status();
    let mut ends = Vec::new();
    for pid in &observed.threads {
        let called = observed.caller() == Some(*pid);
        let code = match (variant.outcome, variant.caller) {
            (ExecResult::FailsAtOnce, _) => status,
            (ExecResult::Killed, _) if called => status,
            // The first thread ends with the caller's old number.
            (_, Caller::Other(FirstThread::EndedBefore)) if called => {
                exec_variants::FIRST_STATUS << 8
            }
            _ => 0,
        };
        let tgid = observed.pid;
        ends.push(exit(Task { pid: *pid, tgid }, code, NO_SIGNAL));
    }
    let numbers = observed.announced.iter().map(|pid| Event::Fork {
        parent: Task::NONE,
        child: Task {
            pid: *pid,
            tgid: observed.pid,
        },
    });
    let mut expected: Vec<_> = numbers.map(|event| vec![event]).collect();
    let session = match variant.place {
        Place::LeadsSession => vec![end(observed.pid, status)],
        Place::Ordinary | Place::FirstOfNamespace => vec![],
    };
    if by_exec {
        expected.push(ends);
        if variant.outcome == ExecResult::Runs {
            expected.push(vec![Event::Exec { task: process }]);
        }
        expected.push(session);
    } else {
        // Threads that end together with the last one may still be on their way out.
        expected.push([ends, session].concat());
    }
    expected.push(vec![exit(process, status, Signal::SIGCHLD as u32)]);
    Ok(expected)
}

fn the_ends_name_the_parent_of_the_process() -> TestResult {
    for outcome in [ExecResult::Runs, ExecResult::Killed] {
        let variant = Variant {
            outcome,
            caller: Caller::Other(FirstThread::Waits),
            bystanders: 1,
            hurried: false,
            traced: false,
            place: Place::Ordinary,
        };
        let observed = exec_variants::run(variant)?.outside;
        let ends = observed.events.iter().filter_map(|event| match event {
            Event::Exit { task, parent, .. } => Some((task.pid, *parent)),
            _ => None,
        });
        let mut ends: Vec<_> = ends.collect();
        ends.sort_by_key(|(pid, _)| *pid);
        let numbers = observed.announced.iter().map(|pid| (*pid, own_task()));
        let mut expected: Vec<_> = numbers.collect();
        expected.sort_by_key(|(pid, _)| *pid);
        expect_eq("parents", ends, expected).map_err(|failure| failure.about(variant))?;
    }
    Ok(())
}

fn the_living_numbers_follow_from_fork_and_exit() -> TestResult {
    execs::run(&Options {
        rounds: 40,
        seed: 1,
    })
}
