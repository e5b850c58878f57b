// SPDX-License-Identifier: GPL-2.0
//! A small test framework like kselftest_harness: each test runs in a child process of its own, with
//! its own time limit.

use std::fmt::{self, Display};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::Location;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, getpid, pipe, pipe2, setpgid};
pub use protocol::contract::Line;
use protocol::results::{Figure, Outcome, Record, RecordReader, TestRecord, Trouble};
use protocol::{StockExpectation, TestDescription};

use crate::child::{self, Child};
use crate::proc_stat::{Stat, processes};
use crate::{results, timeouts};

/// Time limit of a test that does not declare another one, on a fast machine.
const TEST_LIMIT: Duration = Duration::from_secs(10);

/// How long the processes that a test leaves behind may take to end after SIGKILL, on a fast
/// machine.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);

/// How many bytes of a test's output are kept.
const OUTPUT_LIMIT: usize = 1 << 18;

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

    /// The same failure, with a description of the step at which it was found.
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

/// Fails unless the two are equal. The message has the expected and the actual value.
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

/// A test: a function, its name and its declarations.
#[derive(Clone, Copy)]
pub struct Test {
    /// `module_path!()` of the function.
    module: &'static str,
    /// Name of the function, which states the behaviour, and of the variant.
    name: &'static str,
    run: fn() -> TestResult,
    /// The test's own declarations.
    own: Declaration,
    /// The declarations of its list, for all tests of the list.
    common: Declaration,
}

/// What the unpatched kernel is expected to do.
#[derive(Clone, Copy)]
enum Stock {
    Passes,
    Fails(&'static str),
    NotApplicable(&'static str),
}

/// The declarations of a test, or of a list of tests. A test of a list may override the list's
/// declarations, and add lines of the contract.
#[derive(Clone, Copy)]
pub struct Declaration {
    stock: Option<Stock>,
    limit: Option<Duration>,
    covers: &'static [Line],
}

impl Declaration {
    /// No declarations: the unpatched kernel passes the tests, in the usual time.
    pub const fn new() -> Self {
        Self {
            stock: None,
            limit: None,
            covers: &[],
        }
    }

    /// Declares that the unpatched kernel fails the tests, and why.
    pub const fn stock_fails(mut self, reason: &'static str) -> Self {
        self.stock = Some(Stock::Fails(reason));
        self
    }

    /// Declares that the tests make no sense on the unpatched kernel, and why.
    pub const fn not_on_stock(mut self, reason: &'static str) -> Self {
        self.stock = Some(Stock::NotApplicable(reason));
        self
    }

    /// Declares another time limit for each test.
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Declares which lines of the contract each test proves.
    pub const fn covers(mut self, lines: &'static [Line]) -> Self {
        self.covers = lines;
        self
    }

    /// Applies the declarations to these tests.
    pub const fn of<const N: usize>(self, mut tests: [Test; N]) -> [Test; N] {
        let mut index = 0;
        // There are no iterators in a const function.
        while index < N {
            tests[index].common = self;
            index += 1;
        }
        tests
    }
}

impl Test {
    /// A test that the unpatched kernel passes too; see [`crate::test!`].
    pub const fn new(module: &'static str, name: &'static str, run: fn() -> TestResult) -> Self {
        Self {
            module,
            name,
            run,
            own: Declaration::new(),
            common: Declaration::new(),
        }
    }

    /// Declares that the unpatched kernel passes the test, unlike others of its list.
    pub const fn stock_passes(mut self) -> Self {
        self.own.stock = Some(Stock::Passes);
        self
    }

    /// Declares that the unpatched kernel fails the test, and why.
    pub const fn stock_fails(mut self, reason: &'static str) -> Self {
        self.own = self.own.stock_fails(reason);
        self
    }

    /// Declares that the test makes no sense on the unpatched kernel, and why.
    pub const fn not_on_stock(mut self, reason: &'static str) -> Self {
        self.own = self.own.not_on_stock(reason);
        self
    }

    /// Declares another time limit.
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.own = self.own.limit(limit);
        self
    }

    /// Declares which lines of the contract the test proves.
    pub const fn covers(mut self, lines: &'static [Line]) -> Self {
        self.own = self.own.covers(lines);
        self
    }

    /// Module, name and variant, as in `ids::uid_follows[saved_id]`.
    pub fn full_name(&self) -> String {
        let module = self.module.rsplit("::").next().unwrap_or(self.module);
        format!("{module}::{}", self.name)
    }

    fn time_limit(&self) -> Duration {
        let declared = self.own.limit.or(self.common.limit);
        declared.unwrap_or(TEST_LIMIT)
    }

    /// The description for the runner on the host.
    pub fn description(&self) -> TestDescription {
        TestDescription {
            name: self.full_name(),
            stock: match self.own.stock.or(self.common.stock) {
                None | Some(Stock::Passes) => StockExpectation::Passes,
                Some(Stock::Fails(reason)) => StockExpectation::Fails(reason.to_owned()),
                Some(Stock::NotApplicable(reason)) => {
                    StockExpectation::NotApplicable(reason.to_owned())
                }
            },
            limit_seconds: self.time_limit().as_secs(),
            covers: [self.own.covers, self.common.covers].concat(),
        }
    }
}

/// What the framework runs: a test, or a load.
pub struct Case {
    name: String,
    /// How long it may take, on a fast machine.
    limit: Duration,
    /// Whether its output is shown immediately, and not kept.
    is_shown: bool,
    run: Box<dyn Fn() -> TestResult>,
}

impl From<&Test> for Case {
    fn from(test: &Test) -> Self {
        Self {
            name: test.full_name(),
            limit: test.time_limit(),
            is_shown: false,
            run: Box::new(test.run),
        }
    }
}

impl Case {
    /// A load, which shows its progress.
    pub fn load(name: &str, limit: Duration, run: impl Fn() -> TestResult + 'static) -> Self {
        Self {
            name: name.to_owned(),
            limit,
            is_shown: true,
            run: Box::new(run),
        }
    }

    /// The description of a load for the runner on the host.
    pub fn description(&self) -> TestDescription {
        TestDescription {
            name: self.name.clone(),
            stock: StockExpectation::NotApplicable("a load needs the module".to_owned()),
            limit_seconds: self.limit.as_secs(),
            covers: Vec::new(),
        }
    }
}

/// Makes a [`Test`] from the name of a function in the same module. A function with arguments has
/// several variants, each of which is a test: `test!(function[variant](arguments))`.
#[macro_export]
macro_rules! test {
    ($function:ident) => {
        $crate::harness::Test::new(module_path!(), stringify!($function), $function)
    };
    ($function:ident[$variant:ident]($($argument:expr),* $(,)?)) => {
        $crate::harness::Test::new(
            module_path!(),
            concat!(stringify!($function), "[", stringify!($variant), "]"),
            || $function($($argument),*),
        )
    };
}

/// Looks for objects that a test left behind in the kernel, after the processes of the test are gone.
/// The error lists them.
pub type LeakCheck<'a> = &'a mut dyn FnMut() -> std::result::Result<(), String>;

/// A complaint of the kernel.
pub struct Complaint {
    /// A short description.
    pub reason: String,
    /// The lines of the log around it.
    pub log: Vec<String>,
}

/// The kernel under test.
pub trait KernelWatch {
    /// A test is about to begin.
    fn test_begins(&mut self, test: &str) -> io::Result<()>;

    /// The test has ended. Returns the kernel's complaint during the test, if there is one.
    fn test_ended(&mut self) -> io::Result<Option<Complaint>>;

    /// No further test follows.
    fn tests_ended(&mut self) -> io::Result<()>;

    /// A test hangs. The kernel logs what its tasks do. Returns the stacks of the test's own threads,
    /// whose processes are descendants of this process.
    fn dump(&mut self, test: &str) -> io::Result<Vec<String>>;
}

/// Where results go.
pub trait Reporter {
    /// This many tests will run.
    fn plan(&mut self, tests: usize) -> io::Result<()>;

    /// A test ended.
    fn test(&mut self, record: TestRecord) -> io::Result<()>;
}

/// How the tests ended.
#[derive(Debug, PartialEq)]
pub enum Conclusion {
    /// No test failed.
    Passed,
    /// A test failed.
    Failed,
    /// The last test that was reported had to be killed, and the tests after it were not run.
    Killed,
}

/// Runs the tests, or a load, one after the other and reports them. Stops after a test that has to be
/// killed, because its changes to the system may still be in effect.
pub fn run(
    cases: &[Case],
    time_factor: u32,
    leak_check: LeakCheck<'_>,
    kernel: &mut dyn KernelWatch,
    reporter: &mut dyn Reporter,
) -> Result<Conclusion> {
    // Daemons of a test become children of this process, so that none can outlive the test.
    set_child_subreaper(true).context("cannot become the reaper of the tests' processes")?;
    reporter.plan(cases.len())?;
    let mut conclusion = Conclusion::Passed;
    for case in cases {
        kernel.test_begins(&case.name)?;
        let Ended { mut record, killed } = run_one(case, time_factor, kernel)?;
        if let Err(left) = leak_check() {
            record.trouble.push(Trouble::Leak(left));
        }
        if let Some(Complaint { reason, log }) = kernel.test_ended()? {
            record.trouble.push(Trouble::Kernel(reason));
            record.kernel.extend(log);
        }
        if matches!(record.overall(), Outcome::Failed(_)) {
            conclusion = Conclusion::Failed;
        }
        reporter.test(record)?;
        if killed {
            conclusion = Conclusion::Killed;
            break;
        }
    }
    kernel.tests_ended()?;
    Ok(conclusion)
}

/// The end of a test.
struct Ended {
    record: TestRecord,
    /// Whether it had to be killed, which is a failure.
    killed: bool,
}

/// Runs one test in a child.
fn run_one(case: &Case, time_factor: u32, kernel: &mut dyn KernelWatch) -> Result<Ended> {
    let started = Instant::now();
    let (records, records_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let (output, output_writer) = pipe()?;
    let child = child::fork(move || {
        // The test gets a process group, so that all of it can be killed. The session stays the same.
        let mut started = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        if !case.is_shown {
            started = started
                .and_then(|()| dup2_stdout(&output_writer))
                .and_then(|()| dup2_stderr(&output_writer));
        }
        results::go_to(records_writer);
        let outcome = match started {
            Ok(()) => outcome((case.run)()),
            Err(error) => Outcome::Failed(format!("cannot start the test: {error}")),
        };
        i32::from(results::write(&Record::Outcome(outcome)).is_err())
    })?;
    let limit = case.limit * time_factor;
    let mut streams = [Stream::new(output), Stream::new(records)];
    let ended = follow(&child, &mut streams, started + limit)?;
    // The dump comes before anything is killed. It also shows a task that cannot be killed.
    let dump = (!ended).then(|| kernel.dump(&case.name));
    let status = remove_processes(child, CLEAN_UP_LIMIT * time_factor)?;
    // The test's end counts and not the pipe's, because a daemon of the test may have held the pipe
    // open.
    let [output, records] = &mut streams;
    records.read()?;
    let (outcome, figures) = parse_records(&records.bytes)?;
    let trouble = match outcome {
        _ if !ended => Some(Trouble::TimedOut(limit)),
        None => Some(Trouble::Died(format!("{status:?}"))),
        Some(_) => None,
    };
    let mut record = TestRecord {
        name: case.name.clone(),
        outcome,
        trouble: trouble.into_iter().collect(),
        figures,
        output: output.last_lines(),
        kernel: Vec::new(),
        dumped: matches!(dump, Some(Ok(_))),
        seconds: started.elapsed().as_secs_f64(),
    };
    match dump {
        Some(Ok(stacks)) => record.kernel = stacks,
        Some(Err(error)) => record.trouble.push(Trouble::NoDump(error.to_string())),
        None => {}
    }
    Ok(Ended {
        record,
        killed: !ended,
    })
}

/// The outcome that a test function's result stands for.
fn outcome(result: TestResult) -> Outcome {
    match result {
        Ok(()) => Outcome::Passed,
        Err(failure) if failure.kind == FailureKind::Skipped => {
            Outcome::Skipped(failure.message.replace('\n', " "))
        }
        Err(failure) => Outcome::Failed(failure.to_string()),
    }
}

/// Parses the records of a test's processes: its outcome, and its figures. Figures of the same name
/// are added up.
fn parse_records(bytes: &[u8]) -> Result<(Option<Outcome>, Vec<Figure>)> {
    let (mut outcome, mut figures) = (None, Vec::<Figure>::new());
    let mut lines = RecordReader::default();
    lines.add(bytes);
    for record in lines {
        match record? {
            Record::Outcome(own) => outcome = Some(own),
            Record::Figure(figure) => add(&mut figures, figure),
            record => bail!("a test sent the record {record:?}"),
        }
    }
    Ok((outcome, figures))
}

fn add(figures: &mut Vec<Figure>, figure: Figure) {
    match figures.iter_mut().find(|known| known.name == figure.name) {
        Some(known) => known.value += figure.value,
        None => figures.push(figure),
    }
}

/// A pipe that a test writes into, and the bytes that were read from it.
struct Stream {
    pipe: OwnedFd,
    bytes: Vec<u8>,
    is_open: bool,
}

impl Stream {
    fn new(pipe: OwnedFd) -> Self {
        let (bytes, is_open) = (Vec::new(), true);
        Self {
            pipe,
            bytes,
            is_open,
        }
    }

    /// Reads the bytes that are available.
    fn read(&mut self) -> Result<()> {
        self.is_open = self.is_open && read_available(&self.pipe, &mut self.bytes)?;
        Ok(())
    }

    /// The last lines, as many as fit into a message to the runner.
    fn last_lines(&self) -> Vec<String> {
        let last = &self.bytes[self.bytes.len().saturating_sub(OUTPUT_LIMIT)..];
        let text = String::from_utf8_lossy(last);
        text.lines().map(str::to_owned).collect()
    }
}

/// Collects the test's output until it ends. Returns false if it has not ended at the deadline.
fn follow(test: &Child, streams: &mut [Stream], deadline: Instant) -> Result<bool> {
    let end = child::pidfd(test.pid())?;
    loop {
        let mut descriptors = vec![PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        let open = streams.iter().filter(|stream| stream.is_open);
        descriptors.extend(open.map(|stream| PollFd::new(stream.pipe.as_fd(), PollFlags::POLLIN)));
        let ready = match poll(&mut descriptors, timeouts::poll_until(deadline)) {
            Err(Errno::EINTR) => continue,
            ready => ready.context("cannot wait for a test")?,
        };
        let ended = descriptors[0].any().unwrap_or(false);
        streams.iter_mut().try_for_each(Stream::read)?;
        if ended || ready == 0 {
            return Ok(ended);
        }
    }
}

/// Reads the bytes that are in a pipe now. Returns false at its end.
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

/// Kills and reaps the test's process and the processes that it left behind. Returns how the test's
/// process ended.
fn remove_processes(test: Child, limit: Duration) -> Result<WaitStatus> {
    let test = test.into_pid();
    // ESRCH: the test and its whole group are gone already, or it did not get to make a group.
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

/// Kills the children of this process and waits for the end of one of them.
fn kill_children(deadline: Instant) -> Result<()> {
    let children = children()?;
    for pid in &children {
        // Only this process reaps them, so the pids are still theirs.
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
    match poll(&mut descriptors, timeouts::poll_until(deadline)) {
        Ok(0) => bail!("a test's processes are still there after SIGKILL: {children:?}"),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => bail!("cannot wait for a test's processes: {error}"),
    }
}

/// The children of this process, by their entries in /proc. The list in /proc/PID/task needs a
/// kernel option.
fn children() -> Result<Vec<Pid>> {
    let own = getpid().as_raw();
    let mut children = Vec::new();
    for pid in processes()? {
        // A process that is gone by now is not a child.
        if Stat::of(pid).is_ok_and(|stat| stat.parent == own) {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}
