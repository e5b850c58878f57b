// SPDX-License-Identifier: GPL-2.0
//! OpenSSH's server under a supervisor that follows sessions, which is what SID was invented for
//! (C11, C17).

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};

use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::support::container::{ALL, Container, PID, keep_mounts, mount_own_proc};
use crate::support::directory::Directory;
use crate::support::program::{RunningProgram, in_path};
use crate::test;
use crate::timeouts;

pub const TESTS: &[Test] = &[
    test!(logins_survive_their_server[under_a_supervisor](MOUNT))
        .covers(&[Line::C11, Line::C17])
        .stock_fails(
            "the supervisor finds that the kernel reports neither origin nor end of a session",
        )
        .limit(LIMIT),
    test!(logins_survive_their_server[in_a_container](ALL | MOUNT))
        .covers(&[Line::C11, Line::C17, Line::C21, Line::C23])
        .stock_fails("LISTEN from another network namespace is refused")
        .limit(LIMIT),
];

const LIMIT: Duration = Duration::from_secs(120);

/// How long a login may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A mount namespace of its own.
const MOUNT: CloneFlags = CloneFlags::CLONE_NEWNS;

/// Where the server and its clients have their files: a file system of their own.
const DIRECTORY: &str = "/run";

/// The user that the server's unprivileged part runs as has to be mapped in a container, too.
const PASSWD: &str = "root:x:0:0::/run:/bin/sh\nsshd:x:100:100::/run/sshd:/usr/sbin/nologin\n";

/// Passwords that cannot be typed. Without one, the server would consider the account locked.
const SHADOW: &str = "root:x:::::::\nsshd:x:::::::\n";

const CONFIG: &str = "
ListenAddress 127.0.0.1:2222
HostKey /run/host_key
AuthorizedKeysFile /run/user_key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
";

/// Copies of programs, in a place that a container's root may enter. They are removed when this
/// is dropped.
struct Programs(Directory);

impl Programs {
    /// Copies OpenSSH's server, with the programs that newer ones are split into.
    fn copy() -> Result<Self, Failure> {
        let directory = Directory::new("sshd")?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let server = in_path("sshd")?;
        fs::copy(&server, directory.path().join("sshd"))?;
        for (name, _) in PARTS {
            let part = server.with_file_name("../lib/openssh").join(name);
            if part.is_file() {
                fs::copy(part, directory.path().join(name))?;
            }
        }
        Ok(Self(directory))
    }

    /// The part of the server's configuration that names the programs of the server.
    fn config(&self) -> String {
        let parts = PARTS
            .iter()
            .map(|(name, option)| (self.0.path().join(name), option));
        parts
            .filter(|(path, _)| path.is_file())
            .map(|(path, option)| format!("{option} {}\n", path.display()))
            .collect()
    }
}

/// Parts of newer servers, and the options that name their paths.
const PARTS: [(&str, &str); 2] = [
    ("sshd-session", "SshdSessionPath"),
    ("sshd-auth", "SshdAuthPath"),
];

fn run(words: &[&str]) -> TestResult {
    let status = Command::new(words[0]).args(&words[1..]).status();
    let status = status.map_err(|error| Failure::new(format!("{}: {error}", words[0])))?;
    expect(
        status.success(),
        format!("{words:?} to succeed, got {status}"),
    )
}

/// Prepares a mount namespace for the server and its clients. Returns the server's configuration file.
fn prepare(kinds: CloneFlags, programs: &Programs) -> Result<PathBuf, Failure> {
    let nothing: Option<&str> = None;
    let directory = Path::new(DIRECTORY);
    let plain = MsFlags::empty();
    keep_mounts()?;
    mount(
        Some("tmpfs"),
        directory,
        Some("tmpfs"),
        plain,
        Some("mode=755"),
    )?;
    if kinds.contains(PID) {
        mount_own_proc()?;
    }
    for (name, text) in [("passwd", PASSWD), ("shadow", SHADOW)] {
        let file = directory.join(name);
        fs::write(&file, text)?;
        let place = Path::new("/etc").join(name);
        mount(Some(&file), &place, nothing, MsFlags::MS_BIND, nothing)?;
    }
    fs::create_dir(directory.join("sshd"))?;
    for key in ["/run/host_key", "/run/user_key"] {
        run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])?;
    }
    run(&["busybox", "ip", "link", "set", "lo", "up"])?;
    let config = directory.join("sshd_config");
    fs::write(&config, CONFIG.to_owned() + &programs.config())?;
    Ok(config)
}

/// Starts this program's supervisor with a service.
fn supervise(service: &[&str]) -> Result<RunningProgram, Failure> {
    RunningProgram::start(&[&["/proc/self/exe", "supervise", "--"], service].concat())
}

/// The pid of the service, if a line of the supervisor reports that one was started.
fn started(line: &str) -> Option<i32> {
    let number = line.strip_prefix("service ")?.strip_suffix(" started")?;
    number.parse().ok()
}

/// The session, if a line of the supervisor reports that one detached from `origin`.
fn detached(line: &str, origin: i32) -> Option<i32> {
    let line = line.strip_prefix("session ")?;
    let number = line.strip_suffix(&format!(" detached from {origin}"))?;
    number.parse().ok()
}

/// Waits until the server listens. Returns its pid.
fn await_server(supervisor: &mut RunningProgram) -> Result<i32, Failure> {
    let server = supervisor.wait_for_line("that a service was started", started)?;
    supervisor.wait_for("Server listening on")?;
    Ok(server)
}

/// A login that echoes its input.
struct Login {
    client: Child,
    input: ChildStdin,
    output: ChildStdout,
    /// The session that the supervisor reported for it.
    session: i32,
}

impl Login {
    /// Logs in, and expects the supervisor to report that a session detached from the server.
    fn start(supervisor: &mut RunningProgram, server: i32) -> Result<Self, Failure> {
        let options = [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ];
        let mut client = Command::new("ssh")
            .args(["-F", "none", "-p", "2222", "-i", "/run/user_key"])
            .args(options.iter().flat_map(|option| ["-o", option]))
            .args(["root@127.0.0.1", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(format!("ssh: {error}; run scripts/setup")))?;
        let (Some(input), Some(output)) = (client.stdin.take(), client.stdout.take()) else {
            return Err(Failure::new("no pipes to ssh"));
        };
        let session = supervisor
            .wait_for_line(&format!("that a session detached from {server}"), |line| {
                detached(line, server)
            })?;
        let mut login = Self {
            client,
            input,
            output,
            session,
        };
        login.expect_answer()?;
        Ok(login)
    }

    /// Expects the login to live.
    #[track_caller]
    fn expect_answer(&mut self) -> TestResult {
        const WORD: &[u8] = b"alive\n";
        self.input.write_all(WORD)?;
        let deadline = timeouts::deadline(ANSWER_LIMIT);
        let mut answer = Vec::new();
        while answer.len() < WORD.len() {
            let mut descriptors = [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
            let mut bytes = [0; 64];
            if poll(&mut descriptors, timeouts::poll_until(deadline))? == 0 {
                break;
            }
            match self.output.read(&mut bytes)? {
                0 => break,
                length => answer.extend(&bytes[..length]),
            }
        }
        expect_eq("answer of a login", answer, WORD.to_vec())
    }

    /// Logs out, and expects the supervisor to report the end of that session.
    fn log_out(mut self, supervisor: &mut RunningProgram) -> TestResult {
        drop(self.input);
        let status = self.client.wait()?;
        expect(status.success(), format!("ssh to succeed, got {status}"))?;
        let begin = format!("session {} ended with status ", self.session);
        supervisor.wait_for_line(&begin, |line| line.starts_with(&begin).then_some(()))
    }
}

/// Two logins, the death and the restart of the server, a third login, and one logout after the other.
fn kill_the_server(kinds: CloneFlags, programs: &Programs) -> TestResult {
    let config = prepare(kinds, programs)?;
    let sshd = programs.0.path().join("sshd");
    let (sshd, config) = (sshd.to_string_lossy(), config.to_string_lossy());
    let mut supervisor = supervise(&[&sshd, "-D", "-e", "-f", &config])?;
    let server = await_server(&mut supervisor)?;
    let mut first = Login::start(&mut supervisor, server)?;
    let mut second = Login::start(&mut supervisor, server)?;
    kill(Pid::from_raw(server), Signal::SIGKILL)?;
    supervisor.wait_for(&format!("service {server} was killed by SIGKILL\n"))?;
    let successor = await_server(&mut supervisor)?;
    first.expect_answer()?;
    second.expect_answer()?;
    let third = Login::start(&mut supervisor, successor)?;
    let daemon = run_daemon()?;
    let sessions = [first.session, second.session, third.session];
    first.log_out(&mut supervisor)?;
    second.expect_answer()?;
    second.log_out(&mut supervisor)?;
    third.log_out(&mut supervisor)?;
    let lines: Vec<&str> = supervisor.output().lines().collect();
    let ends = |session: i32| {
        let begin = format!("session {session} ended");
        lines.iter().filter(|line| line.starts_with(&begin)).count()
    };
    expect_eq("ends of each login", sessions.map(ends), [1, 1, 1])?;
    let services: Vec<_> = lines.iter().filter_map(|line| started(line)).collect();
    expect_eq("services", services, vec![server, successor])?;
    let of_daemon = format!("session {daemon} ");
    let foreign = lines.iter().find(|line| line.starts_with(&of_daemon));
    expect_eq(
        "what the server's supervisor reports about a daemon",
        foreign,
        None,
    )
}

/// Lets a daemon fork twice under a supervisor of its own, and expects this supervisor to distinguish
/// it from the service. Returns the session that the daemon is in.
fn run_daemon() -> Result<i32, Failure> {
    const PID_FILE: &str = "/run/daemon.pid";
    let mut supervisor = supervise(&[
        "start-stop-daemon",
        "--start",
        "--background",
        "--make-pidfile",
        "--pidfile",
        PID_FILE,
        "--startas",
        "/bin/sleep",
        "--",
        "infinity",
    ])?;
    let service = supervisor.wait_for_line("that a service was started", started)?;
    let session =
        supervisor.wait_for_line("that a session detached", |line| detached(line, service))?;
    for line in [
        format!("session {session} ended with status 0\n"),
        format!("service {service} ended with status 0\n"),
        format!("service {service} is in the background\n"),
    ] {
        supervisor.wait_for(&line)?;
    }
    let daemon = Pid::from_raw(fs::read_to_string(PID_FILE)?.trim().parse()?);
    expect_eq(
        "the daemon's session",
        getsid(Some(daemon))?.as_raw(),
        session,
    )?;
    expect(daemon.as_raw() != session, "a daemon that leads no session")?;
    Ok(session)
}

/// The test runs in these namespaces. In a container, the server needs a range of ids, not only root's,
/// because it changes from root to another user before it trusts a client.
fn logins_survive_their_server(kinds: CloneFlags) -> TestResult {
    let programs = Programs::copy()?;
    Container::start(kinds, || kill_the_server(kinds, &programs))?.finish()
}
