// SPDX-License-Identifier: GPL-2.0
//! What the benchmark in the guest reports to the runner, as records among the results.

use serde::{Deserialize, Serialize};

/// An operation that is measured.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// fork(2), until it returns to the parent.
    Fork,
    /// A child's end, from the parent's wait to its return.
    Exit,
    /// Both together, as in a shell.
    ForkExit,
    /// execve(2), to the first instruction of the new program.
    Exec,
    /// setresuid(2).
    Uid,
    /// setresgid(2).
    Gid,
    /// setsid(2).
    Sid,
    /// PTRACE_SEIZE.
    Ptrace,
    /// prctl(2) with PR_SET_NAME.
    Comm,
    /// A child's end by a signal that dumps core.
    Coredump,
    /// clone(2) of a task that shares its parent's memory, until it returns to the parent.
    ShortFork,
    /// The end of such a task, from its last instruction until its parent has waited.
    ShortExit,
    /// execve(2) in such a task.
    ShortExec,
    /// The end of such a task by a signal that dumps core.
    ShortCoredump,
    /// clone(2) of a thread, until it returns to its creator.
    ThreadFork,
    /// The end of a thread, from its last instruction until the thread that waits for it
    /// continues.
    ThreadExit,
    /// fork(2), a new name, execve(2), and the end.
    Storm,
    /// getppid(2), which raises no event.
    SystemCall,
    /// A LISTEN request, the sender's own instructions.
    Listen,
    /// An IGNORE request, the sender's own instructions.
    Ignore,
    /// close(2) of a listener, the caller's own instructions.
    Close,
    /// Reading one record of the eBPF program.
    Read,
}

impl Operation {
    /// Those that raise one kind of event, or come as close to that as possible, in as few
    /// instructions as possible.
    pub const KINDS: [Self; 9] = [
        Self::ShortFork,
        Self::ShortExec,
        Self::Uid,
        Self::Gid,
        Self::Sid,
        Self::Ptrace,
        Self::Comm,
        Self::ShortCoredump,
        Self::ShortExit,
    ];

    /// Operations on whole processes, as programs perform them.
    pub const WHOLE: [Self; 6] = [
        Self::Fork,
        Self::Exec,
        Self::Coredump,
        Self::Exit,
        Self::ForkExit,
        Self::Storm,
    ];

    /// Operations on threads.
    pub const THREADS: [Self; 2] = [Self::ThreadFork, Self::ThreadExit];

    /// The requests of a listener, and its end without a request.
    pub const REQUESTS: [Self; 3] = [Self::Listen, Self::Ignore, Self::Close];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::ShortFork => "fork",
            Self::ShortExec => "exec",
            Self::ShortExit => "exit",
            Self::ShortCoredump => "coredump + exit",
            Self::ThreadFork => "a thread's fork",
            Self::ThreadExit => "a thread's exit",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Sid => "setsid",
            Self::Ptrace => "ptrace",
            Self::Comm => "comm",
            Self::Fork => "fork(2)",
            Self::Exec => "execve(2)",
            Self::Exit => "a process's exit",
            Self::Coredump => "a process's coredump + exit",
            Self::ForkExit => "fork(2) + exit",
            Self::Storm => "fork(2), rename, execve(2), exit",
            Self::SystemCall => "any system call (getppid)",
            Self::Listen => "LISTEN",
            Self::Ignore => "IGNORE",
            Self::Close => "closing a listener",
            Self::Read => "reading a record of eBPF",
        }
    }

    /// Whether a task begins, ends or runs another program in it. Such an operation now and then
    /// takes hundreds or thousands of instructions more, for allocators and RCU. So its cheapest
    /// tenth is compared.
    pub fn is_of_processes(self) -> bool {
        matches!(
            self,
            Self::ShortFork | Self::ShortExec | Self::ShortExit | Self::ShortCoredump
        ) || Self::THREADS.contains(&self)
            || Self::WHOLE.contains(&self)
    }

    /// How many hooks of the patched kernel it passes: usually one for each kind of event. setsid()
    /// passes two, since its ids are taken before they are lost. An exit passes four, since the
    /// ends of a session and of a thread are reported, too. A change of ids passes two, since user
    /// and group ids are compared. An exec passes these two, too, since it may change both.
    pub fn hooks(self) -> u32 {
        match self {
            Self::ShortFork | Self::ThreadFork | Self::Fork | Self::Ptrace | Self::Comm => 1,
            Self::Uid | Self::Gid | Self::Sid => 2,
            Self::ShortExec | Self::Exec => 3,
            Self::ShortExit | Self::ThreadExit | Self::Exit => 4,
            Self::ShortCoredump | Self::Coredump | Self::ForkExit => 5,
            Self::Storm => 9,
            Self::SystemCall | Self::Listen | Self::Ignore | Self::Close | Self::Read => 0,
        }
    }
}

/// How many listeners there are, in turn.
pub const LISTENER_COUNTS: [u32; 4] = [1, 8, 64, 256];

/// How many containers there are at most.
pub const THOUSANDS: u32 = 4096;

/// How many other listeners there are, in turn, when a request is measured.
pub const BESIDE: [u32; 3] = [0, 256, 4096];

/// How many events are raised in a row before listeners that get them in batches read them: the
/// cost of each event depends on it.
pub const MOST_UNREAD: u32 = 512;

/// How many events are unread if the number does not matter. With eBPF, there are always this many
/// records.
pub const SOME_UNREAD: u32 = 64;

/// How many events are unread, in turn.
pub const UNREAD: [u32; 4] = [1, 8, SOME_UNREAD, MOST_UNREAD];

/// How many listeners there are, in turn, that ask for IDENTITY, or for the events of a cgroup. The
/// figures of two of these numbers show what the event costs, and what each listener costs.
pub const WITH_FLAGS: [u32; 4] = [1, 2, 8, 64];

/// How many processes there are, in turn, when a program asks for all of them.
pub const POPULATIONS: [u32; 2] = [1_000, 10_000];

/// The listeners during the operation.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Situation {
    /// No listeners.
    NoListener,
    /// Listeners for everything, which are read between the measurements.
    Everything,
    /// Listeners for everything that get events in batches, which only our kernel has.
    Batch,
    /// Listeners for everything that ask for IDENTITY, which only our kernel has.
    Identity,
    /// The same in batches.
    IdentityBatch,
    /// Listeners for everything that happens in a cgroup without processes.
    OtherCgroup,
    /// A listener for the forks and exits of processes, and not of threads.
    Processes,
    /// A listener that asks for the state, which only our kernel has.
    State,
    /// The same with IDENTITY.
    IdentityState,
    /// Listeners for another kind of event.
    Filtered,
    /// Bound sockets that never asked for anything.
    NeverListened,
    /// A listener for SID that was closed without IGNORE.
    Dead,
    /// A listener with the default buffer that never reads, after the buffer overran.
    NeverReads,
    /// A listener for everything in each of that many containers; the operation is in one of them.
    Containers,
    /// An eBPF program that records the event, and no listener.
    Ebpf,
}

impl Situation {
    /// The listeners, as a page names them.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoListener => "no listener",
            Self::Everything => "listeners",
            Self::Batch => "listeners with BATCH",
            Self::Identity => "listeners with IDENTITY",
            Self::IdentityBatch => "listeners with IDENTITY and BATCH",
            Self::OtherCgroup => "listeners for a cgroup",
            Self::Processes => "listeners with PROCESSES",
            Self::State => "STATE",
            Self::IdentityState => "STATE with IDENTITY",
            Self::Filtered => "listeners for another kind of event",
            Self::NeverListened => "sockets that never sent LISTEN",
            Self::Dead => "a closed listener",
            Self::NeverReads => "a listener that never reads",
            Self::Containers => "listeners in containers",
            Self::Ebpf => "eBPF",
        }
    }

    /// The same listeners without IDENTITY; `None` if they do not ask for it.
    pub fn without_identity(self) -> Option<Self> {
        match self {
            Self::Identity => Some(Self::Everything),
            Self::IdentityBatch => Some(Self::Batch),
            _ => None,
        }
    }
}

/// A figure: the instructions of an operation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Measurement {
    /// What was done.
    pub operation: Operation,
    /// The listeners.
    pub situation: Situation,
    /// How many there were.
    pub listeners: u32,
    /// Median of the batches' means.
    pub instructions: f64,
    /// Half of the batches are no further from the median than that.
    pub spread: f64,
    /// The most that the cheapest tenth of all times took. It does not include what happens only
    /// now and then.
    pub low: f64,
    /// The cost above the same operation without listeners, if both were measured in turn.
    #[serde(default)]
    pub cost: Option<Cost>,
    /// The cost above the same operation in [`Situation::without_identity`], measured in turn.
    #[serde(default)]
    pub added: Option<Cost>,
}

/// What an operation takes above the same operation without listeners, or with listeners that ask
/// for less.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Cost {
    /// The median of the rounds.
    pub instructions: f64,
    /// No round is further from it.
    pub spread: f64,
}

/// A record of the benchmark.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BenchRecord {
    /// How many figures there will be.
    Total(u32),
    /// One of them.
    Measurement(Measurement),
    /// Figures are missing, for this reason.
    Missing {
        /// How many.
        figures: u32,
        /// The listeners that there would have been.
        situation: Situation,
        /// Why.
        reason: String,
    },
    /// Unread events that are read.
    Reading(Reading),
    /// Events raised without a pause, and read afterwards.
    Burst(Burst),
    /// Events raised without a pause on one CPU, and read on another one.
    Flood(Flood),
    /// Events raised one by one on one CPU, and waited for on another one.
    Latency(Latency),
    /// Requests and ends of many listeners.
    Many(Many),
    /// Which processes there are.
    Enumeration(Enumeration),
}

/// An answer of the program that records events with eBPF programs.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EbpfAnswer {
    /// The eBPF programs are in place.
    Ready,
    /// All records were read.
    Read {
        /// How many there were.
        records: u64,
        /// How many instructions that took.
        instructions: u64,
    },
}

/// What it takes to read unread events.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reading {
    /// In which form they come: [`Situation::Everything`] or [`Situation::Batch`].
    pub situation: Situation,
    /// How many there are.
    pub unread: u32,
    /// In how many datagrams they are.
    pub datagrams: u32,
    /// An event's share of the instructions that it takes to read all of them, until recv(2)
    /// returns that there are no more: the median of the batches' means.
    pub instructions: f64,
    /// Half of the batches are no further from the median than that.
    pub spread: f64,
}

/// What it takes to learn which processes there are.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Enumeration {
    /// The source: the kernel's state with [`Situation::State`] or [`Situation::IdentityState`],
    /// /proc with [`Situation::NoListener`].
    pub situation: Situation,
    /// How many there are, apart from a few others.
    pub processes: u32,
    /// A process's share of all instructions, from the first call to the last one: the median.
    pub instructions: f64,
    /// Half of the times are no further from the median than that.
    pub spread: f64,
}

/// How many events one listener with the default buffer keeps if it does not read.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Burst {
    /// In which form events come, as in [`Reading`].
    pub situation: Situation,
    /// Events before the first loss.
    pub kept: u64,
}

/// How many events one listener with the default buffer got before its first loss.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Flood {
    /// In which form events come, as in [`Reading`].
    pub situation: Situation,
    /// Events.
    pub events: u64,
    /// The time that they took.
    pub seconds: f64,
    /// Whether there was a loss before the time was up.
    pub lost: bool,
}

/// How long the listeners of a process with many of them take, in seconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Many {
    /// Until all have sent LISTEN, one after the other.
    pub listen: f64,
    /// Until the process that has all of them has ended.
    pub exit: f64,
}

/// How many listeners that process has.
pub const MANY: u32 = 2000;

/// How long after an event a waiting listener has its message.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Latency {
    /// From the message's time stamp until the listener has read it: the median.
    pub nanoseconds: f64,
}
