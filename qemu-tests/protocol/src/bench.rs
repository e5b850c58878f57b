// SPDX-License-Identifier: GPL-2.0
//! What the benchmark in the guest tells the runner: lines of JSON on its standard output.

use serde::{Deserialize, Serialize};

/// What is done, and measured.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// fork(2), until it returns to the parent.
    Fork,
    /// A child's end, from the parent's wait to its return.
    Exit,
    /// Both together, as a shell has them.
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
    /// fork(2), a new name, execve(2), and the end.
    Storm,
    /// getppid(2), which raises no event.
    SystemCall,
    /// A LISTEN request, the sender's own instructions.
    Listen,
    /// An IGNORE request, the sender's own instructions.
    Ignore,
    /// Reading one event.
    Read,
}

impl Operation {
    /// Those that raise one kind of event, or come as near to that as can be.
    pub const KINDS: [Self; 9] = [
        Self::Fork,
        Self::Exec,
        Self::Uid,
        Self::Gid,
        Self::Sid,
        Self::Ptrace,
        Self::Comm,
        Self::Coredump,
        Self::Exit,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Exit => "exit",
            Self::ForkExit => "fork + exit",
            Self::Exec => "exec",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Sid => "setsid",
            Self::Ptrace => "ptrace",
            Self::Comm => "comm",
            Self::Coredump => "coredump + exit",
            Self::Storm => "fork, rename, exec, exit",
            Self::SystemCall => "any system call (getppid)",
            Self::Listen => "LISTEN",
            Self::Ignore => "IGNORE",
            Self::Read => "reading an event",
        }
    }

    /// Whether a process begins, ends or runs another program in it. That takes more than a hundred
    /// thousand instructions, some thousands more or less, so that of such an operation the
    /// cheapest tenth is compared.
    pub fn is_of_processes(self) -> bool {
        matches!(
            self,
            Self::Fork | Self::Exit | Self::ForkExit | Self::Exec | Self::Coredump | Self::Storm
        )
    }

    /// How many hooks of the patched kernel it passes: one a kind of event, but two for setsid()
    /// and the exit, whose ids are taken before they are lost, and for both changes of ids, where
    /// user and group ids are compared.
    pub fn hooks(self) -> u32 {
        match self {
            Self::Fork | Self::Exec | Self::Ptrace | Self::Comm => 1,
            Self::Uid | Self::Gid | Self::Exit | Self::Sid => 2,
            Self::Coredump | Self::ForkExit => 3,
            Self::Storm => 5,
            Self::SystemCall | Self::Listen | Self::Ignore | Self::Read => 0,
        }
    }
}

/// Who listens meanwhile.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Situation {
    /// Nobody.
    Nobody,
    /// Listeners for everything, which are read between the measurements.
    Everything,
    /// Listeners for another kind of event.
    Filtered,
    /// Bound sockets that never asked for anything.
    NeverListened,
    /// A listener for SID that was closed without IGNORE.
    Dead,
    /// A listener with the default buffer that nobody reads, after it overran.
    NeverReads,
    /// A listener for everything in each of that many containers; the operation is in one of them.
    Containers,
    /// An eBPF program that records it, and no listener.
    Peer,
}

/// A figure: so many instructions an operation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// What was done.
    pub operation: Operation,
    /// Who listened.
    pub situation: Situation,
    /// How many of them.
    pub listeners: u32,
    /// Median of the batches' means.
    pub instructions: f64,
    /// Half of the batches are no further from the median than that.
    pub spread: f64,
    /// What the cheapest tenth of all times took at most: what comes now and then is not in it.
    pub low: f64,
}

/// A line of the benchmark's output.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// How many figures there will be.
    Total(u32),
    /// One of them.
    Figure(Figure),
    /// So many figures are not there, for this reason.
    Missing {
        /// How many.
        figures: u32,
        /// Who would have listened.
        situation: Situation,
        /// Why.
        reason: String,
    },
    /// Events raised without a pause on one CPU, and read on another one.
    Flood(Flood),
    /// Events raised one by one on one CPU, and waited for on another one.
    Latency(Latency),
}

/// What one listener with the default buffer got before its first loss.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Flood {
    /// Events.
    pub events: u64,
    /// In that time.
    pub seconds: f64,
    /// Whether there was a loss before the time was up.
    pub lost: bool,
}

/// How long after its event a listener that waits has a message.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Latency {
    /// From the message's time stamp until the listener has read it: the median.
    pub nanoseconds: f64,
}
