// SPDX-License-Identifier: GPL-2.0
//! The operations that raise events. Each returns the number of instructions that it took.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Gid, Pid, Uid, dup2_stdout, execv, getppid, pipe, setresgid, setresuid};
use protocol::bench::Operation;

use super::clock::instructions;
use super::short::{self, Short};
use super::tiny;
use crate::child;

/// The path of the program that is executed, which is not on the host's file system.
const PROGRAM: &str = "/run/proc-events-tiny";

/// Any id that is not root's.
const OTHER_ID: u32 = 1000;

/// The resources of the operations.
pub struct Operations {
    program: CString,
    reader: File,
    writer: OwnedFd,
    short: Short,
    /// A child to be traced, which does nothing.
    tracee: Pid,
    /// The saved ids, which alternate between two values.
    saved_uid: u32,
    saved_gid: u32,
}

impl Operations {
    /// Prepares the operations.
    pub fn new() -> Result<Self> {
        tiny::install(Path::new(PROGRAM))?;
        let (reader, writer) = pipe()?;
        let tracee = short::neighbor()?;
        Ok(Self {
            program: CString::new(PROGRAM)?,
            reader: File::from(reader),
            short: Short::new(Path::new(PROGRAM), writer.try_clone()?)?,
            writer,
            tracee,
            saved_uid: 0,
            saved_gid: 0,
        })
    }

    /// Does an operation once. Returns the instructions that it took.
    pub fn run(&mut self, operation: Operation) -> Result<u64> {
        if matches!(
            operation,
            Operation::Exec | Operation::ShortExec | Operation::Storm
        ) {
            self.restore_ids()?;
        }
        match operation {
            Operation::Fork => fork(),
            Operation::Exit => exit(|| 0),
            Operation::Coredump => exit(|| {
                // Does not return.
                i32::from(raise(Signal::SIGQUIT).is_err())
            }),
            Operation::ForkExit => fork_and_exit(),
            Operation::Exec => self.exec(),
            Operation::Uid => self.change_uid(),
            Operation::Gid => self.change_gid(),
            Operation::Sid => self.short.setsid(),
            Operation::Ptrace => self.seize(),
            Operation::Comm => rename(),
            Operation::Storm => self.storm(),
            Operation::ShortFork => self.short.fork(),
            Operation::ShortExit => self.short.exit(),
            Operation::ShortCoredump => self.short.coredump(),
            Operation::ThreadFork => self.short.thread_fork(),
            Operation::ThreadExit => self.short.thread_exit(),
            Operation::ShortExec => self.short.exec(|| read_count(&mut self.reader)),
            Operation::SystemCall => {
                let started = instructions();
                getppid();
                Ok(instructions() - started)
            }
            Operation::Listen | Operation::Ignore | Operation::Close | Operation::Read => {
                bail!("{} is measured elsewhere", operation.name())
            }
        }
    }

    /// Between its two counts, the child writes the first one, which costs the same with any
    /// listeners, and executes the program.
    fn exec(&mut self) -> Result<u64> {
        let child = child::fork(|| {
            let started = || -> Result<()> {
                dup2_stdout(&self.writer)?;
                let started = instructions();
                nix::unistd::write(&self.writer, &started.to_ne_bytes())?;
                execv(&self.program, &[&self.program])?;
                Ok(())
            };
            i32::from(started().is_err())
        })?;
        let started = read_count(&mut self.reader)?;
        let executed = read_count(&mut self.reader)?;
        child.wait()?;
        Ok(executed - started)
    }

    fn storm(&mut self) -> Result<u64> {
        let started = instructions();
        let child = child::fork(|| {
            let failed = dup2_stdout(&self.writer).is_err()
                || prctl::set_name(c"storm").is_err()
                || execv(&self.program, &[&self.program]).is_err();
            i32::from(failed)
        })?;
        child.wait()?;
        let taken = instructions() - started;
        read_count(&mut self.reader)?;
        Ok(taken)
    }

    /// Changes only the saved id, back and forth. Each change raises an event, and no privileges
    /// change.
    fn change_uid(&mut self) -> Result<u64> {
        let root = Uid::from_raw(0);
        self.saved_uid = other_id(self.saved_uid);
        let saved = Uid::from_raw(self.saved_uid);
        let started = instructions();
        setresuid(root, root, saved)?;
        Ok(instructions() - started)
    }

    fn change_gid(&mut self) -> Result<u64> {
        let root = Gid::from_raw(0);
        self.saved_gid = other_id(self.saved_gid);
        let saved = Gid::from_raw(self.saved_gid);
        let started = instructions();
        setresgid(root, root, saved)?;
        Ok(instructions() - started)
    }

    /// An exec sets the saved ids to the effective ones. If they were different, that would raise
    /// another event.
    fn restore_ids(&mut self) -> Result<()> {
        if self.saved_uid != 0 {
            self.change_uid()?;
        }
        if self.saved_gid != 0 {
            self.change_gid()?;
        }
        Ok(())
    }

    fn seize(&mut self) -> Result<u64> {
        let started = instructions();
        ptrace::seize(self.tracee, ptrace::Options::empty())?;
        let taken = instructions() - started;
        ptrace::interrupt(self.tracee)?;
        let stopped = waitpid(self.tracee, None)?;
        if !matches!(stopped, WaitStatus::PtraceEvent(..)) {
            bail!("the traced child did not stop: {stopped:?}");
        }
        ptrace::detach(self.tracee, None)?;
        Ok(taken)
    }
}

impl Drop for Operations {
    fn drop(&mut self) {
        // An error does not matter: then the tracee is gone already.
        let _ = kill(self.tracee, Signal::SIGKILL);
        let _ = waitpid(self.tracee, None);
    }
}

/// Reads the count of a program that was executed.
fn read_count(reader: &mut File) -> Result<u64> {
    let mut bytes = [0; 8];
    reader
        .read_exact(&mut bytes)
        .context("cannot read the count of a program")?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Root's id if this is [`OTHER_ID`], and [`OTHER_ID`] if it is root's.
fn other_id(id: u32) -> u32 {
    OTHER_ID - id
}

/// Raises COMM, without preparation.
pub fn rename() -> Result<u64> {
    let started = instructions();
    prctl::set_name(c"bench")?;
    Ok(instructions() - started)
}

fn fork() -> Result<u64> {
    let started = instructions();
    let child = child::fork(|| 0)?;
    let taken = instructions() - started;
    child.wait()?;
    Ok(taken)
}

/// The child first runs when its parent waits, unless the timer lets it run earlier. In that case
/// another child is made.
fn exit(function: impl Fn() -> i32) -> Result<u64> {
    loop {
        let child = child::fork(&function)?;
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let ended = waitid(Id::Pid(child.pid()), flags)?;
        let started = instructions();
        child.wait()?;
        if ended == WaitStatus::StillAlive {
            return Ok(instructions() - started);
        }
    }
}

fn fork_and_exit() -> Result<u64> {
    let started = instructions();
    child::fork(|| 0)?.wait()?;
    Ok(instructions() - started)
}
