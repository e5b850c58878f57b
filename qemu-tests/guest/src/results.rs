// SPDX-License-Identifier: GPL-2.0
//! Where records go: from a test to the framework, and from the program to the runner.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use protocol::RESULTS_VARIABLE;
use protocol::results::{Figure, Record};

/// There is no descriptor, and records are dropped.
const NONE: RawFd = -1;

/// The descriptor to which the records of this process go, and those of its forked children.
static SINK: AtomicI32 = AtomicI32::new(NONE);

/// Takes the descriptor that the agent opened, if the runner wants records. Programs that this
/// process executes do not inherit it.
pub fn begin() -> Result<()> {
    let Ok(number) = env::var(RESULTS_VARIABLE) else {
        return Ok(());
    };
    let sink = number.parse().context(RESULTS_VARIABLE)?;
    // SAFETY: The agent opened it for this program, and it has no other owner here.
    let descriptor = unsafe { BorrowedFd::borrow_raw(sink) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context(RESULTS_VARIABLE)?;
    // SAFETY: No other thread has been started yet.
    unsafe { env::remove_var(RESULTS_VARIABLE) };
    SINK.store(sink, Ordering::Relaxed);
    Ok(())
}

/// Passes the records' descriptor to a program that replaces this one.
pub fn hand_over(command: &mut Command) -> Result<()> {
    let sink = SINK.load(Ordering::Relaxed);
    if sink == NONE {
        return Ok(());
    }
    // SAFETY: The descriptor was opened for this, and is never closed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(sink) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).context(RESULTS_VARIABLE)?;
    command.env(RESULTS_VARIABLE, sink.to_string());
    Ok(())
}

/// Whether the records have a reader.
pub fn are_wanted() -> bool {
    SINK.load(Ordering::Relaxed) != NONE
}

/// Sends the records of this process to a pipe from now on. The pipe stays open until the process
/// ends.
pub fn go_to(pipe: OwnedFd) {
    SINK.store(ManuallyDrop::new(pipe).as_raw_fd(), Ordering::Relaxed);
}

/// Writes a record, if the records have a reader.
pub fn write(record: &Record) -> io::Result<()> {
    let sink = SINK.load(Ordering::Relaxed);
    if sink == NONE {
        return Ok(());
    }
    // SAFETY: The descriptor was opened for this, and is never closed.
    let sink = ManuallyDrop::new(unsafe { File::from_raw_fd(sink) });
    // A single write keeps records of several processes apart, as long as they are short.
    (&*sink).write_all(&record.line())
}

/// Reports a figure by its name. It is for pages, and its value is checked elsewhere.
pub fn figure(name: &str, value: f64) {
    let name = name.to_owned();
    if let Err(error) = write(&Record::Figure(Figure { name, value })) {
        eprintln!("a figure is lost: {error}");
    }
}
