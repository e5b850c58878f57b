// SPDX-License-Identifier: GPL-2.0
//! Containers as they are used: real ones, and many at once.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::container::{ALL, Container, NET, PID, expect_exactly, open, succeed};
use super::counting::expect_count;
use super::namespaces_lifetimes::Account;
use crate::child::{self, Gate, own_pid};
use crate::harness::{Failure, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::listing::Listing;
use crate::test;
use crate::wire::{Event, LISTEN, Task, mask};

pub const TESTS: &[Test] = &[
    test!(forkstat_follows_a_bubblewrap_container)
        .covers(&["C21", "C22", "C23"])
        .stock_fails(REFUSED)
        .limit(Duration::from_secs(60)),
    test!(forkstat_follows_an_oci_container)
        .covers(&["C21", "C22", "C23"])
        .stock_fails(REFUSED)
        .limit(Duration::from_secs(60)),
    test!(two_hundred_containers_get_their_own_events)
        .covers(&["C21", "C22", "C25", "C30"])
        .stock_fails(REFUSED)
        .limit(Duration::from_secs(120)),
];

const REFUSED: &str = "LISTEN from another network namespace is refused";

const CONTAINERS: usize = 200;

/// Processes that each container makes.
const FORKS: i32 = 5;

/// How long all containers together may take for a step.
const ALL_LIMIT: Duration = Duration::from_secs(60);

/// The handshakes between the containers and the test.
struct Cues {
    listening: Gate,
    begin: Gate,
    done: Gate,
    end: Gate,
}

/// What happens in each of the containers.
fn fork_and_listen(cues: &Cues) -> TestResult {
    let mut listener = open()?;
    let requested = listener.request(&[LISTEN, mask::FORK | mask::EXIT]);
    cues.listening.open(i32::from(requested.is_err()))?;
    requested?;
    cues.begin.pass_within(ALL_LIMIT)?;
    let parent = Task::leader(own_pid());
    let mut expected = Vec::new();
    for number in 0..FORKS {
        let process = child::fork(|| number)?;
        let child = Task::leader(process.pid().as_raw());
        process.wait()?;
        // The first process of a pid namespace is 1, and its children follow.
        expect_eq("own numbers", (parent.pid, child.pid), (1, 2 + number))?;
        expected.push(Event::Fork { parent, child });
        expected.push(Event::Exit {
            task: child,
            code: (number as u32) << 8,
            signal: Signal::SIGCHLD as u32,
            parent,
        });
    }
    expect_exactly("inside", &mut listener, &expected, |_| true)?;
    cues.done.open(0)?;
    cues.end.pass_within(ALL_LIMIT)?;
    let nothing: &[Event] = &[];
    expect_exactly("inside, at the end", &mut listener, nothing, |_| true)
}

fn two_hundred_containers_get_their_own_events() -> TestResult {
    let account = Account::new()?;
    let cues = Cues {
        listening: Gate::new()?,
        begin: Gate::new()?,
        done: Gate::new()?,
        end: Gate::new()?,
    };
    let made = Gate::new()?;
    let maker = account.spawn(|| {
        let mut containers = Vec::new();
        for _ in 0..CONTAINERS {
            let container = Container::start(PID | NET, || fork_and_listen(&cues))?;
            made.open(container.task().pid)?;
            containers.push(container);
        }
        containers.into_iter().try_for_each(Container::finish)
    })?;
    let mut firsts = BTreeSet::new();
    for _ in 0..CONTAINERS {
        expect_eq("errors of LISTEN", cues.listening.pass()?, 0)?;
        firsts.insert(made.pass()?);
    }
    let mut outside = Listener::listen(mask::FORK | mask::EXIT)?;
    (0..CONTAINERS).try_for_each(|_| cues.begin.open(0))?;
    (0..CONTAINERS).try_for_each(|_| cues.done.pass_within(ALL_LIMIT).map(drop))?;
    expect_accounts()?;
    expect_all_outside(&mut outside, &firsts)?;
    (0..CONTAINERS).try_for_each(|_| cues.end.open(0))?;
    succeed(maker)?;
    expect_count(1)?;
    drop(outside);
    expect_count(0)?;
    account.expect_nothing_left()
}

/// Expects the kernel's accounts of the containers' listeners to be what each of them got.
fn expect_accounts() -> TestResult {
    let listing = Listing::read()?;
    expect_eq("listeners", listing.count, CONTAINERS + 1)?;
    // The test is in the initial pid namespace, the only one in which it is alone.
    let own = fs::read_link("/proc/self/ns/pid")?;
    let own = own.to_string_lossy().into_owned();
    let inside: Vec<_> = listing
        .lines
        .iter()
        .filter(|line| format!("pid:[{}]", line.pid_ns) != own)
        .collect();
    let pid_namespaces: BTreeSet<_> = inside.iter().map(|line| line.pid_ns).collect();
    let net_namespaces: BTreeSet<_> = inside.iter().map(|line| line.net_ns).collect();
    expect_eq("pid namespaces", pid_namespaces.len(), CONTAINERS)?;
    expect_eq("network namespaces", net_namespaces.len(), CONTAINERS)?;
    for line in inside {
        let events = 2 * FORKS as u64;
        expect_eq("delivered, lost", (line.delivered, line.lost), (events, 0))?;
    }
    Ok(())
}

/// Expects the events of all containers outside, in the numbers outside.
fn expect_all_outside(outside: &mut Listener, firsts: &BTreeSet<i32>) -> TestResult {
    let events = super::container::events(outside)?;
    for first in firsts {
        let parent = Task::leader(*first);
        let mut forked = BTreeSet::new();
        let mut exited = BTreeSet::new();
        for event in &events {
            match *event {
                Event::Fork { parent: of, child } if of == parent => {
                    forked.insert(child.pid);
                }
                Event::Exit {
                    task, parent: of, ..
                } if of == parent => {
                    exited.insert(task.pid);
                }
                _ => {}
            }
        }
        expect_eq("forks of a container", forked.len(), FORKS as usize)?;
        expect_eq("exits of a container", exited, forked)?;
    }
    Ok(())
}

/// A user without rights.
const NOBODY: u32 = 1000;

/// What runs in a container: forkstat, and what it is to follow. It tells forkstat's number, the
/// number of the process that the events are about, and that of the last process of all; it reads
/// when to go on, and then forkstat's number to end it.
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

/// Processes that the host and the sibling make meanwhile.
const BUSY: usize = 20;

/// Runs [`SCRIPT`] in a container that a command makes, and expects forkstat to show what happens
/// in it, and nothing of a busy host and a busy sibling.
fn expect_forkstat_to_follow(mut container: Command) -> TestResult {
    let name = container.get_program().to_string_lossy().into_owned();
    let sibling = Container::idle(ALL)?;
    let mut container = container
        .uid(NOBODY)
        .gid(NOBODY)
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(format!("cannot run {name}: {error}")))?;
    let (input, output) = (container.stdin.take(), container.stdout.take());
    let (Some(mut input), Some(output)) = (input, output) else {
        return Err(Failure::new("no pipes to the container"));
    };
    let mut lines = BufReader::new(output).lines();
    let watcher = lines.next().transpose()?.unwrap_or_default();
    let watcher = watcher.strip_prefix("watcher ").unwrap_or_default();
    // The headline is printed when it listens already.
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
            // A second line to somebody who has read the first does no harm.
            writeln!(input, "{watcher}")?;
        }
    }
    let ended = container.wait()?;
    expect(ended.success(), format!("{name} to succeed, got {ended}"))?;
    let (Some(subject), Some(last)) = (subject, last) else {
        return Err(Failure::new(format!("the script did not run: {seen:?}")));
    };
    for kind in ["fork", "exec", "sid", "exit"] {
        expect(
            seen.contains(&(kind.to_owned(), subject)),
            format!("a line {kind} about {subject}, got {seen:?}"),
        )?;
    }
    // The container's numbers end before the host's busy processes began.
    expect(
        busy.iter().all(|pid| *pid > last),
        format!("numbers outside above {last}, got {busy:?}"),
    )?;
    let foreign: Vec<_> = seen.iter().filter(|(_, pid)| *pid > last).collect();
    expect_eq("events of others", foreign, vec![])
}

fn forkstat_follows_a_bubblewrap_container() -> TestResult {
    let mut bubblewrap = Command::new("bwrap");
    bubblewrap
        .args(["--unshare-all", "--uid", "0", "--gid", "0"])
        .args(["--dev-bind", "/", "/", "--proc", "/proc"])
        .args(["--die-with-parent", "/bin/sh", "-c", SCRIPT]);
    expect_forkstat_to_follow(bubblewrap)
}

/// A directory of its own, which goes when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Result<Self, Failure> {
        let directory = Self(env::temp_dir().join(format!("{name}-{}", own_pid())));
        fs::create_dir(&directory.0)?;
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left is in the guest alone, which ends soon.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes an OCI bundle that runs [`SCRIPT`] on the host's programs.
fn make_bundle(bundle: &Path) -> TestResult {
    let root = bundle.join("rootfs");
    fs::create_dir(&root)?;
    for directory in ["usr", "etc", "proc", "dev", "tmp"] {
        fs::create_dir(root.join(directory))?;
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        symlink(format!("usr/{link}"), root.join(link))?;
    }
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
            "args": ["/bin/sh", "-c", SCRIPT],
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
            "uidMappings": [{"containerID": 0, "hostID": NOBODY, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": NOBODY, "size": 1}],
        },
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(())
}

fn forkstat_follows_an_oci_container() -> TestResult {
    let bundle = Directory::new("bundle")?;
    make_bundle(&bundle.0)?;
    let state = Directory::new("state")?;
    for directory in [&bundle.0, &bundle.0.join("rootfs"), &state.0] {
        chown(directory, Some(NOBODY), Some(NOBODY))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    let mut runtime = Command::new("crun");
    runtime
        .arg("--root")
        .arg(&state.0)
        .args(["--cgroup-manager", "disabled", "run", "--bundle"])
        .arg(&bundle.0)
        .arg("proc-events");
    expect_forkstat_to_follow(runtime)
}
