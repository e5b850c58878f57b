// SPDX-License-Identifier: GPL-2.0
//! Events with the control groups that they are from, as our program shows them (C52).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use super::cgroup::Group;
use super::container::{status, succeed};
use super::programs::Program;
use crate::child;
use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
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
    let mut listener = Program::start(&[program, "listen", "--cgroups", "--mask", "sid,exit"])?;
    listener.wait_until_it_listens()?;
    expect_lines(&mut listener, one.lead()?, &one.path)?;

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
    for (pid, shown) in expected {
        expect_lines(&mut listener, pid, &shown)?;
    }
    listener.stop(Signal::SIGTERM)?;
    Ok(())
}

/// Waits for both events of a process, and expects this to be shown as their group.
fn expect_lines(listener: &mut Program, pid: i32, expected: &str) -> TestResult {
    let pid = pid.to_string();
    for kind in ["sid", "exit"] {
        let what = format!("{kind} of {pid}");
        let shown = listener.wait_for_line(&what, |line| {
            let words: Vec<_> = line.split_whitespace().collect();
            match words.as_slice() {
                [first, shown, subject, ..] if *first == kind && *subject == pid => {
                    Some((*shown).to_owned())
                }
                _ => None,
            }
        })?;
        expect_eq(&what, shown.as_str(), expected)?;
    }
    Ok(())
}
