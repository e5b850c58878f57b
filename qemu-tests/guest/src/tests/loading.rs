// SPDX-License-Identifier: GPL-2.0
//! Listening while there is no handler (C33): the kernel requests the module, and answers in any
//! case.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::child::{self, has_ended, pidfd};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{ALL, Container, open};
use crate::support::modprobe::Modprobe;
use crate::support::module::{self, ModuleGuard};
use crate::support::scenario::{expect_count, in_self, mark, request};
use crate::support::stock::NO_MODULE;
use crate::test;
use crate::timeouts;
use crate::wire::{Event, IGNORE, LISTEN, NO_CPU, Received, mask};

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NO_MODULE)
    .covers(&[Line::C33])
    .of([
        test!(listen_loads_the_module),
        test!(listen_without_a_module_is_answered_enodev),
        test!(other_requests_without_a_module_are_answered_enodev_and_load_nothing),
        test!(a_socket_that_was_refused_may_listen_later),
        test!(listen_in_a_container_loads_the_module).covers(&[Line::C23]),
        test!(listen_in_a_container_without_a_module_is_answered_enodev).covers(&[Line::C23]),
        test!(a_process_that_waits_for_the_module_can_be_killed),
    ]);

const ENODEV: u32 = Errno::ENODEV as u32;

/// Sends a request and expects one answer, with this errno, and nothing else.
#[track_caller]
fn expect_answer(listener: &mut Listener, words: &[u32], err: u32) -> Result<Received, Failure> {
    let answer = request(listener, words)?;
    expect_eq("answer", answer.event, Event::Ack { err })?;
    let more = listener.take_queued()?;
    expect_eq("further messages", more.len(), 0)?;
    Ok(answer)
}

fn listen_loads_the_module() -> TestResult {
    let _changed = ModuleGuard::unloaded()?;
    let modprobe = Modprobe::set(&format!("exec insmod {}", module::path()?))?;
    let mut listener = Listener::open()?;
    expect_answer(&mut listener, &[LISTEN, mask::COMM], 0)?;
    let expected = vec!["-q -- proc_events".to_owned()];
    expect_eq("calls of modprobe", modprobe.calls()?, expected.clone())?;
    in_self(&mut listener, || Ok(mark("received")?))?;
    expect_count(1)?;
    expect_answer(&mut Listener::open()?, &[LISTEN], 0)?;
    expect_eq("calls of modprobe", modprobe.calls()?, expected)?;
    drop(listener);
    expect_count(0)
}

fn listen_without_a_module_is_answered_enodev() -> TestResult {
    let _changed = ModuleGuard::unloaded()?;
    let modprobe = Modprobe::set("exit 1")?;
    let mut listener = Listener::open()?;
    for words in [&[LISTEN][..], &[LISTEN, mask::SID]] {
        let answer = expect_answer(&mut listener, words, ENODEV)?;
        expect_eq("CPU", answer.message.body.cpu, NO_CPU)?;
        expect_eq("feature word", answer.features(), 0)?;
    }
    expect_eq("calls of modprobe", modprobe.calls()?.len(), 2)?;
    mark("not received")?;
    expect_eq("messages", listener.take_queued()?.len(), 0)
}

fn other_requests_without_a_module_are_answered_enodev_and_load_nothing() -> TestResult {
    let _changed = ModuleGuard::unloaded()?;
    let modprobe = Modprobe::set("exit 1")?;
    let mut listener = Listener::open()?;
    for words in [&[IGNORE][..], &[IGNORE, mask::SID], &[99]] {
        expect_answer(&mut listener, words, ENODEV)?;
    }
    expect(modprobe.calls()?.is_empty(), "no call of modprobe")
}

fn a_socket_that_was_refused_may_listen_later() -> TestResult {
    let changed = ModuleGuard::unloaded()?;
    let modprobe = Modprobe::set("exit 1")?;
    let mut listener = Listener::open()?;
    expect_answer(&mut listener, &[LISTEN], ENODEV)?;
    drop(modprobe);
    // This loads the module.
    drop(changed);
    expect_answer(&mut listener, &[LISTEN, mask::COMM], 0)?;
    in_self(&mut listener, || Ok(mark("received")?))?;
    drop(listener);
    expect_count(0)
}

/// The container needs no rights outside, just as socket(2) makes the kernel load a protocol for
/// any user.
fn listen_in_a_container_loads_the_module() -> TestResult {
    let _changed = ModuleGuard::unloaded()?;
    let modprobe = Modprobe::set(&format!("exec insmod {}", module::path()?))?;
    Container::idle(ALL)?.run(|| {
        let mut listener = open()?;
        expect_answer(&mut listener, &[LISTEN, mask::COMM], 0)?;
        in_self(&mut listener, || Ok(mark("received")?)).map(drop)
    })?;
    expect_eq("calls of modprobe", modprobe.calls()?.len(), 1)?;
    expect_count(0)
}

fn listen_in_a_container_without_a_module_is_answered_enodev() -> TestResult {
    let _changed = ModuleGuard::unloaded()?;
    let modprobe = Modprobe::set("exit 1")?;
    Container::idle(ALL)?.run(|| expect_answer(&mut open()?, &[LISTEN], ENODEV).map(drop))?;
    expect_eq("calls of modprobe", modprobe.calls()?.len(), 1)
}

fn a_process_that_waits_for_the_module_can_be_killed() -> TestResult {
    let _changed = ModuleGuard::unloaded()?;
    let modprobe = Modprobe::set("echo $$ >${0%/*}/started; exec sleep 1000")?;
    let started = modprobe.directory.join("started");
    mkfifo(&started, Mode::S_IRWXU)?;
    let waiting = child::fork(|| i32::from(Listener::listen_all().is_err()))?;
    // Blocks until modprobe runs.
    let loading = fs::read_to_string(&started)?;
    let end = pidfd(waiting.pid())?;
    kill(waiting.pid(), Signal::SIGKILL)?;
    let ended = has_ended(&end, timeouts::scaled(Duration::from_secs(2)))?;
    kill(Pid::from_raw(loading.trim_end().parse()?), Signal::SIGKILL)?;
    waiting.wait()?;
    expect(ended, "the killed process to end before modprobe does")
}
