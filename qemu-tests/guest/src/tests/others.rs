// SPDX-License-Identifier: GPL-2.0
//! Libraries and tests of other projects (C64), unchanged, on the host and in a container: pyroute2,
//! vishvananda/netlink's own test, the proc-connector crate's own tests, the kernel's selftest
//! proc_filter, and stress-ng. scripts/clients.sh lists what set-up installs of them, and
//! scripts/selftests builds the selftest. LTP's cn_pec is not tested, since no package contains it.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use crate::child::{self, own_pid};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::support::container::{ALL, Container, keep_mounts, mount_own_proc};
use crate::support::proc_filter::about;
use crate::support::program::{RunningProgram, provided, run};
use crate::support::stock::NO_NETWORK_NAMESPACES;
use crate::test;
use crate::timeouts;

pub const TESTS: &[Test] = &Declaration::new().limit(LIMIT).covers(&[Line::C64]).of([
    test!(pyroute2_follows_a_process[host](on_the_host)).covers(&[Line::C15]),
    test!(pyroute2_follows_a_process[container](in_container))
        .stock_fails(NO_NETWORK_NAMESPACES)
        .covers(&[Line::C21, Line::C23]),
    test!(vishvananda_netlink_passes_its_test[host](on_the_host)).covers(&[Line::C15]),
    test!(vishvananda_netlink_passes_its_test[container](in_container))
        .stock_fails(NO_NETWORK_NAMESPACES)
        .covers(&[Line::C21, Line::C23]),
    test!(proc_connector_passes_its_tests[host](on_the_host)),
    test!(proc_connector_passes_its_tests[container](in_container))
        .stock_fails(NO_NETWORK_NAMESPACES)
        .covers(&[Line::C23]),
    test!(proc_filter_shows_what_it_asked_for[host](on_the_host)).covers(&[Line::C15, Line::C16]),
    test!(proc_filter_shows_what_it_asked_for[container](in_container))
        .stock_fails(NO_NETWORK_NAMESPACES)
        .covers(&[Line::C21, Line::C23]),
    test!(the_kernels_selftest_passes[host](on_the_host))
        .not_on_stock(NO_SELFTEST)
        .covers(&[Line::C50, Line::C52, Line::C54, Line::C55]),
    test!(the_kernels_selftest_passes[container](in_container))
        .not_on_stock(NO_SELFTEST)
        .covers(&[Line::C21, Line::C23]),
    test!(stress_ng_gets_its_events[host](on_the_host)),
    test!(stress_ng_gets_its_events[container](in_container))
        .stock_fails(NO_NETWORK_NAMESPACES)
        .covers(&[Line::C23]),
]);

const NO_SELFTEST: &str = "the series adds it, and it skips all its tests without a handler";

const LIMIT: Duration = Duration::from_secs(120);

/// How long a program may take. Libraries of many files, and Python, take a while to load.
const PROGRAM_LIMIT: Duration = Duration::from_secs(110);

/// The limit for programs that accept one, so that they can report the timeout. Each run waits for
/// this long on the stock kernel, where vishvananda/netlink gets no event in a container.
const OWN_LIMIT: Duration = Duration::from_secs(30);

/// Where a container finds a program: root of the container may not enter the host root's directories.
const PLACE: &str = "/run/proc-events-client";

/// A selftest of the kernel. scripts/selftests puts it where the harness is built.
fn selftest(name: &str) -> Result<PathBuf, Failure> {
    let program = env::current_exe()?.with_file_name(name);
    expect(
        program.is_file(),
        format!("{}, which scripts/selftests builds", program.display()),
    )?;
    Ok(program)
}

/// Runs a program, and checks the result.
type Client = fn(&Path) -> TestResult;

/// Where a client runs.
type Place = fn(&Path, Client) -> TestResult;

fn on_the_host(program: &Path, function: Client) -> TestResult {
    function(program)
}

/// Runs a function in a container, with the path that the program has there. The parent of the
/// program's directory is mounted in the container, with all that the program may need.
fn in_container(program: &Path, function: Client) -> TestResult {
    let nothing: Option<&str> = None;
    let outside = |what: &str| Failure::new(format!("{} {what}", program.display()));
    let directory = program.parent().and_then(Path::parent);
    let directory = directory.ok_or_else(|| outside("is not in two directories"))?;
    let place = Path::new(PLACE);
    unshare(CloneFlags::CLONE_NEWNS)?;
    keep_mounts()?;
    let (tmpfs, plain) = (Some("tmpfs"), MsFlags::empty());
    mount(tmpfs, "/run", tmpfs, plain, Some("mode=755"))?;
    fs::create_dir(place)?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    mount(Some(directory), place, nothing, MsFlags::MS_BIND, nothing)?;
    let inside = place.join(program.strip_prefix(directory)?);
    Container::start(ALL | CloneFlags::CLONE_NEWNS, || {
        keep_mounts()?;
        mount_own_proc()?;
        // Like a first process that exec(2) started: others may look at its namespaces.
        prctl::set_dumpable(true)?;
        function(&inside)
    })?
    .finish()
}

#[track_caller]
fn expect_said(said: &str, what: &str) -> TestResult {
    expect(said.contains(what), format!("{what:?} in:\n{said}"))
}

/// Listens through the library, makes a process whose numbers it knows, and prints the events about
/// it. It never stops listening: the library waits for an answer to that request, and the stock
/// kernel sends none.
const PYTHON: &str = r#"
import os
from pyroute2.netlink.connector.cn_proc import ProcEventSocket

NUMBERS = ("parent_pid", "parent_tgid", "child_pid", "child_tgid", "process_pid", "process_tgid",
           "exit_code", "exit_signal")
names = {os.getpid(): "parent"}

def word(name, number):
    """A process by its name; other numbers as they are."""
    return str(names.get(number, number) if name.endswith("id") else number)

def show(events):
    """Prints events. Returns whether the child has ended. Others' events may come in between."""
    ended = False
    for event in events:
        if event["event"] == "PROC_EVENT_NONE":
            print("answer", event["ack"])
        elif names.get(event.get("child_pid") or event.get("process_pid")) == "child":
            words = [word(name, event[name]) for name in NUMBERS if name in event.keys()]
            print(event["event"], event["ack"], *words)
            ended = event["event"] == "PROC_EVENT_EXIT"
    return ended

with ProcEventSocket() as socket:
    socket.bind()
    show(socket.control(listen=True))
    child = os.fork()
    if child == 0:
        os.setsid()
        os.execlp("sh", "sh", "-c", "exit 7")
    names[child] = "child"
    os.waitpid(child, 0)
    while not show(socket.get(msg_seq=-1)):
        pass
"#;

/// What the script prints.
const PYTHON_SAYS: &str = "answer 1
PROC_EVENT_FORK 0 parent parent child child
PROC_EVENT_SID 0 child child
PROC_EVENT_EXEC 0 child child
PROC_EVENT_EXIT 0 parent parent child child 1792 17
";

fn pyroute2(python: &Path) -> TestResult {
    expect_eq(
        "output",
        run(python, &["-u", "-c", PYTHON], PROGRAM_LIMIT)?.as_str(),
        PYTHON_SAYS,
    )
}

fn pyroute2_follows_a_process(run_client: Place) -> TestResult {
    run_client(&provided("python-pyroute2")?, pyroute2)
}

/// Its test makes a process, and expects fork, exec and exit with the numbers of that process.
fn vishvananda_netlink(program: &Path) -> TestResult {
    let limit = format!("{}s", timeouts::scaled(OWN_LIMIT).as_secs());
    let said = run(
        program,
        &[
            "-test.v",
            "-test.timeout",
            &limit,
            "-test.run",
            "^TestSubscribeProcEvent$",
        ],
        PROGRAM_LIMIT,
    )?;
    expect_said(&said, "--- PASS: TestSubscribeProcEvent ")
}

fn vishvananda_netlink_passes_its_test(run_client: Place) -> TestResult {
    run_client(&provided("netlink-go-test")?, vishvananda_netlink)
}

/// Its tests expect an exec, and the answers to requests.
fn proc_connector(program: &Path) -> TestResult {
    let said = run(program, &["--ignored", "--test-threads=1"], PROGRAM_LIMIT)?;
    for test in ["test_receive_exec_event", "test_subscribe_unsubscribe"] {
        expect_said(&said, &format!("test {test} ... ok\n"))?;
    }
    Ok(())
}

fn proc_connector_passes_its_tests(run_client: Place) -> TestResult {
    run_client(&provided("proc-connector-test")?, proc_connector)
}

/// Runs a process in a session of its own that ends with this status. Returns its pid.
fn end_with(status: i32) -> Result<i32, Failure> {
    let child = child::fork(|| setsid().map_or(1, |_| status))?;
    let pid = child.pid().as_raw();
    child.wait()?;
    Ok(pid)
}

/// Starts proc_filter with line-buffered output, and waits until it listens.
fn start_proc_filter(words: &[&str]) -> Result<RunningProgram, Failure> {
    let program = RunningProgram::start(&[&["stdbuf", "-oL"], words].concat())?;
    program.wait_until_it_listens()?;
    Ok(program)
}

fn shows_what_it_asked_for(program: &Path) -> TestResult {
    let program = program.to_string_lossy();
    let own = own_pid();

    let mut all = start_proc_filter(&[&program])?;
    let pid = end_with(3)?;
    let exit = format!("# Exit process {pid} (tgid {pid}) with code 768, signal 17");
    all.wait_for(&exit)?;
    all.wait_until_it_listens()?;
    let said = all.stop(Signal::SIGINT)?;
    let fork = format!("# Fork process {pid} (tgid {pid}), parent {own} (tgid {own})");
    let sid = format!("# SID process {pid} (tgid {pid})");
    expect_eq("all", about(&said, pid), vec![&*fork, &*sid, &*exit])?;
    expect_said(&said, "Done total count: ")?;

    let mut failures = start_proc_filter(&[&program, "-f"])?;
    let (good, bad) = (end_with(0)?, end_with(3)?);
    let exit = format!("# Exit process {bad} (tgid {bad}) with code 768, signal 17");
    failures.wait_for(&exit)?;
    failures.wait_until_it_listens()?;
    let said = failures.stop(Signal::SIGINT)?;
    expect_eq("failures", about(&said, bad), vec![&*exit])?;
    expect_eq("successes", about(&said, good), vec![])?;
    expect_said(&said, "Done total count: ")
}

fn proc_filter_shows_what_it_asked_for(run_client: Place) -> TestResult {
    run_client(&selftest("proc_filter")?, shows_what_it_asked_for)
}

/// Runs the selftest, and expects that it passes every test and skips none.
fn passes(program: &Path) -> TestResult {
    let said = run(program, &[], PROGRAM_LIMIT)?;
    expect_said(&said, " fail:0 xfail:0 xpass:0 skip:0 error:0")
}

fn the_kernels_selftest_passes(run_client: Place) -> TestResult {
    run_client(&selftest("proc_events")?, passes)
}

/// How many events stress-ng has to get. It also succeeds if it gets none before its time is up.
const EVENTS: u64 = 50;

fn stress_ng(program: &Path) -> TestResult {
    let limit = timeouts::scaled(OWN_LIMIT).as_secs().to_string();
    let events = EVENTS.to_string();
    let said = run(
        program,
        &[
            "--netlink-proc",
            "1",
            "--netlink-proc-ops",
            &events,
            "--timeout",
            &limit,
            "--metrics-brief",
            "--temp-path",
            "/tmp",
        ],
        PROGRAM_LIMIT,
    )?;
    // The count follows the name of the stressor.
    let count = said.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| *word == "netlink-proc")?;
        words.next()?.parse::<u64>().ok()
    });
    expect(
        count.is_some_and(|count| count >= EVENTS),
        format!("{EVENTS} events, stress-ng printed:\n{said}"),
    )
}

fn stress_ng_gets_its_events(run_client: Place) -> TestResult {
    run_client(&provided("stress-ng")?, stress_ng)
}
