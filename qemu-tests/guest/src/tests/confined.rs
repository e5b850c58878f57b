// SPDX-License-Identifier: GPL-2.0
//! Listeners that a security module confines (C63). Policies decide about their sockets, and about the
//! capability that listening may need: the module and the series decide nothing in addition.

use nix::errno::Errno;
use nix::libc;

use super::others::in_path;
use super::parameters::listen;
use crate::child;
use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::support::apparmor::{self, Profiles};
use crate::support::module::ModuleGuard;
use crate::support::process::{status, succeed};
use crate::support::scenario::{expect_count, mark, own_task, take_through_mark};
use crate::support::selinux::{self, Policy};
use crate::support::stock::NO_MODULE;
use crate::test;
use crate::wire::{LISTEN, mask};

pub const TESTS: &[Test] = &[
    test!(a_process_that_apparmor_allows_to_listens).covers(&[Line::C63]),
    test!(a_process_that_apparmor_forbids_to_gets_eacces).covers(&[Line::C63]),
    test!(a_listener_that_apparmor_confines_later_gets_eacces).covers(&[Line::C27, Line::C63]),
    test!(apparmor_can_take_the_capability_to_listen)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C31, Line::C63]),
    test!(a_process_that_selinux_allows_to_listens).covers(&[Line::C63]),
    test!(a_process_that_selinux_forbids_to_gets_eacces).covers(&[Line::C63]),
    test!(a_listener_that_selinux_confines_later_gets_eacces).covers(&[Line::C27, Line::C63]),
];

/// AppArmor's profiles. What a profile does not mention is forbidden.
const PROFILES: &str = "
profile proc-events-hears {
    file,
    capability,
    signal,
    ptrace,
    unix,
    network,
}
profile proc-events-deaf {
    file,
    capability,
    signal,
    ptrace,
    unix,
    network unix,
}
profile proc-events-incapable {
    file,
    signal,
    ptrace,
    unix,
    network,
}
";

fn profiles() -> Result<Profiles, Failure> {
    Profiles::load(|| in_path("apparmor_parser"), PROFILES)
}

fn hears_by_apparmor() -> TestResult {
    Ok(apparmor::confine("proc-events-hears")?)
}

fn deaf_by_apparmor() -> TestResult {
    Ok(apparmor::confine("proc-events-deaf")?)
}

/// SELinux' policy. It knows the class of the connector's sockets, and the class without which a policy
/// is not accepted. Everything about other classes is allowed.
const POLICY: &str = "
class process
class netlink_connector_socket
sid kernel
sid security
sid unlabeled
class process { transition dyntransition }
class netlink_connector_socket { create read write bind setopt getattr }
type base_t;
type hears_t;
type deaf_t;
role base_r;
role base_r types { base_t hears_t deaf_t };
allow { base_t hears_t deaf_t } { base_t hears_t deaf_t }:process *;
allow { base_t hears_t } { base_t hears_t }:netlink_connector_socket *;
user user_u roles { base_r };
sid kernel user_u:base_r:base_t
sid security user_u:base_r:base_t
sid unlabeled user_u:base_r:base_t
";

fn policy() -> Result<Policy, Failure> {
    Policy::enforce(|| in_path("checkpolicy"), POLICY)
}

fn hears_by_selinux() -> TestResult {
    selinux::confine("hears_t")
}

fn deaf_by_selinux() -> TestResult {
    selinux::confine("deaf_t")
}

/// Runs a function in a process that may be confined by it.
fn in_process(function: impl FnOnce() -> TestResult) -> TestResult {
    succeed(child::fork(|| status(function))?)
}

/// Expects that a policy forbids this.
#[track_caller]
fn expect_forbidden<T>(what: &str, result: Result<T, ListenerError>) -> TestResult {
    let got = match result {
        Ok(_) => "success".to_owned(),
        Err(ListenerError::System(_, error)) if error.raw_os_error() == Some(libc::EACCES) => {
            return Ok(());
        }
        Err(error) => error.to_string(),
    };
    Err(Failure::new(format!("{what}: expected EACCES, got {got}")))
}

/// Expects that a process can begin to listen after it was confined, and that a listener that it had
/// before goes on.
fn expect_to_hear(confine: fn() -> TestResult) -> TestResult {
    in_process(|| {
        let mut before = Listener::listen(mask::COMM)?;
        confine()?;
        let mut after = Listener::listen(mask::COMM)?;
        for listener in [&mut before, &mut after] {
            mark("heard")?;
            take_through_mark(listener, own_task(), "heard")?;
            listener.ignore()?;
        }
        Ok(())
    })?;
    expect_count(0)
}

fn expect_no_socket(confine: fn() -> TestResult) -> TestResult {
    in_process(|| {
        confine()?;
        expect_forbidden("socket()", Listener::open_unbound())
    })?;
    expect_count(0)
}

/// Expects that a listener can do nothing any more but end, when it is confined.
fn expect_to_become_deaf(begin: fn() -> TestResult, confine: fn() -> TestResult) -> TestResult {
    in_process(|| {
        begin()?;
        let mut listener = Listener::listen(mask::COMM)?;
        mark("heard")?;
        take_through_mark(&mut listener, own_task(), "heard")?;
        confine()?;
        // The policy is asked when the process reads, and not when an event is queued.
        mark("unheard")?;
        expect_forbidden("recvfrom()", listener.receive_datagram())?;
        expect_forbidden("IGNORE", listener.ignore())?;
        expect_forbidden("LISTEN", listener.request(&[LISTEN]))?;
        // It listens until its socket is closed.
        expect_count(1)
    })?;
    expect_count(0)
}

fn a_process_that_apparmor_allows_to_listens() -> TestResult {
    let _profiles = profiles()?;
    expect_to_hear(hears_by_apparmor)
}

fn a_process_that_apparmor_forbids_to_gets_eacces() -> TestResult {
    let _profiles = profiles()?;
    expect_no_socket(deaf_by_apparmor)
}

fn a_listener_that_apparmor_confines_later_gets_eacces() -> TestResult {
    let _profiles = profiles()?;
    expect_to_become_deaf(|| Ok(()), deaf_by_apparmor)
}

fn apparmor_can_take_the_capability_to_listen() -> TestResult {
    let _profiles = profiles()?;
    let _changed = ModuleGuard::with(c"unprivileged=0")?;
    for (profile, expected) in [
        ("proc-events-hears", 0),
        ("proc-events-incapable", Errno::EPERM as u32),
    ] {
        in_process(|| {
            apparmor::confine(profile)?;
            let (_listener, answer) = listen()?;
            expect_eq(profile, answer, expected)
        })?;
    }
    expect_count(0)
}

fn a_process_that_selinux_allows_to_listens() -> TestResult {
    let _policy = policy()?;
    expect_to_hear(hears_by_selinux)
}

fn a_process_that_selinux_forbids_to_gets_eacces() -> TestResult {
    let _policy = policy()?;
    expect_no_socket(deaf_by_selinux)
}

fn a_listener_that_selinux_confines_later_gets_eacces() -> TestResult {
    let _policy = policy()?;
    // A policy that does not ask for it checks no socket of a process that it does not confine.
    expect_to_become_deaf(hears_by_selinux, deaf_by_selinux)
}
