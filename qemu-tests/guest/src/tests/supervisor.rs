// SPDX-License-Identifier: GPL-2.0
//! This program's supervisor where pids are reused immediately: it must not mistake one process for
//! another that had its pid before (C17, C52). If it missed events, it has to find out from the state
//! what happened, without /proc (C55).
//!
//! When an event is read, its pid may belong to another process than when the event was reported. So
//! the tests stop the supervisor. A session's pid becomes free while an event of that session is
//! unread, and the next service gets the pid. A supervisor that compares pids takes the event for one
//! of that service. In the first test, it takes a stranger's end for the service's, kills the service,
//! and ends. In the second, it takes a login of the previous service for one of this service.
//! Conversely, an event of the process that has a pid now is not taken for one of an earlier session:
//! the end of that session is queued before its pid is free. The complete output of the supervisor
//! shows that, too.
//!
//! A pid namespace can be limited to few pids, so that a pid is reused when a test needs it.

use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getsid, mkfifo, setsid};

use crate::child::{self, own_pid};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::support::container::{ALL, Container, PID, require, without_proc};
use crate::support::fault_injection::Setting;
use crate::support::polling::poll_until_done;
use crate::support::process::succeed;
use crate::support::program::RunningProgram;
use crate::test;
use crate::timeouts;

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_ANSWER)
    .limit(LIMIT)
    .covers(&[Line::C17])
    .of([
        test!(a_strangers_end_is_not_that_of_the_service_with_its_number).covers(&[Line::C52]),
        test!(a_login_is_not_from_the_next_service_with_the_same_number)
            .covers(&[Line::C11, Line::C52]),
        test!(started_again_it_finds_the_sessions_that_are_there).covers(&[
            Line::C11,
            Line::C52,
            Line::C55,
        ]),
        test!(after_a_loss_it_finds_out_what_became_of_its_sessions)
            .stock_fails("LISTEN from another network namespace is refused")
            .covers(&[Line::C6, Line::C11, Line::C55]),
    ]);

const NO_ANSWER: &str = "LISTEN from another pid namespace is not answered";

const LIMIT: Duration = Duration::from_secs(60);

/// How long a killed process may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The lowest pid that is reused, `RESERVED_PIDS`.
const LOWEST: i32 = 300;

/// Leaves this pid namespace the pids from the lowest one to this one. They are assigned in turn.
fn leave_numbers_to(last: i32) -> TestResult {
    fs::write("/proc/sys/kernel/pid_max", (last + 1).to_string())?;
    use_up_to(last)
}

/// Uses pids up to the last one: the next is the lowest that is free.
fn use_up_to(last: i32) -> TestResult {
    for _ in 0..=last {
        let process = child::fork(|| 0)?;
        let pid = process.pid().as_raw();
        process.wait()?;
        if pid == last {
            return Ok(());
        }
    }
    Err(Failure::new(format!("no process got number {last}")))
}

/// The supervisor and its service.
struct Supervised {
    program: RunningProgram,
}

impl Supervised {
    /// Starts it in this pid namespace, with a script as the service.
    fn start(script: &str, argument: &str) -> Result<Self, Failure> {
        Self::start_as("/proc/self/exe", &[], script, &[argument])
    }

    /// Starts it from this program file, with options.
    fn start_as(
        program: &str,
        options: &[&str],
        script: &str,
        arguments: &[&str],
    ) -> Result<Self, Failure> {
        let service = ["--", "/bin/sh", "-c", script];
        let words = [&[program, "supervise"], options, &service, arguments].concat();
        Ok(Self {
            program: RunningProgram::start(&words)?,
        })
    }

    /// Waits until a service reports that it is ready. Returns its pids.
    #[track_caller]
    fn service<const N: usize>(&mut self) -> Result<[i32; N], Failure> {
        self.program.wait_for_line("that it is ready", |line| {
            let numbers = line.strip_prefix("ready ")?.split(' ');
            let numbers = numbers.map(|number| number.parse().ok());
            numbers.collect::<Option<Vec<_>>>()?.try_into().ok()
        })
    }

    #[track_caller]
    fn expect(&mut self, line: &str) -> TestResult {
        self.program.wait_for(&format!("{line}\n"))
    }

    /// Lets a child of the service detach, and waits until the supervisor reports it.
    fn detach(&mut self, pipe: &Pipe, child: i32, service: i32) -> TestResult {
        pipe.open()?;
        self.expect(&format!("session {child} detached from {service}"))
    }

    /// Kills only the supervisor.
    fn kill(&self) -> TestResult {
        let pid = Pid::from_raw(self.program.pid());
        kill(pid, Signal::SIGKILL)?;
        waitpid(pid, None)?;
        Ok(())
    }

    /// Waits for the last of these lines, and expects the supervisor to report these and no others.
    fn expect_all(mut self, expected: &[String]) -> TestResult {
        if let Some(last) = expected.last() {
            self.expect(last)?;
        }
        let is_report = |line: &&str| line.starts_with("service ") || line.starts_with("session ");
        let lines = self.program.output().lines();
        let reported: Vec<_> = lines.filter(is_report).collect();
        let expected = expected.iter().map(String::as_str).collect();
        expect_eq("what the supervisor reported", reported, expected)
    }
}

/// Kills a session leader whose parent does not reap it now. The session's end is queued when this
/// returns.
fn kill_unreaped(pid: i32) -> TestResult {
    let pid = Pid::from_raw(pid);
    let pidfd = child::pidfd(pid)?;
    kill(pid, Signal::SIGKILL)?;
    let ended = child::has_ended(&pidfd, timeouts::scaled(END_LIMIT))?;
    expect(ended, format!("{pid} to end"))
}

fn a_strangers_end_is_not_that_of_the_service_with_its_number() -> TestResult {
    Container::start(PID, || {
        let mut supervised = Supervised::start("echo ready $$; exec sleep infinity", "")?;
        let [first] = supervised.service()?;
        // There is one pid left.
        leave_numbers_to(LOWEST)?;
        let supervisor = supervised.program.pause()?;
        kill_unreaped(first)?;
        let stranger = child::fork(|| i32::from(setsid().is_err()))?;
        let number = stranger.pid().as_raw();
        succeed(stranger)?;
        // Two ends are unread: that of the service, and that of the stranger.
        kill(supervisor, Signal::SIGCONT)?;
        let [second] = supervised.service()?;
        expect_eq("number of the next service", second, number)?;
        kill(Pid::from_raw(second), Signal::SIGTERM)?;
        let [third] = supervised.service()?;
        kill(Pid::from_raw(third), Signal::SIGKILL)?;
        supervised.expect_all(&[
            format!("service {first} started"),
            format!("service {first} was killed by SIGKILL"),
            format!("service {second} started"),
            format!("service {second} was killed by SIGTERM"),
            format!("service {third} started"),
            format!("service {third} was killed by SIGKILL"),
        ])
    })?
    .finish()
}

/// A service with a child that detaches when it reads from the pipe $0, and then lives on.
const SERVICE: &str = "
(read -r go <$0; exec setsid sh -c 'echo detached; exec sleep infinity') &
echo ready $$ $!
wait
";

/// A named pipe, which is removed when this is dropped.
struct Pipe(PathBuf);

impl Pipe {
    fn new() -> Result<Self, Failure> {
        Self::at(env::temp_dir().join(format!("supervisor-{}", own_pid())))
    }

    fn at(path: PathBuf) -> Result<Self, Failure> {
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Self(path))
    }

    /// Lets the child of the service that reads from it detach.
    fn open(&self) -> TestResult {
        Ok(fs::write(&self.0, "go\n")?)
    }

    /// The same, and waits until the child has detached.
    fn detach(&self, supervised: &mut Supervised) -> TestResult {
        self.open()?;
        supervised.expect("detached")
    }

    /// The same, while the supervisor reads no events.
    fn detach_unread(&self, child: i32) -> TestResult {
        self.open()?;
        let child = Pid::from_raw(child);
        poll_until_done(END_LIMIT, || {
            let is_attached = getsid(Some(child))? != child;
            Ok(is_attached.then(|| format!("{child} to detach")))
        })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // If it is left, it is only in the guest, which ends soon.
        let _ = fs::remove_file(&self.0);
    }
}

fn a_login_is_not_from_the_next_service_with_the_same_number() -> TestResult {
    require(PID)?;
    let pipe = Pipe::new()?;
    Container::start(PID, || log_in_twice(&pipe))?.finish()
}

fn log_in_twice(pipe: &Pipe) -> TestResult {
    let mut supervised = Supervised::start(SERVICE, &pipe.0.to_string_lossy())?;
    let [first, child] = supervised.service()?;
    // For two services, one after the other, and the login of each.
    let last = LOWEST + 2;
    leave_numbers_to(last)?;
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    let [second, old_login] = supervised.service()?;
    // The supervisor has killed the child that the first service left. Once this process has reaped it,
    // only the second service's child reads from the pipe.
    waitpid(Pid::from_raw(child), None)?;
    let supervisor = supervised.program.pause()?;
    kill_unreaped(second)?;
    // The old login leaves the session of a service that has ended.
    pipe.detach(&mut supervised)?;
    use_up_to(last)?;
    kill(supervisor, Signal::SIGCONT)?;
    let [third, new_login] = supervised.service()?;
    expect_eq("number of the next service", third, second)?;
    pipe.detach(&mut supervised)?;
    kill(Pid::from_raw(old_login), Signal::SIGKILL)?;
    waitpid(Pid::from_raw(old_login), None)?;
    kill(Pid::from_raw(new_login), Signal::SIGKILL)?;
    supervised.expect_all(&[
        format!("service {first} started"),
        format!("service {first} was killed by SIGKILL"),
        format!("service {second} started"),
        format!("service {second} was killed by SIGKILL"),
        format!("service {third} started"),
        format!("session {new_login} detached from {third}"),
        format!("session {new_login} was killed by SIGKILL"),
    ])
}

/// A service with a child for each argument. The child detaches when it reads from the pipe of that
/// name, and then lives on.
const SERVICE_OF_MANY: &str = "
for pipe in \"$0\" \"$@\"; do
    (read -r go <$pipe; exec setsid sleep infinity) &
    children=\"$children $!\"
done
echo ready $$ $children
wait
";

/// A directory in which a container's root may write. Its files are gone with the mount namespace.
const DIRECTORY: &str = "/run";

/// Calls a function without /proc, with this program's path, and with pipes in a new file system.
fn with_pipes<const N: usize>(
    kinds: CloneFlags,
    function: impl FnOnce(&str, [Pipe; N]) -> TestResult,
) -> TestResult {
    let program = env::current_exe()?;
    without_proc(kinds, || {
        let (tmpfs, nothing) = (Some("tmpfs"), None::<&str>);
        mount(tmpfs, DIRECTORY, tmpfs, MsFlags::empty(), nothing)?;
        let pipes = (0..N).map(|number| Pipe::at(format!("{DIRECTORY}/pipe-{number}").into()));
        let pipes = pipes.collect::<Result<Vec<_>, _>>()?.try_into();
        let pipes = pipes.map_err(|_| Failure::new("another number of pipes"))?;
        function(&program.to_string_lossy(), pipes)
    })
}

/// The paths of pipes, as the service's arguments.
fn paths(pipes: &[Pipe]) -> Vec<&str> {
    pipes.iter().filter_map(|pipe| pipe.0.to_str()).collect()
}

fn started_again_it_finds_the_sessions_that_are_there() -> TestResult {
    with_pipes(PID, start_again)
}

fn start_again(program: &str, pipes: [Pipe; 3]) -> TestResult {
    let options = ["--record", "/run/record"];
    let start = || Supervised::start_as(program, &options, SERVICE_OF_MANY, &paths(&pipes));
    let mut before = start()?;
    let [service, login, short, late] = before.service()?;
    before.detach(&pipes[0], login, service)?;
    before.detach(&pipes[1], short, service)?;
    before.kill()?;
    // No supervisor reads these events. The record names the session that ends, and not the one that
    // begins.
    kill_unreaped(short)?;
    pipes[2].detach_unread(late)?;

    let mut after = start()?;
    after.expect(&format!("session {late} detached from {service}"))?;
    kill_unreaped(service)?;
    let [next, ..]: [_; 4] = after.service()?;
    kill_unreaped(login)?;
    after.expect_all(&[
        format!("service {service} is there"),
        format!("session {login} is there"),
        format!("session {short} is gone"),
        format!("session {late} detached from {service}"),
        format!("service {service} was killed by SIGKILL"),
        format!("service {next} started"),
        format!("session {login} was killed by SIGKILL"),
    ])
}

/// More sessions than the supervisor's receive buffer has room for.
const MANY: usize = 100;

fn overrun() -> TestResult {
    for _ in 0..MANY {
        succeed(child::fork(|| i32::from(setsid().is_err()))?)?;
    }
    Ok(())
}

fn after_a_loss_it_finds_out_what_became_of_its_sessions() -> TestResult {
    // Root of a user namespace that is not the initial one cannot have a larger buffer than this.
    let _little = Setting::little_room()?;
    with_pipes(ALL, lose)
}

fn lose(program: &str, pipes: [Pipe; 2]) -> TestResult {
    let mut supervised = Supervised::start_as(program, &[], SERVICE_OF_MANY, &paths(&pipes))?;
    let [first, short, late] = supervised.service()?;
    supervised.detach(&pipes[0], short, first)?;

    let supervisor = supervised.program.pause()?;
    overrun()?;
    kill_unreaped(short)?;
    pipes[1].detach_unread(late)?;
    kill(supervisor, Signal::SIGCONT)?;
    supervised.expect("events were lost")?;
    supervised.expect(&format!("session {late} detached from {first}"))?;

    // The end of the service itself.
    supervised.program.pause()?;
    overrun()?;
    kill_unreaped(first)?;
    kill(supervisor, Signal::SIGCONT)?;
    let [second, ..]: [_; 3] = supervised.service()?;
    kill_unreaped(late)?;
    supervised.expect_all(&[
        format!("service {first} started"),
        format!("session {short} detached from {first}"),
        format!("session {short} is gone"),
        format!("session {late} detached from {first}"),
        format!("service {first} was killed by SIGKILL"),
        format!("service {second} started"),
        format!("session {late} was killed by SIGKILL"),
    ])
}
