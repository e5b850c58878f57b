// SPDX-License-Identifier: GPL-2.0
//! A user whose namespaces can be counted.
//!
//! The limit on a user's namespaces shows whether a namespace is gone. With a limit of one, a namespace
//! can be made only when no other is left, however hidden it is.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::WaitStatus;

use super::container::{Container, NET, PID, USER, require};
use super::polling::poll_with_pauses;
use crate::child::{self, Child};
use crate::harness::{Failure, TestResult, expect};

/// How long the kernel may take to free namespaces: it does so after grace periods, in a work
/// queue.
pub const FREE_LIMIT: Duration = Duration::from_secs(15);

/// How long to pause before the next check whether it did. A check makes namespaces itself, which have
/// to be freed, too.
const PAUSE: Duration = Duration::from_millis(10);

/// Exit status of a process that was refused a namespace.
const REFUSED_STATUS: i32 = 2;

/// How many namespaces may be made while they are not counted.
const MANY: u32 = 1000;

/// The kinds of namespaces that are counted.
const COUNTED: CloneFlags = USER.union(PID).union(NET);

/// A user who makes namespaces, and whose namespaces can be counted.
pub struct NamespaceUser {
    users: Container,
}

impl NamespaceUser {
    /// A user without namespaces.
    pub fn new() -> Result<Self, Failure> {
        require(COUNTED)?;
        Ok(Self {
            users: Container::idle(USER)?,
        })
    }

    /// Runs a function in a new process of that user.
    pub fn spawn(&self, function: impl FnOnce() -> TestResult) -> Result<Child, Failure> {
        self.users.spawn(function)
    }

    fn allow(&self, number: u32) -> TestResult {
        self.users.run(|| {
            for kind in ["user", "pid", "net"] {
                let file = format!("/proc/sys/user/max_{kind}_namespaces");
                fs::write(file, number.to_string())?;
            }
            Ok(())
        })
    }

    /// Whether that user has no namespace now.
    fn is_empty(&self) -> Result<bool, Failure> {
        let attempt = child::fork(|| {
            let made = self.users.enter(USER).map(|()| unshare(COUNTED));
            match made {
                Ok(Ok(())) => 0,
                Ok(Err(Errno::ENOSPC)) => REFUSED_STATUS,
                _ => 1,
            }
        })?;
        match attempt.wait()? {
            WaitStatus::Exited(_, 0) => Ok(true),
            WaitStatus::Exited(_, REFUSED_STATUS) => Ok(false),
            ended => Err(Failure::new(format!("cannot make namespaces: {ended:?}"))),
        }
    }

    /// Expects the user to have namespaces.
    pub fn expect_namespaces(&self) -> TestResult {
        self.allow(1)?;
        let is_empty = self.is_empty()?;
        self.allow(MANY)?;
        expect(!is_empty, "namespaces that are still in use to be counted")
    }

    /// Waits until all namespaces of the user are gone.
    pub fn expect_nothing_left(&self) -> TestResult {
        self.allow(1)?;
        poll_with_pauses(PAUSE, FREE_LIMIT, || {
            let is_empty = self.is_empty()?;
            Ok((!is_empty).then(|| "namespaces to be freed".to_owned()))
        })?;
        self.allow(MANY)
    }
}
