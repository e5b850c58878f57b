// SPDX-License-Identifier: GPL-2.0
//! A small test framework of the kselftest_harness kind: each test in a child of its own, with its
//! own time limit, reported as KTAP.

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::Location;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, getpid, pipe, setpgid};
pub use protocol::contract::Line;
use protocol::{StockExpectation, TestDescription};

use crate::child::{self, Child};
use crate::proc_stat::Stat;

/// Time limit of a test that does not declare another one, on a fast machine.
const TEST_LIMIT: Duration = Duration::from_secs(10);

/// How long the processes that a test leaves behind have to vanish after SIGKILL, on a fast machine.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);

/// How a test function ends.
pub type TestResult = std::result::Result<(), Failure>;

/// Why a test did not pass, and where in its source.
#[derive(Debug)]
pub struct Failure {
    kind: FailureKind,
    message: String,
    location: &'static Location<'static>,
}

#[derive(Debug, PartialEq)]
enum FailureKind {
    Failed,
    Skipped,
}

impl Failure {
    /// A failure found at the caller's place.
    #[track_caller]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Failed,
            message: message.into(),
            location: Location::caller(),
        }
    }

    /// The test cannot run here, for this reason.
    #[track_caller]
    pub fn skip(reason: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Skipped,
            ..Self::new(reason)
        }
    }

    /// The same failure, with what was done when it was found.
    pub fn about(mut self, what: impl Display) -> Self {
        self.message = format!("{}\n  {what}", self.message);
        self
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.location.file().rsplit('/').next().unwrap_or_default();
        write!(
            formatter,
            "{file}:{}: {}",
            self.location.line(),
            self.message
        )
    }
}

/// Every error ends a test as a failure at the place of the `?`.
impl<E: std::error::Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}

/// Fails unless the two are equal; says what was expected and what was got.
#[track_caller]
pub fn expect_eq<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> TestResult {
    if got == expected {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "{what}: expected {expected:?}, got {got:?}"
        )))
    }
}

/// Fails unless the condition holds.
#[track_caller]
pub fn expect(condition: bool, what: impl Display) -> TestResult {
    if condition {
        Ok(())
    } else {
        Err(Failure::new(format!("expected {what}")))
    }
}

/// A test: a function, its name and what is known about it.
#[derive(Clone, Copy)]
pub struct Test {
    /// `module_path!()` of the function.
    module: &'static str,
    /// Name of the function, which states the behaviour.
    name: &'static str,
    run: fn() -> TestResult,
    stock: Stock,
    limit: Duration,
    /// Lines of the contract.
    covers: &'static [Line],
}

/// What the unpatched kernel is expected to do.
#[derive(Clone, Copy)]
enum Stock {
    Passes,
    Fails(&'static str),
    NotApplicable(&'static str),
}

impl Test {
    /// A test that the unpatched kernel passes too; see [`crate::test!`].
    pub const fn new(module: &'static str, name: &'static str, run: fn() -> TestResult) -> Self {
        Self {
            module,
            name,
            run,
            stock: Stock::Passes,
            limit: TEST_LIMIT,
            covers: &[],
        }
    }

    /// Declares that the unpatched kernel fails the test, and why.
    pub const fn stock_fails(mut self, reason: &'static str) -> Self {
        self.stock = Stock::Fails(reason);
        self
    }

    /// Declares that the test makes no sense on the unpatched kernel, and why.
    pub const fn not_on_stock(mut self, reason: &'static str) -> Self {
        self.stock = Stock::NotApplicable(reason);
        self
    }

    /// Declares another time limit.
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Declares which lines of the contract the test proves.
    pub const fn covers(mut self, lines: &'static [Line]) -> Self {
        self.covers = lines;
        self
    }

    /// Module and name, as in `sid::comes_exactly_once_when_setsid_succeeds`.
    pub fn full_name(&self) -> String {
        let module = self.module.rsplit("::").next().unwrap_or(self.module);
        format!("{module}::{}", self.name)
    }

    /// What the runner on the host wants to know.
    pub fn description(&self) -> TestDescription {
        TestDescription {
            name: self.full_name(),
            stock: match self.stock {
                Stock::Passes => StockExpectation::Passes,
                Stock::Fails(reason) => StockExpectation::Fails(reason.to_owned()),
                Stock::NotApplicable(reason) => StockExpectation::NotApplicable(reason.to_owned()),
            },
            limit_seconds: self.limit.as_secs(),
            covers: self.covers.to_vec(),
        }
    }
}

/// A [`Test`] out of the name of a function in the same module.
#[macro_export]
macro_rules! test {
    ($function:ident) => {
        $crate::harness::Test::new(module_path!(), stringify!($function), $function)
    };
}

/// Looks, when the processes of a test are gone, for what it left behind in the kernel; says what.
pub type Remains<'a> = &'a mut dyn FnMut() -> std::result::Result<(), String>;

/// How the tests ended.
#[derive(Debug, PartialEq)]
pub enum Conclusion {
    /// None failed.
    Passed,
    /// Some did.
    Failed,
    /// The last that was reported had to be killed; those after it were not run.
    Killed,
}

/// Runs the tests one after the other and reports them in KTAP, up to one that has to be killed:
/// what it changed may still be changed.
pub fn run(
    tests: &[Test],
    time_factor: u32,
    remains: Remains<'_>,
    mut output: impl Write,
) -> Result<Conclusion> {
    // Daemons of a test become our children, so that none of them can outlive it.
    set_child_subreaper(true).context("cannot become the reaper of the tests' processes")?;
    writeln!(output, "KTAP version 1\n1..{}", tests.len())?;
    let mut conclusion = Conclusion::Passed;
    for (index, test) in tests.iter().enumerate() {
        output.flush()?;
        let Ended {
            outcome,
            log,
            killed,
        } = run_one(test, time_factor)?;
        let outcome = match (outcome, remains()) {
            (outcome, Ok(())) => outcome,
            (Outcome::Failed(reason), Err(left)) => Outcome::Failed(format!("{reason}\n{left}")),
            (_, Err(left)) => Outcome::Failed(left),
        };
        for line in log.lines() {
            writeln!(output, "# {line}")?;
        }
        let (number, name) = (index + 1, test.full_name());
        match outcome {
            Outcome::Passed => writeln!(output, "ok {number} {name}")?,
            Outcome::Skipped(reason) => writeln!(output, "ok {number} {name} # SKIP {reason}")?,
            Outcome::Failed(reason) => {
                conclusion = Conclusion::Failed;
                for line in reason.lines() {
                    writeln!(output, "# {line}")?;
                }
                writeln!(output, "not ok {number} {name}")?;
            }
        }
        if killed {
            conclusion = Conclusion::Killed;
            break;
        }
    }
    output.flush()?;
    Ok(conclusion)
}

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// One test's end.
struct Ended {
    outcome: Outcome,
    /// What it wrote.
    log: String,
    /// Whether it had to be killed, which is a failure.
    killed: bool,
}

/// Runs one test in a child.
fn run_one(test: &Test, time_factor: u32) -> Result<Ended> {
    let (verdict_reader, verdict_writer) = pipe()?;
    let (log_reader, log_writer) = pipe()?;
    let run = test.run;
    let child = child::fork(move || {
        // So that the whole of the test can be killed. The session stays the same.
        let started = setpgid(Pid::from_raw(0), Pid::from_raw(0))
            .and_then(|()| dup2_stdout(&log_writer))
            .and_then(|()| dup2_stderr(&log_writer));
        let verdict = match started {
            Ok(()) => verdict(run()),
            Err(error) => format!("F\ncannot start the test: {error}"),
        };
        let mut pipe = File::from(verdict_writer);
        i32::from(pipe.write_all(verdict.as_bytes()).is_err())
    })?;
    let limit = test.limit * time_factor;
    let mut log = Vec::new();
    let ended = follow(&child, &log_reader, &mut log, Instant::now() + limit)?;
    let status = remove_processes(child, CLEAN_UP_LIMIT * time_factor)?;
    let mut verdict = Vec::new();
    // The test's end counts and not the pipe's: a daemon of the test may have held it open.
    read_available(&verdict_reader, &mut verdict)?;
    let verdict = String::from_utf8_lossy(&verdict).into_owned();
    let outcome = match verdict.split_once('\n') {
        _ if !ended => Outcome::Failed(format!("timed out after {limit:?}")),
        Some(("P", _)) => Outcome::Passed,
        Some(("S", reason)) => Outcome::Skipped(reason.replace('\n', " ")),
        Some((_, reason)) => Outcome::Failed(reason.to_owned()),
        None => Outcome::Failed(format!("the test's process ended early: {status:?}")),
    };
    Ok(Ended {
        outcome,
        log: String::from_utf8_lossy(&log).into_owned(),
        killed: !ended,
    })
}

/// What the test's process tells about its end: a letter, a newline, the reason.
fn verdict(result: TestResult) -> String {
    match result {
        Ok(()) => "P\n".to_owned(),
        Err(failure) if failure.kind == FailureKind::Skipped => format!("S\n{}", failure.message),
        Err(failure) => format!("F\n{failure}"),
    }
}

/// Collects what the test writes until it ends; false when it has not until the deadline.
fn follow(test: &Child, log: &OwnedFd, text: &mut Vec<u8>, deadline: Instant) -> Result<bool> {
    let end = child::pidfd(test.pid())?;
    let mut log_is_open = true;
    loop {
        let log_events = if log_is_open {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        let mut descriptors = [
            PollFd::new(end.as_fd(), PollFlags::POLLIN),
            PollFd::new(log.as_fd(), log_events),
        ];
        let ready = match poll(&mut descriptors, time_left(deadline)) {
            Err(Errno::EINTR) => continue,
            ready => ready.context("cannot wait for a test")?,
        };
        let ended = descriptors[0].any().unwrap_or(false);
        log_is_open = log_is_open && read_available(log, text)?;
        if ended || ready == 0 {
            return Ok(ended);
        }
    }
}

/// Reads what a pipe holds now; false at its end.
fn read_available(pipe: &OwnedFd, bytes: &mut Vec<u8>) -> Result<bool> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut buffer = [0; 4096];
    loop {
        match nix::unistd::read(pipe, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => bytes.extend(&buffer[..length]),
            Err(Errno::EAGAIN) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => bail!("cannot read from a test: {error}"),
        }
    }
}

/// Rounded up, so that the last millisecond is not spent spinning.
fn time_left(deadline: Instant) -> PollTimeout {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => PollTimeout::ZERO,
        left => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
    }
}

/// Kills and reaps the test's process and whatever it left behind; how the former ended.
fn remove_processes(test: Child, limit: Duration) -> Result<WaitStatus> {
    let test = test.into_pid();
    // ESRCH: the test and its whole group are gone already, or it never came to make one.
    let _ = killpg(test, Signal::SIGKILL);
    let deadline = Instant::now() + limit;
    let mut status = WaitStatus::StillAlive;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return Ok(status),
            Err(error) => bail!("cannot reap a test's processes: {error}"),
            Ok(WaitStatus::StillAlive) => kill_children(deadline)?,
            Ok(ended) if ended.pid() == Some(test) => status = ended,
            Ok(_) => {}
        }
    }
}

/// Kills our children and waits for the end of one of them.
fn kill_children(deadline: Instant) -> Result<()> {
    let children = children()?;
    for pid in &children {
        // They are ours to reap, so the ids are theirs still.
        kill(*pid, Signal::SIGKILL)?;
    }
    let ends = children
        .iter()
        .map(|pid| child::pidfd(*pid))
        .collect::<nix::Result<Vec<_>>>()?;
    let mut descriptors: Vec<_> = ends
        .iter()
        .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut descriptors, time_left(deadline)) {
        Ok(0) => bail!("a test's processes are still there after SIGKILL: {children:?}"),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => bail!("cannot wait for a test's processes: {error}"),
    }
}

/// Our children, by /proc: the list in /proc/PID/task needs a kernel option.
fn children() -> Result<Vec<Pid>> {
    let own = getpid().as_raw();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process that is gone in between is nobody's child.
        if Stat::of(pid).is_ok_and(|stat| stat.parent == own) {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}
