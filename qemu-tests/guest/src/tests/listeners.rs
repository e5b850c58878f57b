// SPDX-License-Identifier: GPL-2.0
//! Several listeners at the same time, and listeners that end.

use nix::unistd::setsid;

use crate::child;
use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::process::succeed;
use crate::support::scenario::{
    ListeningChild, events_about, expect_own_events, in_child, mark, own_task,
};
use crate::test;
use crate::wire::{Event, LISTEN, mask};

pub const TESTS: &[Test] = &[
    test!(each_gets_what_it_asked_for).covers(&[Line::C18]),
    test!(closing_one_leaves_the_other).covers(&[Line::C27]),
    test!(killing_one_leaves_the_other).covers(&[Line::C27]),
    test!(a_child_may_use_its_parents_socket).covers(&[Line::C18]),
];

fn each_gets_what_it_asked_for() -> TestResult {
    let mut everything = Listener::listen_all()?;
    let mut sessions = Listener::listen(mask::SID)?;
    let mut names = Listener::listen(mask::COMM)?;
    let scene = in_child(&mut everything, || Ok(setsid()?.as_raw()))?;
    let about = |listener: &mut Listener| -> Result<Vec<&str>, Failure> {
        let messages = listener.take_queued()?;
        let events = events_about(&messages, scene.child.tgid);
        Ok(events.iter().map(Event::kind).collect())
    };
    expect_eq("kinds for the first", about(&mut sessions)?, vec!["sid"])?;
    // The two marks.
    expect_eq(
        "kinds for the second",
        about(&mut names)?,
        vec!["comm", "comm"],
    )
}

fn closing_one_leaves_the_other() -> TestResult {
    let mut stays = Listener::listen_all()?;
    let goes = Listener::listen_all()?;
    drop(goes);
    expect_own_events(&mut stays)
}

fn killing_one_leaves_the_other() -> TestResult {
    let mut stays = Listener::listen_all()?;
    ListeningChild::start()?.kill()?;
    expect_own_events(&mut stays)
}

fn a_child_may_use_its_parents_socket() -> TestResult {
    let mut listener = Listener::open()?;
    let child = child::fork(|| i32::from(listener.request(&[LISTEN, mask::COMM]).is_err()))?;
    succeed(child)?;
    mark("received")?;
    let received = listener.wait_for(
        "COMM",
        |received| matches!(received.event, Event::Comm { task, .. } if task == own_task()),
    )?;
    expect_eq("kind", received.event.kind(), "comm")
}
