// SPDX-License-Identifier: GPL-2.0
//! FORK: fork, vfork, clone and threads (C7).

use std::thread;

use nix::libc;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::child::{self, own_tid};
use crate::harness::{Declaration, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::{
    Scene, events_about, events_of, in_child, own_task, take_through_exit,
};
use crate::test;
use crate::wire::{Event, Task, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C7]).of([
    test!(names_parent_and_child[fork](libc::SIGCHLD)),
    test!(names_parent_and_child[vfork](
        libc::CLONE_VFORK | libc::SIGCHLD
    )),
    test!(names_the_real_parent_of_clone_parent),
    test!(names_the_thread_and_the_parent_of_its_process),
    test!(comes_before_any_event_of_the_child),
    test!(does_not_come_when_fork_fails),
]);

/// The FORK events of a new process.
fn forks(scene: &Scene, child: i32) -> Vec<Event> {
    events_of(&scene.messages, mask::FORK, child)
}

/// Makes the child by clone(2), with the flags of fork() or vfork().
fn names_parent_and_child(flags: i32) -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        let child = child::clone_with(flags, || 0)?;
        let pid = child.pid().as_raw();
        child.wait()?;
        Ok(pid)
    })?;
    let expected = Event::Fork {
        parent: scene.child,
        child: Task::leader(scene.number),
    };
    expect_eq("events", forks(&scene, scene.number), vec![expected])
}

fn names_the_real_parent_of_clone_parent() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        let sibling = child::clone_with(libc::CLONE_PARENT | libc::SIGCHLD, || 0)?;
        Ok(sibling.into_pid().as_raw())
    })?;
    // It is a child of this process, although another process made it.
    waitpid(Pid::from_raw(scene.number), None)?;
    let expected = Event::Fork {
        parent: own_task(),
        child: Task::leader(scene.number),
    };
    expect_eq("events", forks(&scene, scene.number), vec![expected])
}

fn names_the_thread_and_the_parent_of_its_process() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        Ok(thread::spawn(own_tid)
            .join()
            .expect("gettid() does not panic"))
    })?;
    // A thread's parent is the parent of its process, which getppid() returns in the thread.
    let child = Task {
        pid: scene.number,
        tgid: scene.child.tgid,
    };
    let expected = Event::Fork {
        parent: own_task(),
        child,
    };
    expect_eq("events", scene.events(mask::FORK), vec![expected])
}

fn comes_before_any_event_of_the_child() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let child = child::fork(|| 0)?;
    let pid = child.pid().as_raw();
    let messages = take_through_exit(&mut listener, pid)?;
    child.wait()?;
    let events = events_about(&messages, pid);
    let kinds = events.iter().map(Event::kind).collect();
    expect_eq("kinds of events", kinds, vec!["fork", "exit"])
}

fn does_not_come_when_fork_fails() -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, || {
        // CLONE_THREAD without CLONE_SIGHAND is refused.
        let refused = child::clone_with(libc::CLONE_THREAD, || 0);
        expect(refused.is_err(), "clone() to fail")?;
        Ok(0)
    })?;
    let made: Vec<_> = scene
        .messages
        .iter()
        .filter(|received| {
            matches!(received.event, Event::Fork { parent, .. } if parent == scene.child)
        })
        .map(|received| received.event)
        .collect();
    expect_eq("events", made, vec![])
}
