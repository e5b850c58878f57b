// SPDX-License-Identifier: GPL-2.0
//! Real programs of today, unchanged.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Failure, Test, TestResult, expect};
use crate::test;

pub const TESTS: &[Test] =
    &[test!(forkstat_shows_fork_sid_exec_and_exit).limit(Duration::from_secs(20))];

fn forkstat_shows_fork_sid_exec_and_exit() -> TestResult {
    // A line for each event at once, and sid only together with uid.
    let mut forkstat = Command::new("forkstat")
        .args(["-l", "-e", "sid,uid,fork,exec,exit"])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::skip(format!("cannot run forkstat: {error}")))?;
    let stop = Pid::from_raw(forkstat.id() as i32);
    let output = forkstat
        .stdout
        .take()
        .ok_or_else(|| Failure::new("no output"))?;
    let mut lines = BufReader::new(output).lines();
    // The headline is printed when it listens already.
    let headline = lines
        .next()
        .ok_or_else(|| Failure::new("forkstat said nothing"))??;
    expect(
        headline.contains("Event"),
        format!("a headline, got {headline:?}"),
    )?;
    let mut shell = Command::new("setsid").arg("true").spawn()?;
    let pid = shell.id().to_string();
    let mut seen: Vec<String> = Vec::new();
    for line in lines {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        if let [_time, kind, subject, ..] = words.as_slice() {
            if *subject == pid {
                seen.push((*kind).to_owned());
            }
        }
        if seen.last().is_some_and(|kind| kind == "exit") {
            break;
        }
    }
    expect(shell.wait()?.success(), "setsid to succeed")?;
    kill(stop, Signal::SIGINT)?;
    forkstat.wait()?;
    for kind in ["fork", "exec", "sid", "exit"] {
        expect(
            seen.iter().any(|seen| seen == kind),
            format!("a line {kind} about {pid}, got {seen:?}"),
        )?;
    }
    Ok(())
}
