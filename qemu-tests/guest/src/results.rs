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

/// Nowhere.
const NONE: RawFd = -1;

/// The descriptor that records of this process go to, and of those that it forks.
static SINK: AtomicI32 = AtomicI32::new(NONE);

/// Takes the descriptor that the agent opened, if the runner wants records. Programs that are
/// executed from here do not get it.
pub fn begin() -> Result<()> {
    let Ok(number) = env::var(RESULTS_VARIABLE) else {
        return Ok(());
    };
    let sink = number.parse().context(RESULTS_VARIABLE)?;
    // SAFETY: The agent opened it for this program, where nobody else has it.
    let descriptor = unsafe { BorrowedFd::borrow_raw(sink) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context(RESULTS_VARIABLE)?;
    // SAFETY: No other thread has been started yet.
    unsafe { env::remove_var(RESULTS_VARIABLE) };
    SINK.store(sink, Ordering::Relaxed);
    Ok(())
}

/// Lets a program that takes the place of this one have the records' descriptor.
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

/// Whether anybody reads the records.
pub fn are_wanted() -> bool {
    SINK.load(Ordering::Relaxed) != NONE
}

/// Lets the records of this process go to a pipe from now on, which stays open until its end.
pub fn go_to(pipe: OwnedFd) {
    SINK.store(ManuallyDrop::new(pipe).as_raw_fd(), Ordering::Relaxed);
}

/// Writes a record, if anybody reads them.
pub fn write(record: &Record) -> io::Result<()> {
    let sink = SINK.load(Ordering::Relaxed);
    if sink == NONE {
        return Ok(());
    }
    // SAFETY: The descriptor was opened for this, and is never closed.
    let sink = ManuallyDrop::new(unsafe { File::from_raw_fd(sink) });
    // At once, so that records of several processes are not mixed as long as they are short.
    (&*sink).write_all(&record.line())
}

/// Reports a figure by its name. It is for pages: what it has to be is checked elsewhere.
pub fn figure(name: &str, value: f64) {
    let name = name.to_owned();
    if let Err(error) = write(&Record::Figure(Figure { name, value })) {
        eprintln!("a figure is lost: {error}");
    }
}
