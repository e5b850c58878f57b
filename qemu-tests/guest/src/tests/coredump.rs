// SPDX-License-Identifier: GPL-2.0
//! COREDUMP: a process dies of a signal that dumps core (C14).

use std::path::Path;
use std::{env, fs, process};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, raise};

use crate::child;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::directory::Directory;
use crate::support::scenario::{events_about, exit, own_task, take_through_exit};
use crate::support::sessions::CORE_FLAG;
use crate::test;
use crate::wire::{Event, Task};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C14]).of([
    test!(names_process_and_parent_before_its_exit),
    test!(comes_also_when_no_core_may_be_written),
    test!(does_not_come_for_a_signal_without_core),
]);

/// Lets a child die of a signal. Returns the child, and its COREDUMP and EXIT events in order.
fn die(signal: Signal, core_limit: u64, directory: &Path) -> Result<(Task, Vec<Event>), Failure> {
    let mut listener = Listener::listen_all()?;
    let child = child::fork(|| {
        let prepared = setrlimit(Resource::RLIMIT_CORE, core_limit, core_limit).is_ok()
            && env::set_current_dir(directory).is_ok();
        if prepared {
            // This does not return.
            let _ = raise(signal);
        }
        1
    })?;
    let pid = child.pid().as_raw();
    let messages = take_through_exit(&mut listener, pid)?;
    child.wait()?;
    let mut events = events_about(&messages, pid);
    events.retain(|event| matches!(event, Event::Coredump { .. } | Event::Exit { .. }));
    Ok((Task::leader(pid), events))
}

fn names_process_and_parent_before_its_exit() -> TestResult {
    let directory = Directory::new("core")?;
    let (task, events) = die(Signal::SIGABRT, RLIM_INFINITY, directory.path())?;
    let expected = vec![
        Event::Coredump {
            task,
            parent: own_task(),
        },
        exit(task, Signal::SIGABRT as u32 | CORE_FLAG, own_task()),
    ];
    expect_eq("events", events, expected)?;
    let cores = fs::read_dir(directory.path())?.count();
    expect(cores == 1, format!("one core file, got {cores}"))
}

fn comes_also_when_no_core_may_be_written() -> TestResult {
    let (task, events) = die(Signal::SIGQUIT, 0, &env::temp_dir())?;
    let expected = vec![
        Event::Coredump {
            task,
            parent: own_task(),
        },
        exit(task, Signal::SIGQUIT as u32, own_task()),
    ];
    expect_eq("events", events, expected)
}

fn does_not_come_for_a_signal_without_core() -> TestResult {
    let (task, events) = die(Signal::SIGTERM, RLIM_INFINITY, &env::temp_dir())?;
    expect_eq(
        "events",
        events,
        vec![exit(task, Signal::SIGTERM as u32, own_task())],
    )?;
    // The parent is the process that forked, in all three tests.
    expect_eq("own id", own_task(), Task::leader(process::id() as i32))
}
