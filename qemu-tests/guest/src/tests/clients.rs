// SPDX-License-Identifier: GPL-2.0
//! Existing programs, unmodified.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::child;
use crate::cpus::{cpus, pin};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::support::directory::Directory;
use crate::support::program::RunningProgram;
use crate::test;

pub const TESTS: &[Test] = &Declaration::new().limit(LIMIT).of([
    test!(forkstat_shows_fork_sid_exec_and_exit).covers(&[
        Line::C1,
        Line::C7,
        Line::C8,
        Line::C11,
        Line::C15,
    ]),
    test!(extrace_shows_each_program_and_its_status).covers(&[Line::C5, Line::C8, Line::C15]),
    test!(pwait_shows_how_a_process_ended).covers(&[Line::C5, Line::C15]),
    test!(cgrulesengd_moves_a_program_into_its_cgroup).covers(&[Line::C2, Line::C18]),
    test!(keepalived_tracks_a_process).covers(&[Line::C4, Line::C5, Line::C19]),
]);

const LIMIT: Duration = Duration::from_secs(30);

fn forkstat_shows_fork_sid_exec_and_exit() -> TestResult {
    // With -l, it prints each line immediately. It shows sid only together with uid.
    let mut forkstat = Command::new("forkstat")
        .args(["-l", "-e", "sid,uid,fork,exec,exit"])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::skip(format!("cannot run forkstat: {error}")))?;
    let stop = Pid::from_raw(forkstat.id() as i32);
    let output = forkstat
        .stdout
        .take()
        .ok_or_else(|| Failure::new("no output"))?;
    let mut lines = BufReader::new(output).lines();
    // When it prints the headline, it already listens.
    let headline = lines
        .next()
        .ok_or_else(|| Failure::new("forkstat printed nothing"))??;
    expect(
        headline.contains("Event"),
        format!("a headline, got {headline:?}"),
    )?;
    let mut shell = Command::new("setsid").arg("true").spawn()?;
    let pid = shell.id().to_string();
    let mut seen: Vec<String> = Vec::new();
    for line in lines {
        let line = line?;
        let words: Vec<_> = line.split_whitespace().collect();
        if let [_time, kind, subject, ..] = words.as_slice() {
            if *subject == pid {
                seen.push((*kind).to_owned());
            }
        }
        if seen.last().is_some_and(|kind| kind == "exit") {
            break;
        }
    }
    expect(shell.wait()?.success(), "setsid to succeed")?;
    kill(stop, Signal::SIGINT)?;
    forkstat.wait()?;
    for kind in ["fork", "exec", "sid", "exit"] {
        expect(
            seen.iter().any(|seen| seen == kind),
            format!("a line {kind} about {pid}, got {seen:?}"),
        )?;
    }
    Ok(())
}

/// Expects no complaint of a client that looks for gaps in the sequence numbers.
#[track_caller]
fn expect_no_gap(said: &str) -> TestResult {
    for complaint in ["out of order", "Missed", "ENOBUFS", "No buffer space"] {
        expect(
            !said.contains(complaint),
            format!("no {complaint:?} in:\n{said}"),
        )?;
    }
    Ok(())
}

/// Makes processes on all CPUs, so that the sequence numbers of each CPU advance.
fn make_processes() -> TestResult {
    for cpu in cpus()? {
        pin(cpu)?;
        for _ in 0..20 {
            child::fork(|| 0)?.wait()?;
        }
    }
    Ok(())
}

/// extrace runs a command itself as soon as it listens, and follows the command's descendants.
fn extrace_shows_each_program_and_its_status() -> TestResult {
    const TIMES: usize = 20;
    // extrace ends with the shell, even if it has not received all exits: the shell waits until it has.
    let directory = Directory::new("client")?;
    let go_on = directory.path().join("go-on");
    mkfifo(&go_on, Mode::S_IRWXU)?;
    let script = format!(
        "for i in $(seq {TIMES}); do /bin/true extraced $i; done; setsid false x; read line <{}",
        go_on.display()
    );
    let mut extrace =
        RunningProgram::start(&["stdbuf", "-oL", "extrace", "-f", "-t", "sh", "-c", &script])?;
    extrace.wait_for("exited status=1")?;
    fs::write(&go_on, "\n")?;
    let (said, _) = extrace.wait()?;
    expect_no_gap(&said)?;
    for number in 1..=TIMES {
        let command = format!("/bin/true extraced {number}\n");
        expect_eq(
            &format!("lines {command:?}"),
            said.matches(&command).count(),
            1,
        )?;
    }
    Ok(())
}

fn pwait_shows_how_a_process_ended() -> TestResult {
    let end = child::Gate::new()?;
    let process = child::fork(|| end.pass().unwrap_or(1))?;
    let pid = process.pid().to_string();
    let pwait = RunningProgram::start(&["pwait", "-v", &pid])?;
    pwait.wait_until_it_listens()?;
    make_processes()?;
    end.open(7)?;
    process.wait()?;
    let (said, _) = pwait.wait()?;
    expect_no_gap(&said)?;
    let expected = format!("{pid}: exited with status 7.");
    expect(
        said.contains(&expected),
        format!("{expected:?}, got {said:?}"),
    )
}

/// A hierarchy of control groups without controllers, which needs no kernel option.
struct Hierarchy(PathBuf);

impl Hierarchy {
    fn mount(directory: &Path, name: &str) -> Result<Self, Failure> {
        let options = format!("none,name={name}");
        let (none, kind) = (Some("none"), Some("cgroup"));
        mount(
            none,
            directory,
            kind,
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(Self(directory.to_owned()))
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

fn cgrulesengd_moves_a_program_into_its_cgroup() -> TestResult {
    let directory = Directory::new("client")?;
    let mounted = directory.path().join("hierarchy");
    fs::create_dir(&mounted)?;
    let _hierarchy = Hierarchy::mount(&mounted, "rules")?;
    fs::create_dir(mounted.join("ruled"))?;
    // The daemon reads only these files, which are the guest's own copies.
    fs::write("/etc/cgrules.conf", "*:sleep name=rules ruled\n")?;
    fs::write("/etc/cgconfig.conf", "")?;
    fs::create_dir_all("/etc/cgconfig.d")?;
    let mut daemon = RunningProgram::start(&["cgrulesengd", "-d"])?;
    daemon.wait_for("Message sent")?;
    daemon.wait_until_it_listens()?;
    let mut ruled = Command::new("sleep").arg("1000").spawn()?;
    let pid = ruled.id();
    daemon.wait_for(&format!("Cgroup change for PID: {pid},"))?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ruled.kill()?;
    ruled.wait()?;
    expect(
        groups.contains(":name=rules:/ruled\n"),
        format!("the process in its cgroup, got {groups:?}"),
    )?;
    expect_no_gap(&daemon.stop(Signal::SIGTERM)?)
}

/// Assigns an address to the guest's interface, which leads nowhere.
fn set_up_interface() -> TestResult {
    let commands = ["addr add 192.0.2.1/24 dev eth0", "link set eth0 up"];
    for command in commands {
        let mut ip = Command::new("busybox");
        let status = ip.arg("ip").args(command.split(' ')).status()?;
        expect(status.success(), format!("ip {command} to succeed"))?;
    }
    Ok(())
}

const KEEPALIVED_CONFIGURATION: &str = "
global_defs {
    router_id test
}
vrrp_track_process tracked {
    process sleep 12345
    weight 10
}
vrrp_instance test {
    state BACKUP
    interface eth0
    virtual_router_id 51
    priority 100
    unicast_src_ip 192.0.2.1
    unicast_peer {
        192.0.2.2
    }
    track_process {
        tracked
    }
}
";

fn keepalived_tracks_a_process() -> TestResult {
    set_up_interface()?;
    let directory = Directory::new("client")?;
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (configuration, pid, vrrp_pid) = (path("conf"), path("pid"), path("vrrp.pid"));
    fs::write(&configuration, KEEPALIVED_CONFIGURATION)?;
    let words = [
        "keepalived",
        "--dont-fork",
        "--log-console",
        "--log-detail",
        "--vrrp",
        "--use-file",
        &configuration,
        "--pid",
        &pid,
        "--vrrp_pid",
        &vrrp_pid,
    ];
    let mut keepalived = RunningProgram::start(&words)?;
    keepalived.wait_for("proc_events has confirmed it is configured")?;
    for _ in 0..2 {
        let mut tracked = Command::new("sleep").arg("12345").spawn()?;
        keepalived.wait_for("Quorum gained for tracked process tracked")?;
        make_processes()?;
        tracked.kill()?;
        tracked.wait()?;
        keepalived.wait_for("Quorum lost for tracked process tracked")?;
    }
    expect_no_gap(&keepalived.stop(Signal::SIGTERM)?)
}
