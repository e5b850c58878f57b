// SPDX-License-Identifier: GPL-2.0
//! Containers: processes in namespaces of their own.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use netlink_sys::Socket;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::sysinfo::sysinfo;
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

use super::descriptors::{receive_descriptor, send_descriptors};
use super::process::{pause_for_ever, status, succeed};
use super::sessions::status_of;
use crate::child::{self, Child, Gate};
use crate::harness::{Failure, TestResult, expect_eq};
use crate::listener::{EVENT_LIMIT, Listener};
use crate::proc_stat::{processes, threads_of};
use crate::timeouts;
use crate::wire::{LISTEN, Task};

/// The kinds of namespaces that a kernel may lack, with their names in /proc and their options.
const KINDS: [(CloneFlags, &str, &str); 3] = [
    (PID, "pid", "CONFIG_PID_NS"),
    (NET, "net", "CONFIG_NET_NS"),
    (USER, "user", "CONFIG_USER_NS"),
];

/// A pid namespace of its own.
pub const PID: CloneFlags = CloneFlags::CLONE_NEWPID;

/// A network namespace of its own.
pub const NET: CloneFlags = CloneFlags::CLONE_NEWNET;

/// A user namespace of its own.
pub const USER: CloneFlags = CloneFlags::CLONE_NEWUSER;

/// The namespaces that a container usually has.
pub const ALL: CloneFlags = PID.union(NET).union(USER);

/// One in this many bytes of the memory has to be free for another container.
const RESERVE: u64 = 8;

/// Whether there is memory for another container.
pub fn is_room() -> nix::Result<bool> {
    let info = sysinfo()?;
    Ok(info.ram_unused() > info.ram_total() / RESERVE)
}

/// The kinds of namespaces among these that the kernel lacks, each with its option.
fn lacks(kinds: CloneFlags) -> impl Iterator<Item = (CloneFlags, &'static str)> {
    let exists = |name: &str| Path::new("/proc/self/ns").join(name).exists();
    KINDS
        .into_iter()
        .filter(move |(kind, name, _)| kinds.contains(*kind) && !exists(name))
        .map(|(kind, _, option)| (kind, option))
}

/// The option that the kernel lacks for one of these kinds of namespaces.
pub fn lacking(kinds: CloneFlags) -> Option<&'static str> {
    lacks(kinds).map(|(_, option)| option).next()
}

/// The kinds of namespaces among these that the kernel has.
pub fn available(kinds: CloneFlags) -> CloneFlags {
    lacks(kinds).fold(kinds, |kinds, (kind, _)| kinds.difference(kind))
}

/// Skips a test that needs a kind of namespaces that the kernel lacks.
#[track_caller]
pub fn require(kinds: CloneFlags) -> TestResult {
    match lacking(kinds) {
        Some(option) => Err(Failure::skip(format!("the kernel has no {option}"))),
        None => Ok(()),
    }
}

/// In a user namespace that root made, the id outside that is 0 inside.
pub const FIRST_ID: u32 = 100_000;

/// How many ids are mapped from there on.
pub const IDS: u32 = 1000;

/// A process in namespaces of its own. In a pid namespace, it is the first. Dropping kills it.
pub struct Container {
    init: Option<Child>,
    pidfd: OwnedFd,
    kinds: CloneFlags,
    pid: Pid,
}

impl Container {
    /// Starts a function in new namespaces. In a user namespace it is root.
    #[track_caller]
    pub fn start(
        kinds: CloneFlags,
        function: impl FnOnce() -> TestResult,
    ) -> Result<Self, Failure> {
        require(kinds)?;
        let mapped = Gate::new()?;
        let init = child::clone_with(kinds.bits() | libc::SIGCHLD, || {
            status(|| {
                mapped.pass()?;
                become_root(kinds)?;
                function()
            })
        })?;
        let container = Self {
            pidfd: child::pidfd(init.pid())?,
            pid: init.pid(),
            init: Some(init),
            kinds,
        };
        if kinds.contains(USER) {
            let map = format!("0 {FIRST_ID} {IDS}");
            fs::write(container.proc("uid_map"), &map)?;
            fs::write(container.proc("gid_map"), &map)?;
        }
        mapped.open(0)?;
        Ok(container)
    }

    /// Starts a container whose first process does nothing.
    pub fn idle(kinds: CloneFlags) -> Result<Self, Failure> {
        let ready = Gate::new()?;
        let container = Self::start(kinds, || {
            ready.open(0)?;
            pause_for_ever()
        })?;
        ready.pass()?;
        Ok(container)
    }

    /// Its first process, as the caller numbers it.
    pub fn task(&self) -> Task {
        Task::leader(self.pid.as_raw())
    }

    /// A file of the first process in /proc.
    pub fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// Starts a function in a new process of the container, whose parent is outside.
    ///
    /// The returned process is outside, and ends as the one inside does.
    pub fn spawn(&self, function: impl FnOnce() -> TestResult) -> Result<Child, Failure> {
        self.spawn_in(self.kinds, function)
    }

    /// Like [`Self::spawn`], in some of the container's namespaces.
    pub fn spawn_in(
        &self,
        kinds: CloneFlags,
        function: impl FnOnce() -> TestResult,
    ) -> Result<Child, Failure> {
        Ok(child::fork(|| {
            status(|| {
                self.enter(kinds)?;
                succeed(child::fork(|| status(function))?)
            })
        })?)
    }

    /// Enters some of the container's namespaces. Only the caller's later children are in an
    /// entered pid namespace.
    pub fn enter(&self, kinds: CloneFlags) -> TestResult {
        // setns(2) does not accept an empty set of namespaces.
        if !kinds.is_empty() {
            setns(&self.pidfd, kinds)?;
        }
        Ok(become_root(kinds)?)
    }

    /// Runs a function in a new process of the container, whose parent is outside.
    pub fn run(&self, function: impl FnOnce() -> TestResult) -> TestResult {
        succeed(self.spawn(function)?)
    }

    /// A listener that a process inside opened, and that the caller reads.
    pub fn listen(&self, mask: u32) -> Result<Listener, Failure> {
        self.listen_by(&[LISTEN, mask])
    }

    /// The same, with this request.
    pub fn listen_by(&self, words: &[u32]) -> Result<Listener, Failure> {
        let handover = Handover::new()?;
        self.run(|| handover.listen(words))?;
        handover.receive()
    }

    /// Waits for the end of the first process, which has to succeed.
    pub fn finish(mut self) -> TestResult {
        match self.init.take() {
            Some(init) => succeed(init),
            None => Ok(()),
        }
    }

    /// Waits for the end of the first process. Returns its status, as wait(2) encodes it.
    pub fn wait(mut self) -> Result<u32, Failure> {
        let init = self.init.take();
        status_of(init.ok_or_else(|| Failure::new("a first process that was not waited for"))?)
    }

    /// Kills the first process, and with it all others of its pid namespace.
    pub fn kill(mut self) -> TestResult {
        if let Some(init) = self.init.take() {
            kill(self.pid, Signal::SIGKILL)?;
            init.wait()?;
        }
        Ok(())
    }

    /// The pid, in the caller's pid namespace, of the container's thread that has this pid inside.
    pub fn outer(&self, inner: i32) -> Result<i32, Failure> {
        let own = fs::read_link(self.proc("ns/pid"))?;
        for (pid, numbers) in threads()? {
            let same = fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == own);
            if same && numbers.last() == Some(&inner) {
                return Ok(numbers[0]);
            }
        }
        Err(Failure::new(format!("the container has no thread {inner}")))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(init) = self.init.take() {
            // Only this process reaps it, so that its pid is still its own.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = init.wait();
        }
    }
}

/// Opens a socket with the largest receive buffer that the caller may have.
pub fn open() -> Result<Listener, Failure> {
    // The large buffer needs rights in the initial user namespace.
    Ok(Listener::open().or_else(|_| Listener::open_unprivileged())?)
}

/// Becomes root in a user namespace that was just entered.
fn become_root(kinds: CloneFlags) -> nix::Result<()> {
    if !kinds.contains(USER) {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

/// A user without rights.
pub const UNPRIVILEGED: u32 = 1000;

/// Becomes a user without rights, makes namespaces, one of them a user namespace, and becomes root in
/// them. In a new pid namespace, the next child is the first process.
pub fn become_unprivileged_in(kinds: CloneFlags) -> TestResult {
    let (user, group) = (Uid::from_raw(UNPRIVILEGED), Gid::from_raw(UNPRIVILEGED));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    unshare(kinds)?;
    become_root_as(UNPRIVILEGED)
}

/// Maps root to this id outside, in a user namespace that this process has just made.
pub fn become_root_as(id: u32) -> TestResult {
    // After a change of ids, /proc/self belongs to the host's root.
    prctl::set_dumpable(true)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {id} 1"))?;
    Ok(fs::write("/proc/self/gid_map", format!("0 {id} 1"))?)
}

/// Keeps later mounts in this mount namespace.
pub fn keep_mounts() -> nix::Result<()> {
    let nothing: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)
}

/// Makes /proc show this pid namespace.
pub fn mount_own_proc() -> nix::Result<()> {
    let (proc, nothing) = (Some("proc"), None::<&str>);
    mount(proc, "/proc", proc, MsFlags::empty(), nothing)
}

/// Runs a function as the first process of a container that has no /proc: an empty directory is there.
#[track_caller]
pub fn without_proc(kinds: CloneFlags, function: impl FnOnce() -> TestResult) -> TestResult {
    Container::start(kinds | CloneFlags::CLONE_NEWNS, || {
        let (tmpfs, nothing) = (Some("tmpfs"), None::<&str>);
        keep_mounts()?;
        mount(tmpfs, "/proc", tmpfs, MsFlags::MS_RDONLY, nothing)?;
        expect_eq("files in /proc", fs::read_dir("/proc")?.count(), 0)?;
        function()
    })?
    .finish()
}

/// The numbers of a thread on each level of pid namespaces, from the reader's level on. `depth` levels below
/// the reader, the thread has the number `inner`.
pub fn numbers_at(depth: usize, inner: i32) -> Result<Vec<i32>, Failure> {
    let mut threads = threads()?.into_iter().map(|(_, numbers)| numbers);
    threads
        .find(|numbers| numbers.len() == depth + 1 && numbers.last() == Some(&inner))
        .ok_or_else(|| Failure::new(format!("there is no thread {inner} at depth {depth}")))
}

/// The numbers of a thread in its pid namespaces, the reader's first.
fn parse_numbers(status: &str) -> Vec<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap_or_default()
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// All threads that the reader sees: the process, and the thread's numbers.
fn threads() -> Result<Vec<(i32, Vec<i32>)>, Failure> {
    let mut threads = Vec::new();
    for pid in processes()? {
        for thread in threads_of(pid) {
            // A thread that ends meanwhile is not the wanted one.
            let status = format!("/proc/{pid}/task/{thread}/status");
            let status = fs::read_to_string(status).unwrap_or_default();
            threads.push((pid, parse_numbers(&status)));
        }
    }
    Ok(threads)
}

/// A pair of sockets, over which one process hands a listener to another.
pub struct Handover {
    sender: OwnedFd,
    receiver: OwnedFd,
}

impl Handover {
    /// Sockets for the caller and the processes it makes.
    pub fn new() -> Result<Self, Failure> {
        let (sender, receiver) = socketpair(
            AddressFamily::Unix,
            SockType::Datagram,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok(Self { sender, receiver })
    }

    /// Hands over a listener's socket.
    pub fn send(&self, listener: &Listener) -> TestResult {
        send_descriptors(&self.sender, &[listener.as_fd().as_raw_fd()])
    }

    /// Makes the caller listen, with this request, and hands over the listener.
    pub fn listen(&self, words: &[u32]) -> TestResult {
        let listener = open()?;
        listener.request(words)?;
        self.send(&listener)
    }

    /// Waits for the next listener of a container, which may end before it hands over one.
    pub fn receive_from(&self, container: &Container) -> Result<Listener, Failure> {
        let limit = timeouts::for_poll(timeouts::scaled(EVENT_LIMIT));
        let mut sources = [&self.receiver, &container.pidfd]
            .map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN));
        poll(&mut sources, limit)?;
        self.receive()
    }

    /// Takes the next listener, which was handed over already.
    pub fn receive(&self) -> Result<Listener, Failure> {
        let mut readable = [PollFd::new(self.receiver.as_fd(), PollFlags::POLLIN)];
        if poll(&mut readable, PollTimeout::ZERO)? == 0 {
            return Err(Failure::new("no listener was handed over"));
        }
        let descriptor = receive_descriptor(&self.receiver)?;
        // SAFETY: The descriptor is a socket, whose ownership is passed on.
        let socket = unsafe { Socket::from_raw_fd(descriptor.into_raw_fd()) };
        Ok(Listener::from(socket))
    }
}

/// A process in a user and a pid namespace of its own, whose ids are not mapped yet.
pub fn unmapped(function: impl FnOnce() -> TestResult) -> Result<Child, Failure> {
    require(USER | PID)?;
    let flags = (USER | PID).bits() | libc::SIGCHLD;
    Ok(child::clone_with(flags, || status(function))?)
}

/// Maps the user or the group ids of a process's user namespace.
pub fn map(pid: Pid, kind: &str, map: &str) -> TestResult {
    Ok(fs::write(format!("/proc/{pid}/{kind}_map"), map)?)
}

/// How far the clock is ahead in a time namespace of [`with_other_clock`], in seconds.
pub const SECONDS_AHEAD: u64 = 100_000;

/// Runs a function in a time namespace of its own, where CLOCK_BOOTTIME is ahead. Returns a process
/// outside of it, which ends as the one inside does.
pub fn with_other_clock(function: impl FnOnce() -> TestResult) -> Result<Child, Failure> {
    if !Path::new("/proc/self/ns/time").exists() {
        return Err(Failure::skip("the kernel has no CONFIG_TIME_NS"));
    }
    Ok(child::fork(|| {
        status(|| {
            unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))?;
            let offset = format!("boottime {SECONDS_AHEAD} 0");
            fs::write("/proc/self/timens_offsets", offset)?;
            succeed(child::fork(|| status(function))?)
        })
    })?)
}
