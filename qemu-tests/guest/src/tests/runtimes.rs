// SPDX-License-Identifier: GPL-2.0
//! Containers of common tools: bubblewrap and an OCI runtime, both run by an unprivileged user.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setsid};
use serde_json::json;

use crate::child::{self, Gate};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::support::container::{ALL, Container, UNPRIVILEGED};
use crate::support::directory::Directory;
use crate::support::process::{status, succeed};
use crate::support::stock::NO_NETWORK_NAMESPACES;
use crate::test;

pub const TESTS: &[Test] = &Declaration::new()
    .stock_fails(NO_NETWORK_NAMESPACES)
    .limit(Duration::from_secs(60))
    .covers(&[Line::C21, Line::C22, Line::C23])
    .of([
        test!(forkstat_follows_a_bubblewrap_container),
        test!(forkstat_follows_an_oci_container),
        test!(a_supervisor_works_in_a_bubblewrap_container).covers(&[Line::C11, Line::C17]),
        test!(a_supervisor_works_in_an_oci_container).covers(&[Line::C11, Line::C17]),
    ]);

/// The script that runs in a container: forkstat, and the process that forkstat has to follow. The
/// script prints forkstat's pid, the pid of the process that the events are about, and that of the
/// last process of all. It reads a line before it goes on, and then forkstat's pid to end forkstat.
const SCRIPT: &str = "
{ sh -c 'echo watcher $$; exec forkstat -l -e sid,uid,fork,exec,exit'; echo ended; } &
read -r go
setsid true &
echo subject $!
wait $!
read -r watcher
kill $watcher
wait
echo last $(sh -c 'echo $$')
";

/// A container that runs.
struct Running {
    name: String,
    process: process::Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Runs a command that makes a container, as an unprivileged user.
    fn start(mut command: Command) -> Result<Self, Failure> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut process = command
            .uid(UNPRIVILEGED)
            .gid(UNPRIVILEGED)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::new(format!("cannot run {name}: {error}")))?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(Failure::new("no pipes to the container"));
        };
        Ok(Self {
            name,
            process,
            input,
            lines: BufReader::new(output).lines(),
        })
    }

    /// Waits until it ends, and expects success.
    fn finish(mut self) -> TestResult {
        let ended = self.process.wait()?;
        let name = self.name;
        expect(ended.success(), format!("{name} to succeed, got {ended}"))
    }
}

/// How many processes the host and the sibling each make meanwhile.
const BUSY: usize = 20;

/// Runs [`SCRIPT`] in a container that a command makes. Expects forkstat to show the events in it, and
/// none of a busy host and a busy sibling.
fn expect_forkstat_to_follow(command: Command) -> TestResult {
    let sibling = Container::idle(ALL)?;
    let mut container = Running::start(command)?;
    let (input, lines) = (&mut container.input, &mut container.lines);
    let watcher = lines.next().transpose()?.unwrap_or_default();
    let watcher = watcher.strip_prefix("watcher ").unwrap_or_default();
    // forkstat listens before it prints the headline.
    let headline = lines.next().transpose()?.unwrap_or_default();
    expect(
        headline.contains("Event"),
        format!("forkstat's headline, got {headline:?}"),
    )?;
    let mut busy = Vec::new();
    for _ in 0..BUSY {
        let process = child::fork(|| 0)?;
        busy.push(process.pid().as_raw());
        process.wait()?;
        sibling.run(|| Ok(()))?;
    }
    writeln!(input, "go")?;
    let (mut subject, mut last) = (None, None);
    let mut seen: Vec<(String, i32)> = Vec::new();
    for line in lines {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["subject", pid] => subject = Some(pid.parse::<i32>()?),
            ["last", pid] => last = Some(pid.parse::<i32>()?),
            [_time, kind, pid, ..] => seen.push(((*kind).to_owned(), pid.parse()?)),
            _ => {}
        }
        let ended = |(kind, pid): &(String, i32)| kind == "exit" && Some(*pid) == subject;
        if subject.is_some() && last.is_none() && seen.iter().any(ended) {
            // If the script has already read a line, a second one does no harm.
            writeln!(input, "{watcher}")?;
        }
    }
    container.finish()?;
    let (Some(subject), Some(last)) = (subject, last) else {
        return Err(Failure::new(format!("the script did not run: {seen:?}")));
    };
    for kind in ["fork", "exec", "sid", "exit"] {
        expect(
            seen.contains(&(kind.to_owned(), subject)),
            format!("a line {kind} about {subject}, got {seen:?}"),
        )?;
    }
    // All pids in the container are lower than those of the host's busy processes.
    expect(
        busy.iter().all(|pid| *pid > last),
        format!("pids outside above {last}, got {busy:?}"),
    )?;
    let foreign: Vec<_> = seen.iter().filter(|(_, pid)| *pid > last).collect();
    expect_eq("events of others", foreign, vec![])
}

/// bubblewrap with these words as the command in the container.
fn bubblewrap(words: &[&str]) -> Command {
    let mut command = Command::new("bwrap");
    command
        .args(["--unshare-all", "--uid", "0", "--gid", "0"])
        .args(["--dev-bind", "/", "/", "--proc", "/proc"])
        .arg("--die-with-parent")
        .args(words);
    command
}

fn forkstat_follows_a_bubblewrap_container() -> TestResult {
    expect_forkstat_to_follow(bubblewrap(&["/bin/sh", "-c", SCRIPT]))
}

/// A new directory that belongs to the user.
fn own_directory(name: &str) -> Result<Directory, Failure> {
    let directory = Directory::new(name)?;
    give(directory.path())?;
    Ok(directory)
}

/// Gives a directory to the user.
fn give(directory: &Path) -> TestResult {
    chown(directory, Some(UNPRIVILEGED), Some(UNPRIVILEGED))?;
    Ok(fs::set_permissions(
        directory,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// An OCI bundle and its runtime's state.
struct Bundle {
    bundle: Directory,
    state: Directory,
}

impl Bundle {
    /// A bundle with the host's programs, which runs these words as a command.
    fn new(words: &[&str]) -> Result<Self, Failure> {
        let bundle = own_directory("bundle")?;
        let state = own_directory("state")?;
        let root = bundle.path().join("rootfs");
        fs::create_dir(&root)?;
        for directory in ["usr", "etc", "proc", "dev", "tmp"] {
            fs::create_dir(root.join(directory))?;
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{link}"), root.join(link))?;
        }
        fs::write(bundle.path().join("config.json"), configuration(words))?;
        give(&root)?;
        Ok(Self { bundle, state })
    }

    /// The container's root directory.
    fn root(&self) -> PathBuf {
        self.bundle.path().join("rootfs")
    }

    /// The runtime that runs it.
    fn command(&self) -> Command {
        let mut runtime = Command::new("crun");
        runtime
            .arg("--root")
            .arg(self.state.path())
            .args(["--cgroup-manager", "disabled", "run", "--bundle"])
            .arg(self.bundle.path())
            .arg("proc-events");
        runtime
    }
}

/// A bundle's config.json.
fn configuration(words: &[&str]) -> String {
    let bind = |directory: &str| {
        json!({
            "destination": directory, "source": directory, "type": "none",
            "options": ["rbind", "ro"],
        })
    };
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "user"];
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": false},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": words,
            "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
            "cwd": "/",
        },
        "mounts": [
            bind("/usr"), bind("/etc"),
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {
            "namespaces": namespaces.map(|kind| json!({"type": kind})),
            "uidMappings": [{"containerID": 0, "hostID": UNPRIVILEGED, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": UNPRIVILEGED, "size": 1}],
        },
    });
    config.to_string()
}

fn forkstat_follows_an_oci_container() -> TestResult {
    let bundle = Bundle::new(&["/bin/sh", "-c", SCRIPT])?;
    expect_forkstat_to_follow(bundle.command())
}

/// A service that runs twice. Both runs use the file $0. In the first run, some children do not detach,
/// one process detaches from a child, and one child detaches and ends. Another child detaches, writes
/// its pid to the file and kills the service. In the second run, the service reads a line and kills that
/// child, and then reads another line and ends with success. All print their pids, one after the other.
const SERVICE: &str = "
echo script: $$
if [ -e $0 ]; then
    read -r go
    kill $(cat $0)
    read -r end
    exit 0
fi
true &
(setsid true & echo script: $!; wait) &
wait
setsid true &
echo script: $!
wait
setsid sh -c 'echo $$ >$0; echo script: $$; kill $PPID; exec sleep infinity' $0 &
wait
";

/// The command that runs this program's supervisor with the service.
fn supervise<'a>(program: &'a str, file: &'a str) -> [&'a str; 7] {
    let shell = "/bin/sh";
    [program, "supervise", "--", shell, "-c", SERVICE, file]
}

/// A process that makes session leaders, on the host and in a container, until this is dropped.
struct Busy(Pid);

impl Busy {
    /// Starts it, and waits for the first of them.
    fn start(container: &Container) -> Result<Self, Failure> {
        let lead = || Ok(setsid().map(drop)?);
        let round = || {
            succeed(child::fork(|| status(lead))?)?;
            container.run(lead)
        };
        let begun = Gate::new()?;
        let maker = child::fork(|| {
            status(|| {
                round()?;
                begun.open(0)?;
                loop {
                    round()?;
                }
            })
        })?;
        begun.pass()?;
        Ok(Self(maker.into_pid()))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Only this process can reap it, so its pid is still valid.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Runs a supervisor in a container that a command makes, while the host and a sibling are busy.
/// Expects it to distinguish the service from sessions that detached from it, to start the service
/// again, and to notice no other process.
fn expect_supervisor_to_work(command: Command) -> TestResult {
    let sibling = Container::idle(ALL)?;
    let _busy = Busy::start(&sibling)?;
    let mut container = Running::start(command)?;
    let (mut numbers, mut noticed) = (Vec::new(), Vec::new());
    for line in &mut container.lines {
        let line = line?;
        if let Some(number) = line.strip_prefix("script: ") {
            numbers.push(number.to_owned());
            continue;
        }
        let is_killers_end = line.starts_with("session") && line.contains("was killed");
        let is_begin = line.ends_with("started");
        noticed.push(line);
        if is_killers_end || (is_begin && noticed.len() > 1) {
            writeln!(container.input, "go on")?;
        }
    }
    container.finish()?;
    let [first, grandchild, child, killer, second] = numbers.as_slice() else {
        let what = format!("two runs of the service, got pids {numbers:?}, noticed: {noticed:?}");
        return Err(Failure::new(what));
    };
    let expected = vec![
        format!("service {first} started"),
        format!("session {grandchild} detached from {first}"),
        format!("session {grandchild} ended with status 0"),
        format!("session {child} detached from {first}"),
        format!("session {child} ended with status 0"),
        format!("session {killer} detached from {first}"),
        format!("service {first} was killed by SIGTERM"),
        format!("service {second} started"),
        format!("session {killer} was killed by SIGTERM"),
        format!("service {second} ended with status 0"),
    ];
    expect_eq("what the supervisor noticed", noticed, expected)
}

/// Copies this program to a directory where an unprivileged user may run it.
fn install(directory: &Path) -> Result<PathBuf, Failure> {
    let program = directory.join("supervisor");
    fs::copy(env::current_exe()?, &program)?;
    Ok(program)
}

fn a_supervisor_works_in_a_bubblewrap_container() -> TestResult {
    let directory = own_directory("supervisor")?;
    let (program, file) = (install(directory.path())?, directory.path().join("killer"));
    let (program, file) = (program.to_string_lossy(), file.to_string_lossy());
    expect_supervisor_to_work(bubblewrap(&supervise(&program, &file)))
}

fn a_supervisor_works_in_an_oci_container() -> TestResult {
    let bundle = Bundle::new(&supervise("/supervisor", "/killer"))?;
    install(&bundle.root())?;
    expect_supervisor_to_work(bundle.command())
}
