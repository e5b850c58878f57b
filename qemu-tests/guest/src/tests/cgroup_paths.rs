// SPDX-License-Identifier: GPL-2.0
//! Events with the control groups that they are from, as the `listen` command shows them (C52).

use std::collections::BTreeMap;

use nix::sys::signal::{Signal, kill};
use nix::unistd::setsid;

use crate::child;
use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
use crate::support::cgroup::{Cgroup, Group};
use crate::support::process::{status, succeed};
use crate::support::program::RunningProgram;
use crate::test;

pub const TESTS: &[Test] = &[test!(events_are_shown_with_their_cgroups)
    .covers(&[Line::C52])
    .not_on_stock("the program says that it needs newer features")];

/// Has a process enter a group, lead a session and end. Returns its pid.
fn lead_in(cgroup: &Cgroup) -> Result<i32, Failure> {
    let leader = child::fork(|| {
        status(|| {
            cgroup.add(0)?;
            Ok(setsid().map(drop)?)
        })
    })?;
    let pid = leader.pid().as_raw();
    succeed(leader)?;
    Ok(pid)
}

fn events_are_shown_with_their_cgroups() -> TestResult {
    let group = Group::new()?;
    let above = group.line();
    let above = above.strip_prefix("0::").unwrap_or_default();
    let new = |name| Cgroup::within(&group.directory(), name);
    let one = (new("one")?, format!("{above}/one"));
    let other = (new("other")?, format!("{above}/other"));
    let short = new("short")?;
    let program = "/proc/self/exe";
    let mut listener =
        RunningProgram::start(&[program, "listen", "--cgroups", "--mask", "sid,exit"])?;
    listener.wait_until_it_listens()?;
    let leader = lead_in(&one.0)?;
    expect_lines(&mut listener, &[(leader, one.1.clone())])?;

    // The events that it reads together are from different groups in turn. By then, two of the
    // groups are gone. It has seen one of the two before.
    let pid = listener.pause()?;
    let mut expected = Vec::new();
    for (cgroup, path) in [&one, &other, &one] {
        expected.push((lead_in(cgroup)?, path.clone()));
    }
    expected.push((lead_in(&short)?, short.id()?.to_string()));
    short.remove()?;
    one.0.remove()?;
    kill(pid, Signal::SIGCONT)?;
    expect_lines(&mut listener, &expected)?;
    listener.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Waits for both events of each process, and expects them to be shown with this group. The end of a
/// process may be shown after later events of other processes.
fn expect_lines(listener: &mut RunningProgram, expected: &[(i32, String)]) -> TestResult {
    let mut missing: BTreeMap<(String, String), &str> = BTreeMap::new();
    for (pid, shown) in expected {
        for kind in ["sid", "exit"] {
            missing.insert((kind.to_owned(), pid.to_string()), shown);
        }
    }
    while !missing.is_empty() {
        let what = format!("one of {missing:?}");
        let (event, shown) = listener.wait_for_line(&what, |line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let (kind, shown, subject) = (words.next()?, words.next()?, words.next()?);
            let event = (kind, subject);
            missing.contains_key(&event).then_some((event, shown))
        })?;
        let expected = missing.remove(&event).unwrap_or_default();
        expect_eq(&format!("{event:?}"), shown.as_str(), expected)?;
    }
    Ok(())
}
