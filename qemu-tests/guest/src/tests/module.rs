// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading the module (C32).

use std::env;
use std::fs::File;

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use protocol::MODULE_VARIABLE;

use super::scenario::{in_self, mark, own_task};
use crate::child::{self, Gate};
use crate::harness::{Failure, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::test;
use crate::wire::mask;

pub const TESTS: &[Test] = &[
    test!(loading_it_twice_is_refused).not_on_stock(NO_MODULE),
    test!(events_come_again_after_loading_it_again).not_on_stock(NO_MODULE),
    test!(unloading_is_refused_while_somebody_listens).not_on_stock(NO_MODULE),
    test!(unloading_is_possible_after_ignore).not_on_stock(NO_MODULE),
    test!(unloading_is_possible_after_a_killed_listener).not_on_stock(NO_MODULE),
    test!(nobody_listens_by_a_socket_alone).not_on_stock(NO_MODULE),
];

const NO_MODULE: &str = "cn_proc is built in, there is no module";

fn load() -> Result<(), Failure> {
    let path = env::var(MODULE_VARIABLE)
        .map_err(|_| Failure::new(format!("{MODULE_VARIABLE} does not name the module")))?;
    Ok(finit_module(
        File::open(path)?,
        c"",
        ModuleInitFlags::empty(),
    )?)
}

fn unload() -> nix::Result<()> {
    delete_module(c"proc_events", DeleteModuleFlags::O_NONBLOCK)
}

/// Unloads the module, loads it again, and expects events.
fn reload() -> TestResult {
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
    let (listening, never) = (Gate::new()?, Gate::new()?);
    let child = child::fork(|| {
        let Ok(_listener) = Listener::listen_all() else {
            return 1;
        };
        let told = listening.open(0);
        i32::from(told.is_err() || never.pass().is_err())
    })?;
    listening.pass()?;
    nix::sys::signal::kill(child.pid(), nix::sys::signal::Signal::SIGKILL)?;
    child.wait()?;
    reload()
}

fn nobody_listens_by_a_socket_alone() -> TestResult {
    let _socket = Listener::open()?;
    reload()
}
