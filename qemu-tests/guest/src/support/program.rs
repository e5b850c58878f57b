// SPDX-License-Identifier: GPL-2.0
//! Programs that listen, as tests run them: their output, and when they are ready.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe};

use super::polling::poll_with_pauses;
use crate::harness::{Failure, expect, expect_eq};
use crate::proc_stat::Stat;
use crate::timeouts;

/// How long a program may take to print what is expected.
const LIMIT: Duration = Duration::from_secs(20);

/// How long to pause before the next check of a program that starts.
const PAUSE: Duration = Duration::from_millis(10);

/// A program of this name in PATH, where setup puts what tests run.
pub fn in_path(name: &str) -> Result<PathBuf, Failure> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| Failure::new(format!("there is no {name} in PATH: run scripts/setup")))
}

/// A program of this name that `scripts/setup --clients` provides, or that is already installed.
pub fn provided(name: &str) -> Result<PathBuf, Failure> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Failure::skip("set-up provides it for x86-64 only"));
    }
    in_path(name)
}

/// A running program, with its output and errors as one text.
pub struct RunningProgram {
    name: String,
    child: Child,
    reader: OwnedFd,
    text: String,
    /// How much of the text was looked at.
    seen: usize,
}

impl RunningProgram {
    /// Starts it.
    pub fn start(words: &[&str]) -> Result<Self, Failure> {
        let (name, arguments) = words
            .split_first()
            .ok_or_else(|| Failure::new("no program is named"))?;
        let (reader, writer) = pipe()?;
        let child = Command::new(name)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()
            .map_err(|error| Failure::new(format!("{name}: {error}; run scripts/setup")))?;
        Ok(Self {
            name: (*name).to_owned(),
            child,
            reader,
            text: String::new(),
            seen: 0,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until the program prints this text, after the text that was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str) -> Result<(), Failure> {
        let deadline = timeouts::deadline(LIMIT);
        loop {
            if let Some(at) = self.text[self.seen..].find(what) {
                self.seen += at + what.len();
                return Ok(());
            }
            if !self.read(deadline)? {
                return Err(self.failure(&format!("did not say {what:?}")));
            }
        }
    }

    /// Waits for a line for which `wanted` returns something, after the text that was waited for before.
    #[track_caller]
    pub fn wait_for_line<T>(
        &mut self,
        what: &str,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = timeouts::deadline(LIMIT);
        loop {
            while let Some(length) = self.text[self.seen..].find('\n') {
                let found = wanted(&self.text[self.seen..self.seen + length]);
                self.seen += length + 1;
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            if !self.read(deadline)? {
                return Err(self.failure(&format!("did not say {what}")));
            }
        }
    }

    /// The output up to what was waited for last.
    pub fn output(&self) -> &str {
        &self.text[..self.seen]
    }

    /// Reads more output. Returns false at the end, or when nothing comes in time.
    fn read(&mut self, deadline: Instant) -> Result<bool, Failure> {
        let mut descriptors = [PollFd::new(self.reader.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, timeouts::poll_until(deadline))? == 0 {
            return Ok(false);
        }
        let mut bytes = [0; 4096];
        let length = File::from(self.reader.try_clone()?).read(&mut bytes)?;
        self.text += &String::from_utf8_lossy(&bytes[..length]);
        Ok(length > 0)
    }

    /// Waits until it has a socket in the group of process events, and sleeps. It has sent its request
    /// then, since it does not sleep in between.
    #[track_caller]
    pub fn wait_until_it_listens(&self) -> Result<(), Failure> {
        poll_with_pauses(PAUSE, LIMIT, || {
            let listens = has_socket(self.pid())? && sleeps(self.pid())?;
            Ok((!listens).then(|| format!("{} to listen, got:\n{}", self.name, self.text)))
        })
    }

    /// Waits for the program's end. Returns all its output, and whether it succeeded.
    #[track_caller]
    pub fn wait(self) -> Result<(String, bool), Failure> {
        self.wait_within(LIMIT)
    }

    /// Like [`Self::wait`], for what takes longer.
    #[track_caller]
    fn wait_within(mut self, limit: Duration) -> Result<(String, bool), Failure> {
        let deadline = timeouts::deadline(limit);
        while self.read(deadline)? {}
        if Instant::now() >= deadline {
            return Err(self.failure("did not end"));
        }
        Ok((self.text, self.child.wait()?.success()))
    }

    /// Stops it until it gets SIGCONT, so that it does not read events.
    pub fn pause(&self) -> Result<Pid, Failure> {
        let pid = Pid::from_raw(self.pid());
        kill(pid, Signal::SIGSTOP)?;
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
        expect_eq("stop", stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP))?;
        Ok(pid)
    }

    /// Ends the program. Returns all its output.
    pub fn stop(self, signal: Signal) -> Result<String, Failure> {
        kill(Pid::from_raw(self.pid()), signal)?;
        Ok(self.wait()?.0)
    }

    #[track_caller]
    fn failure(&self, what: &str) -> Failure {
        Failure::new(format!("{} {what}, but:\n{}", self.name, self.text))
    }
}

/// Runs a program to its end, within this time. Returns its output, if it succeeded.
#[track_caller]
pub fn run(program: &Path, arguments: &[&str], limit: Duration) -> Result<String, Failure> {
    let program = program.to_string_lossy();
    let started = RunningProgram::start(&[&[&*program], arguments].concat())?;
    let (output, succeeded) = started.wait_within(limit)?;
    expect(
        succeeded,
        format!("{program} to succeed, it printed:\n{output}"),
    )?;
    Ok(output)
}

/// Whether a connector socket with this port id is in the group, by /proc/net/netlink: the columns
/// are sk, Eth (the protocol), Pid (the port id) and Groups.
fn has_socket(port_id: i32) -> Result<bool, Failure> {
    const CONNECTOR: &str = "11";
    let sockets = fs::read_to_string("/proc/net/netlink")?;
    let port_id = port_id.to_string();
    Ok(sockets.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words.as_slice(), [_, CONNECTOR, pid, "00000001", ..] if *pid == port_id)
    }))
}

fn sleeps(pid: i32) -> Result<bool, Failure> {
    Ok(Stat::of(pid)?.state == 'S')
}
