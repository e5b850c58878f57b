// SPDX-License-Identifier: GPL-2.0
//! Listeners that a security module confines (C63). Policies decide about their sockets, and about the
//! capability that listening may need. The module and the series add no checks to that.

use nix::errno::Errno;
use nix::libc;

use crate::child;
use crate::debugfs;
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::support::apparmor::{self, Profiles};
use crate::support::module::ModuleGuard;
use crate::support::process::{status, succeed};
use crate::support::program::provided;
use crate::support::scenario::{expect_count, mark, own_task, take_through_mark, try_to_listen};
use crate::support::selinux::{self, Policy};
use crate::support::stock::NO_MODULE;
use crate::test;
use crate::wire::{LISTEN, mask};

pub const TESTS: &[Test] = &Declaration::new().covers(&[Line::C63]).of([
    test!(a_process_can_listen[apparmor](APPARMOR)),
    test!(a_forbidden_process_gets_eacces[apparmor](APPARMOR)),
    test!(a_listener_that_is_confined_later_gets_eacces[apparmor](
        APPARMOR
    ))
    .covers(&[Line::C27]),
    test!(apparmor_can_take_the_capability_to_listen)
        .not_on_stock(NO_MODULE)
        .covers(&[Line::C31]),
    test!(a_process_can_listen[selinux](SELINUX)),
    test!(a_forbidden_process_gets_eacces[selinux](SELINUX)),
    test!(a_listener_that_is_confined_later_gets_eacces[selinux](
        SELINUX
    ))
    .covers(&[Line::C27]),
]);

/// AppArmor's profiles. What a profile does not mention is forbidden.
const PROFILES: &str = "
profile proc-events-allowed {
    change_profile,
    file,
    capability,
    signal,
    ptrace,
    unix,
    network,
}
profile proc-events-forbidden {
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
    Profiles::load(|| provided("apparmor_parser"), PROFILES)
}

/// The policy for SELinux. It defines the class of the connector's sockets, and the class `process`,
/// without which the kernel accepts no policy. Everything about other classes is allowed.
const POLICY: &str = "
class process
class netlink_connector_socket
sid kernel
sid security
sid unlabeled
class process { transition dyntransition }
class netlink_connector_socket { create read write bind setopt getattr }
type base_t;
type allowed_t;
type forbidden_t;
role base_r;
role base_r types { base_t allowed_t forbidden_t };
allow { base_t allowed_t forbidden_t } { base_t allowed_t forbidden_t }:process *;
allow { base_t allowed_t } { base_t allowed_t }:netlink_connector_socket *;
user user_u roles { base_r };
sid kernel user_u:base_r:base_t
sid security user_u:base_r:base_t
sid unlabeled user_u:base_r:base_t
";

fn policy() -> Result<Policy, Failure> {
    Policy::enforce(|| provided("checkpolicy"), POLICY)
}

/// A security module, its policy, and how it confines a process.
struct Module {
    /// Runs a function while the policy is in force.
    enforce: fn(&dyn Fn() -> TestResult) -> TestResult,
    /// Confines this process, and allows it to listen.
    allow: fn() -> TestResult,
    /// Confines this process, and forbids it to listen.
    forbid: fn() -> TestResult,
}

impl Module {
    /// Runs a function in a process that the function may confine, while the policy is in force. Expects
    /// no listener to be left, except on the stock kernel, which counts those of earlier tests for ever.
    fn in_process(&self, function: impl Fn() -> TestResult) -> TestResult {
        (self.enforce)(&|| {
            in_process(&function)?;
            if debugfs::is_there() {
                expect_count(0)?;
            }
            Ok(())
        })
    }
}

const APPARMOR: Module = Module {
    enforce: |function| {
        let _profiles = profiles()?;
        function()
    },
    allow: || Ok(apparmor::confine("proc-events-allowed")?),
    forbid: || Ok(apparmor::confine("proc-events-forbidden")?),
};

const SELINUX: Module = Module {
    enforce: |function| {
        let _policy = policy()?;
        function()
    },
    allow: || selinux::confine("allowed_t"),
    forbid: || selinux::confine("forbidden_t"),
};

/// Runs a function in a process that the function may confine.
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

/// A process can begin to listen after it was confined, and a listener that it had before goes on.
fn a_process_can_listen(module: Module) -> TestResult {
    module.in_process(|| {
        let mut before = Listener::listen(mask::COMM)?;
        (module.allow)()?;
        let mut after = Listener::listen(mask::COMM)?;
        for listener in [&mut before, &mut after] {
            mark("received")?;
            take_through_mark(listener, own_task(), "received")?;
            listener.ignore()?;
        }
        Ok(())
    })
}

fn a_forbidden_process_gets_eacces(module: Module) -> TestResult {
    module.in_process(|| {
        (module.forbid)()?;
        expect_forbidden("socket()", Listener::open_unbound())
    })
}

/// Once a listener is confined, it can do nothing but end.
fn a_listener_that_is_confined_later_gets_eacces(module: Module) -> TestResult {
    module.in_process(|| {
        // SELinux checks no socket of a process that it did not confine.
        (module.allow)()?;
        let mut listener = Listener::listen(mask::COMM)?;
        mark("received")?;
        take_through_mark(&mut listener, own_task(), "received")?;
        (module.forbid)()?;
        // The policy is checked when the process reads, and not when an event is queued.
        mark("not received")?;
        expect_forbidden("recvfrom()", listener.receive_datagram())?;
        expect_forbidden("IGNORE", listener.ignore())?;
        expect_forbidden("LISTEN", listener.request(&[LISTEN]))?;
        // It listens until its socket is closed.
        expect_count(1)
    })
}

fn apparmor_can_take_the_capability_to_listen() -> TestResult {
    let _profiles = profiles()?;
    let _changed = ModuleGuard::with(c"unprivileged=0")?;
    for (profile, expected) in [
        ("proc-events-allowed", 0),
        ("proc-events-incapable", Errno::EPERM as u32),
    ] {
        in_process(|| {
            apparmor::confine(profile)?;
            let (_listener, answer) = try_to_listen()?;
            expect_eq(profile, answer, expected)
        })?;
    }
    expect_count(0)
}
