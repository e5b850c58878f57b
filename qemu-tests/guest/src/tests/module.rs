// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading the module (C32).

use std::env;
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use protocol::MODULE_VARIABLE;

use crate::child::{self, Gate};
use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::listing;
use crate::stress::{cpus, pin};
use crate::support::scenario::{ListeningChild, in_self, mark, own_task};
use crate::test;
use crate::wire::mask;

pub const TESTS: &[Test] = &[
    test!(loading_it_twice_is_refused)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C32]),
    test!(events_come_again_after_loading_it_again)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C32]),
    test!(unloading_is_refused_while_somebody_listens)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C32]),
    test!(unloading_is_possible_after_ignore)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C32]),
    test!(unloading_is_possible_after_a_killed_listener)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C32]),
    test!(nobody_listens_by_a_socket_alone)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C24, Line::C32]),
    test!(unloading_is_possible_while_somebody_reads_the_listing)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C30, Line::C32]),
    test!(it_loads_and_unloads_under_load)
        .not_on_stock(NO_MODULE)
        .limit(Duration::from_secs(30))
        .covers(&[Line::C32]),
];

const NO_MODULE: &str = "cn_proc is built in, there is no module";

/// Skips a test of the module if the handler is no module.
#[track_caller]
pub fn needed() -> TestResult {
    if listing::is_built_in() {
        return Err(Failure::skip(
            "the handler is built in: nobody loads or unloads it",
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

fn load() -> Result<(), Failure> {
    load_with(c"")
}

fn load_with(parameters: &CStr) -> Result<(), Failure> {
    let file = File::open(path()?)?;
    Ok(finit_module(file, parameters, ModuleInitFlags::empty())?)
}

/// The module unloaded, or loaded with other parameters, until this is dropped.
///
/// Nobody may listen when it starts, and when it ends.
pub struct Changed(());

impl Changed {
    /// Unloads it.
    pub fn unloaded() -> Result<Self, Failure> {
        needed()?;
        unload()?;
        Ok(Self(()))
    }

    /// Loads it with these parameters.
    pub fn with(parameters: &CStr) -> Result<Self, Failure> {
        let changed = Self::unloaded()?;
        load_with(parameters)?;
        Ok(changed)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // ENOENT: it is not loaded. If it can't be unloaded, it can't be loaded either.
        let _ = unload();
        if let Err(failure) = load() {
            eprintln!("the module is not loaded as before: {failure}");
        }
    }
}

fn unload() -> nix::Result<()> {
    delete_module(c"proc_events", DeleteModuleFlags::O_NONBLOCK)
}

/// Unloads the module, loads it again, and expects events.
fn reload() -> TestResult {
    needed()?;
    unload()?;
    load()?;
    expect_own_events(&mut Listener::listen_all()?)
}

fn expect_own_events(listener: &mut Listener) -> TestResult {
    let messages = in_self(listener, || Ok(mark("heard")?))?;
    let own = messages
        .iter()
        .filter(|received| received.event.subject() == own_task());
    // The event and the mark after it.
    expect_eq("number of own events", own.count(), 2)
}

fn loading_it_twice_is_refused() -> TestResult {
    needed()?;
    let refused = load().err().map(|failure| failure.to_string());
    let refused = refused.unwrap_or_default();
    expect(
        refused.contains("EEXIST"),
        format!("EEXIST, got {refused:?}"),
    )?;
    expect_own_events(&mut Listener::listen_all()?)
}

fn events_come_again_after_loading_it_again() -> TestResult {
    reload()?;
    reload()
}

fn unloading_is_refused_while_somebody_listens() -> TestResult {
    needed()?;
    let mut listener = Listener::listen(mask::COMM)?;
    let refused = unload();
    expect(
        matches!(refused, Err(Errno::EBUSY | Errno::EAGAIN)),
        format!("EBUSY or EAGAIN, got {refused:?}"),
    )?;
    expect_own_events(&mut listener)?;
    drop(listener);
    reload()
}

fn unloading_is_possible_after_ignore() -> TestResult {
    let listener = Listener::listen_all()?;
    listener.ignore()?;
    reload()
}

fn unloading_is_possible_after_a_killed_listener() -> TestResult {
    ListeningChild::start()?.kill()?;
    reload()
}

fn nobody_listens_by_a_socket_alone() -> TestResult {
    let _socket = Listener::open()?;
    reload()
}

fn unloading_is_possible_while_somebody_reads_the_listing() -> TestResult {
    let mut listing = listing::open()?;
    let mut head = [0; 1];
    listing.read_exact(&mut head)?;
    let unloaded = Changed::unloaded()?;
    let refused = listing
        .read(&mut head)
        .map_err(|error| error.raw_os_error());
    expect_eq("reading on", refused, Err(Some(Errno::EIO as i32)))?;
    // The file's operations went with the module: closing must not need them.
    drop(listing);
    drop(unloaded);
    expect_own_events(&mut Listener::listen_all()?)
}

fn it_loads_and_unloads_under_load() -> TestResult {
    reload_under_load(30)
}

/// Loads and unloads it so many times while others fork, rename and exit on all CPUs.
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
        let refused = unload();
        expect(
            matches!(refused, Err(Errno::EBUSY | Errno::EAGAIN)),
            format!("EBUSY or EAGAIN, got {refused:?}"),
        )?;
        drop(listener);
        reload()?;
    }
    for child in busy {
        nix::sys::signal::kill(child.pid(), nix::sys::signal::Signal::SIGKILL)?;
        child.wait()?;
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
