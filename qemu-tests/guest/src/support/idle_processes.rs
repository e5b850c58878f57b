// SPDX-License-Identifier: GPL-2.0
//! Processes that do nothing until they are killed.

use super::process::{pause_for_ever, status};
use crate::child::{self, Gate};
use crate::harness::{Failure, TestResult};

/// So many processes that a state with them takes several datagrams.
pub const MANY_IDLE: usize = 150;

/// Starts a child that does something and then waits to be killed. Returns its pid.
pub fn start_idle(function: impl FnOnce() -> TestResult) -> Result<i32, Failure> {
    let ready = Gate::new()?;
    let process = child::fork(|| {
        status(|| {
            function()?;
            ready.open(0)?;
            pause_for_ever()
        })
    })?;
    ready.pass()?;
    Ok(process.into_pid().as_raw())
}

/// Starts so many children that do nothing.
pub fn start_many_idle(count: usize) -> TestResult {
    for _ in 0..count {
        child::fork(|| pause_for_ever())?.into_pid();
    }
    Ok(())
}
