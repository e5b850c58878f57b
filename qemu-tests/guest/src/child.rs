// SPDX-License-Identifier: GPL-2.0
//! Processes and threads that tests make, and the handshakes with them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use std::{io, process};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execv, gettid, pipe};

use crate::timeouts;

/// How long the other side of a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Status of a child whose function panicked.
const PANIC_STATUS: i32 = 101;

/// A child process, which is to be waited for.
#[must_use]
pub struct Child {
    pid: Pid,
}

impl Child {
    /// Its process id, as fork(2) returned it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its process id, for a caller that waits for it in another way.
    pub fn into_pid(self) -> Pid {
        self.pid
    }

    /// Waits for its end.
    pub fn wait(self) -> nix::Result<WaitStatus> {
        waitpid(self.pid, None)
    }
}

/// Runs a function in a child process, whose exit status is what the function returns.
///
/// The caller has to be the only thread of its process.
pub fn fork(function: impl FnOnce() -> i32) -> nix::Result<Child> {
    // SAFETY: The test programs fork before they start a thread, so that the child finds no lock
    // held by a thread that it does not have.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Child { pid: child }),
        ForkResult::Child => exit(function),
    }
}

/// Ends this process with the status that the function returns, and without the parent's exit
/// handlers.
pub fn exit(function: impl FnOnce() -> i32) -> ! {
    let status = catch_unwind(AssertUnwindSafe(function)).unwrap_or(PANIC_STATUS);
    let _ = io::stdout().flush();
    // SAFETY: The call ends the process, so no unsound state is left.
    unsafe { libc::_exit(status) }
}

/// Makes a child with clone(2) flags that fork(2) does not have. The function must not return
/// into the caller's frames, which [`exit`] prevents.
pub fn clone_with(flags: i32, function: impl FnOnce() -> i32) -> nix::Result<Child> {
    // SAFETY: Without CLONE_VM the child has its own copy of the memory, as after fork(2), and
    // with a null stack it continues on its copy of the caller's stack.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone,
            i64::from(flags),
            0usize,
            0usize,
            0usize,
            0usize,
        )
    };
    match Errno::result(result)? {
        0 => exit(function),
        pid => Ok(Child {
            pid: Pid::from_raw(pid as i32),
        }),
    }
}

/// The same with clone3(2) and its arguments.
pub fn clone3(arguments: &libc::clone_args, function: impl FnOnce() -> i32) -> nix::Result<Child> {
    let size = size_of_val(arguments);
    // SAFETY: Without CLONE_VM the child has its own copy of the memory, as after fork(2), and
    // continues on its copy of the caller's stack.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const *arguments, size) };
    match Errno::result(result)? {
        0 => exit(function),
        pid => Ok(Child {
            pid: Pid::from_raw(pid as i32),
        }),
    }
}

/// A descriptor that becomes readable when the process ends, see pidfd_open(2).
pub fn pidfd(pid: Pid) -> nix::Result<OwnedFd> {
    open_pidfd(pid, 0)
}

/// The same for a thread.
pub fn thread_pidfd(tid: Pid) -> nix::Result<OwnedFd> {
    // `PIDFD_THREAD`.
    open_pidfd(tid, libc::O_EXCL)
}

fn open_pidfd(pid: Pid, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: The call takes two numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), flags) };
    let descriptor = Errno::result(result)? as i32;
    // SAFETY: The call made the descriptor, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Whether the process of a [`pidfd`] ends within this time.
pub fn has_ended(pidfd: &OwnedFd, limit: Duration) -> nix::Result<bool> {
    let mut ends = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ends, timeouts::for_poll(limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Allows this process and its later children this many descriptors, and some more for their
/// programs.
pub fn allow_descriptors(count: usize) -> nix::Result<()> {
    let limit = count as u64 + 1000;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
}

/// Both ends of a pipe on which one side waits for the other.
pub struct Gate {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> nix::Result<Self> {
        let (reader, writer) = pipe()?;
        Ok(Self { reader, writer })
    }

    /// The same gate, for a thread.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            reader: self.reader.try_clone()?,
            writer: self.writer.try_clone()?,
        })
    }

    /// Lets one waiter pass, and hands it a number.
    pub fn open(&self, number: i32) -> io::Result<()> {
        File::from(self.writer.try_clone()?).write_all(&number.to_ne_bytes())
    }

    /// The end at which its waiters wait, for a program that does not use gates.
    pub fn reader(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Waits until the gate is opened. Returns the number that was handed over.
    pub fn pass(&self) -> io::Result<i32> {
        self.pass_within(timeouts::scaled(HANDSHAKE_LIMIT))
    }

    /// As [`Self::pass`], when the other side has much to do first.
    pub fn pass_within(&self, limit: Duration) -> io::Result<i32> {
        let mut readable = [PollFd::new(self.reader.as_fd(), PollFlags::POLLIN)];
        if poll(&mut readable, timeouts::for_poll(limit))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no handshake came"));
        }
        let mut number = [0; 4];
        File::from(self.reader.try_clone()?).read_exact(&mut number)?;
        Ok(i32::from_ne_bytes(number))
    }
}

/// The end at which a waiter waits.
impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// This process's id, as in events.
pub fn own_pid() -> i32 {
    process::id() as i32
}

/// This thread's id, as in events.
pub fn own_tid() -> i32 {
    gettid().as_raw()
}

/// Becomes a program that does nothing.
pub fn execute_true() -> nix::Result<()> {
    execv(c"/bin/true", &[c"true"]).map(drop)
}
