// SPDX-License-Identifier: GPL-2.0
//! Events with the control groups that they are from, as our program shows them (C52).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use crate::child;
use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
use crate::support::cgroup::Group;
use crate::support::process::{status, succeed};
use crate::support::program::RunningProgram;
use crate::test;

pub const TESTS: &[Test] = &[test!(events_are_shown_with_the_groups_that_they_are_from)
    .covers(&[Line::C52])
    .not_on_stock("the program says that it needs newer features")];

/// A group below another one, which goes when this is dropped.
struct Below {
    directory: PathBuf,
    path: String,
}

impl Below {
    fn new(group: &Group, name: &str) -> Result<Self, Failure> {
        let directory = group.directory().join(name);
        fs::create_dir(&directory)?;
        let above = group.line();
        let above = above.strip_prefix("0::").unwrap_or_default();
        Ok(Self {
            directory,
            path: format!("{above}/{name}"),
        })
    }

    /// Has a process enter it, lead a session and end; its number.
    fn lead(&self) -> Result<i32, Failure> {
        let leader = child::fork(|| {
            status(|| {
                fs::write(self.directory.join("cgroup.procs"), "0")?;
                Ok(setsid().map(drop)?)
            })
        })?;
        let pid = leader.pid().as_raw();
        succeed(leader)?;
        Ok(pid)
    }

    /// Its id.
    fn id(&self) -> Result<u64, Failure> {
        Ok(fs::metadata(&self.directory)?.ino())
    }

    fn remove(&self) -> TestResult {
        Ok(fs::remove_dir(&self.directory)?)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        if self.directory.exists() {
            if let Err(failure) = self.remove() {
                eprintln!("{} is left: {failure}", self.path);
            }
        }
    }
}

fn events_are_shown_with_the_groups_that_they_are_from() -> TestResult {
    let group = Group::new()?;
    let one = Below::new(&group, "one")?;
    let other = Below::new(&group, "other")?;
    let short = Below::new(&group, "short")?;
    let program = "/proc/self/exe";
    let mut listener =
        RunningProgram::start(&[program, "listen", "--cgroups", "--mask", "sid,exit"])?;
    listener.wait_until_it_listens()?;
    let leader = one.lead()?;
    expect_lines(&mut listener, &[(leader, one.path.clone())])?;

    // What it reads together is from groups in turn. Two of them are gone by then, of which it has
    // seen one.
    let pid = Pid::from_raw(listener.pid());
    kill(pid, Signal::SIGSTOP)?;
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
    expect_eq("stop", stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP))?;
    let mut expected = Vec::new();
    for group in [&one, &other, &one] {
        expected.push((group.lead()?, group.path.clone()));
    }
    expected.push((short.lead()?, short.id()?.to_string()));
    short.remove()?;
    one.remove()?;
    kill(pid, Signal::SIGCONT)?;
    expect_lines(&mut listener, &expected)?;
    listener.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Waits for both events of each process, and expects this to be shown as their group. An end may be
/// shown after what others do meanwhile.
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
