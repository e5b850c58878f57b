// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading the module (C32).

use std::io::Read;
use std::time::Duration;

use nix::errno::Errno;

use crate::debugfs;
use crate::harness::{Declaration, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::module::{
    ModuleGuard, expect_unload_refused, needed, reload, reload_under_load, try_load,
};
use crate::support::scenario::{ListeningChild, expect_own_events};
use crate::support::stock::NO_MODULE;
use crate::test;
use crate::wire::mask;

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_MODULE)
    .covers(&[Line::C32])
    .of([
        test!(loading_it_twice_is_refused),
        test!(events_come_again_after_loading_it_again),
        test!(unloading_is_refused_while_there_is_a_listener),
        test!(unloading_is_possible_after_ignore),
        test!(unloading_is_possible_after_a_killed_listener),
        test!(a_socket_alone_is_no_listener).covers(&[Line::C24]),
        test!(unloading_is_possible_while_the_listing_is_read).covers(&[Line::C30]),
        test!(it_loads_and_unloads_under_load).limit(Duration::from_secs(30)),
    ]);

fn loading_it_twice_is_refused() -> TestResult {
    needed()?;
    expect_eq("loading it again", try_load(c"")?, Err(Errno::EEXIST))?;
    expect_own_events(&mut Listener::listen_all()?)
}

fn events_come_again_after_loading_it_again() -> TestResult {
    reload()?;
    reload()
}

fn unloading_is_refused_while_there_is_a_listener() -> TestResult {
    needed()?;
    let mut listener = Listener::listen(mask::COMM)?;
    expect_unload_refused()?;
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

fn a_socket_alone_is_no_listener() -> TestResult {
    let _socket = Listener::open()?;
    reload()
}

fn unloading_is_possible_while_the_listing_is_read() -> TestResult {
    let mut listing = debugfs::open()?;
    let mut head = [0; 1];
    listing.read_exact(&mut head)?;
    let unloaded = ModuleGuard::unloaded()?;
    let refused = listing
        .read(&mut head)
        .map_err(|error| error.raw_os_error());
    expect_eq("reading on", refused, Err(Some(Errno::EIO as i32)))?;
    // The file's operations are gone with the module: closing must not need them.
    drop(listing);
    drop(unloaded);
    expect_own_events(&mut Listener::listen_all()?)
}

fn it_loads_and_unloads_under_load() -> TestResult {
    reload_under_load(30)
}
