// SPDX-License-Identifier: GPL-2.0
//! 32-bit programs on a 64-bit kernel (C63): requests and messages have the same layout for them.
//!
//! scripts/examples and scripts/selftests build the programs a second time, if the compiler can.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use crate::child::{self, own_pid};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect_eq};
use crate::support::example::{Example, NEEDS};
use crate::support::fault_injection::Setting;
use crate::support::proc_filter::about;
use crate::support::program::RunningProgram;
use crate::test;

pub const TESTS: &[Test] = &Declaration::new().limit(LIMIT).covers(&[Line::C63]).of([
    test!(a_32_bit_program_gets_fork_sid_exec_and_exit).covers(&[
        Line::C7,
        Line::C8,
        Line::C11,
        Line::C15,
        Line::C18,
    ]),
    test!(a_32_bit_program_gets_failures_alone).covers(&[Line::C16, Line::C18]),
    test!(the_example_follows_sessions_as_a_32_bit_program)
        .not_on_stock(NEEDS)
        .covers(&[Line::C19, Line::C50, Line::C52, Line::C55]),
    test!(the_example_recovers_from_a_loss_as_a_32_bit_program)
        .not_on_stock(NEEDS)
        .covers(&[Line::C5, Line::C6, Line::C54, Line::C55]),
]);

const LIMIT: Duration = Duration::from_secs(60);

/// The kernel's selftest, which sends requests of 4 and 8 bytes, and the documentation's example, whose
/// request has 24 bytes.
const SELFTEST: &str = "proc_filter-32";
const EXAMPLE: &str = "listener-c-32";

/// A 32-bit program that was built, if this kernel can run it.
fn program(name: &str) -> Result<PathBuf, Failure> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Failure::skip("32-bit programs are built for x86-64 only"));
    }
    let path = env::current_exe()?.with_file_name(name);
    if !path.is_file() {
        return Err(Failure::skip(format!(
            "there is no {}: run scripts/setup --clients, or install gcc-multilib",
            path.display()
        )));
    }
    let quiet = Stdio::null;
    let started = Command::new(&path)
        .stdin(quiet())
        .stdout(quiet())
        .stderr(quiet())
        .spawn();
    match started {
        Ok(mut started) => {
            started.kill()?;
            started.wait()?;
            Ok(path)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => Err(Failure::skip(
            "the kernel has no CONFIG_IA32_EMULATION: choose FLAVOR=distro",
        )),
        Err(error) => Err(Failure::new(format!("{}: {error}", path.display()))),
    }
}

/// Runs a process while the selftest listens. Returns its pid, and all lines about it.
fn lines_about(arguments: &[&str]) -> Result<(i32, Vec<String>), Failure> {
    let program = program(SELFTEST)?.to_string_lossy().into_owned();
    let mut listener = RunningProgram::start(&[&[&*program], arguments].concat())?;
    listener.wait_until_it_listens()?;
    let pid = run_false()?;
    listener.wait_for(&format!("# Exit process {pid} (tgid {pid})"))?;
    listener.wait_until_it_listens()?;
    let said = listener.stop(Signal::SIGINT)?;
    let lines = about(&said, pid).into_iter().map(str::to_owned).collect();
    Ok((pid, lines))
}

/// Runs a process that leads a session, executes a program, and ends with status 1. Returns its pid.
fn run_false() -> Result<i32, Failure> {
    let child = child::fork(|| {
        let result = setsid().and_then(|_| nix::unistd::execv(c"/bin/false", &[c"false"]));
        eprintln!("in the child: {result:?}");
        2
    })?;
    let pid = child.pid().as_raw();
    child.wait()?;
    Ok(pid)
}

fn a_32_bit_program_gets_fork_sid_exec_and_exit() -> TestResult {
    let (pid, lines) = lines_about(&[])?;
    let own = own_pid();
    expect_eq(
        "lines",
        lines,
        vec![
            format!("# Fork process {pid} (tgid {pid}), parent {own} (tgid {own})"),
            format!("# SID process {pid} (tgid {pid})"),
            format!("# Exec process {pid} (tgid {pid})"),
            format!("# Exit process {pid} (tgid {pid}) with code 256, signal 17"),
        ],
    )
}

fn a_32_bit_program_gets_failures_alone() -> TestResult {
    let (pid, lines) = lines_about(&["-f"])?;
    let exit = format!("# Exit process {pid} (tgid {pid}) with code 256, signal 17");
    expect_eq("lines", lines, vec![exit])
}

fn the_example_follows_sessions_as_a_32_bit_program() -> TestResult {
    program(EXAMPLE)?;
    Example::named(EXAMPLE)?.follows_sessions()
}

fn the_example_recovers_from_a_loss_as_a_32_bit_program() -> TestResult {
    program(EXAMPLE)?;
    let _little = Setting::little_room()?;
    Example::named(EXAMPLE)?.recovers_from_a_loss()
}
