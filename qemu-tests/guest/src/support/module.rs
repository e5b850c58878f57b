// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading the kernel module.

use std::env;
use std::ffi::CStr;
use std::fs::{self, File};

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use protocol::MODULE_VARIABLE;

use super::scenario::{expect_own_events, mark};
use crate::child::{self, Gate};
use crate::cpus::{cpus, pin};
use crate::debugfs;
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::Listener;

/// Skips a test of the module if the handler is not a module.
#[track_caller]
pub fn needed() -> TestResult {
    if debugfs::is_built_in() {
        return Err(Failure::skip(
            "the handler is built in: it cannot be loaded or unloaded",
        ));
    }
    Ok(())
}

/// The module's file.
pub fn path() -> Result<String, Failure> {
    needed()?;
    env::var(MODULE_VARIABLE)
        .map_err(|_| Failure::new(format!("{MODULE_VARIABLE} does not name the module")))
}

pub fn load() -> TestResult {
    Ok(try_load(c"")??)
}

/// Asks the kernel to load it with these parameters. Returns what the kernel answers, or fails if the file
/// cannot be opened.
pub fn try_load(parameters: &CStr) -> Result<nix::Result<()>, Failure> {
    let file = File::open(path()?)?;
    Ok(finit_module(file, parameters, ModuleInitFlags::empty()))
}

/// The module unloaded, or loaded with other parameters, until this is dropped.
///
/// There must be no listener when this is made, and when it is dropped.
pub struct ModuleGuard(());

impl ModuleGuard {
    /// Unloads it.
    pub fn unloaded() -> Result<Self, Failure> {
        needed()?;
        unload()?;
        Ok(Self(()))
    }

    /// Loads it with these parameters.
    pub fn with(parameters: &CStr) -> Result<Self, Failure> {
        let changed = Self::unloaded()?;
        try_load(parameters)??;
        Ok(changed)
    }
}

impl Drop for ModuleGuard {
    fn drop(&mut self) {
        // ENOENT: it is not loaded. If it can't be unloaded, it can't be loaded either.
        let _ = unload();
        if let Err(failure) = load() {
            eprintln!("the module is not loaded as before: {failure}");
        }
    }
}

pub fn unload() -> nix::Result<()> {
    delete_module(c"proc_events", DeleteModuleFlags::O_NONBLOCK)
}

/// Expects that the module cannot be unloaded now.
#[track_caller]
pub fn expect_unload_refused() -> TestResult {
    let refused = unload();
    expect(
        matches!(refused, Err(Errno::EBUSY | Errno::EAGAIN)),
        format!("EBUSY or EAGAIN, got {refused:?}"),
    )
}

/// Expects this many references on the module: one for each listener, and one for each state that is
/// being sent.
#[track_caller]
pub fn expect_references(expected: usize) -> TestResult {
    if !debugfs::is_there() || debugfs::is_built_in() {
        return Ok(());
    }
    let references = fs::read_to_string("/sys/module/proc_events/refcnt")?;
    let references: usize = references.trim_end().parse()?;
    expect_eq("references on the module", references, expected)
}

/// Unloads the module, loads it again, and expects events.
pub fn reload() -> TestResult {
    needed()?;
    unload()?;
    load()?;
    expect_own_events(&mut Listener::listen_all()?)
}

/// Unloads and loads the module this many times while other processes fork, rename and exit on all
/// CPUs.
pub fn reload_under_load(rounds: usize) -> TestResult {
    needed()?;
    let mut busy = Vec::new();
    for cpu in cpus()? {
        let started = Gate::new()?;
        busy.push(child::fork(|| raise_events(cpu, &started))?);
        started.pass()?;
    }
    for _ in 0..rounds {
        let listener = Listener::listen_all()?;
        expect_unload_refused()?;
        drop(listener);
        reload()?;
    }
    for child in busy {
        let pid = child.pid();
        kill(pid, Signal::SIGKILL)?;
        let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
        expect_eq("the end of a busy process", child.wait()?, killed)?;
    }
    Ok(())
}

/// Forks, renames and exits on a CPU until it is killed.
fn raise_events(cpu: usize, started: &Gate) -> i32 {
    if pin(cpu).is_err() || started.open(0).is_err() {
        return 1;
    }
    loop {
        let child = child::fork(|| i32::from(mark("busy").is_err()));
        if !child.is_ok_and(|child| child.wait().is_ok()) {
            return 1;
        }
    }
}
