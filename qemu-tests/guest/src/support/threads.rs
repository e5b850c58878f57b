// SPDX-License-Identifier: GPL-2.0
//! How single threads end, and how others wait for that.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::polling::poll_until_done;
use super::process::{pause_for_ever, status};
use crate::child::{self, Child};
use crate::harness::{Failure, TestResult};
use crate::listener::EVENT_LIMIT;
use crate::proc_stat::Stat;

/// How long a thread may wait for another one.
static WAIT_LIMIT: libc::timespec = libc::timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// One word for each thread of a process. It is 1 until the thread has ended: the kernel clears it
/// then, see set_tid_address(2). The thread counts as gone by that time.
static RUNNING: [AtomicU32; 3] = [const { AtomicU32::new(1) }; 3];

/// Ends only the calling thread.
pub fn end_thread(status: i32) -> ! {
    // SAFETY: No frame of this thread holds what others need.
    unsafe { libc::syscall(libc::SYS_exit, status) };
    unreachable!("exit(2) does not return")
}

/// Ends the process of the calling thread.
pub fn end_all(status: i32) -> ! {
    // SAFETY: The call ends the process, so that nothing is left to be unsound.
    unsafe { libc::_exit(status) }
}

/// Starts a process whose first thread ends with this status. Then another thread runs the function,
/// and ends with what it returns.
pub fn without_first_thread(
    status_of_first: i32,
    function: impl FnOnce() -> i32 + Send,
) -> nix::Result<Child> {
    child::fork(|| {
        thread::scope(|scope| {
            scope.spawn(move || {
                let failed = status(|| await_zombie("self"));
                end_thread(if failed == 0 { function() } else { failed })
            });
            end_thread(status_of_first)
        })
    })
}

/// Ends only the calling thread. The kernel clears the thread's word.
pub fn end_thread_as(index: usize, status: i32) -> ! {
    // SAFETY: The word lives as long as the process.
    unsafe { libc::syscall(libc::SYS_set_tid_address, RUNNING[index].as_ptr()) };
    end_thread(status)
}

/// Waits until a thread has ended. Ends the process if the thread does not end.
pub fn await_end_of_thread(index: usize) {
    let word = &RUNNING[index];
    while word.load(Ordering::Acquire) != 0 {
        // SAFETY: The word and the time live as long as the process.
        let result = unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT,
                1,
                &raw const WAIT_LIMIT,
            )
        };
        if Errno::result(result) == Err(Errno::ETIMEDOUT) {
            eprintln!("thread {index} does not end");
            std::process::exit(1);
        }
    }
}

/// The status of a process whose last thread has this index.
pub fn status_of_thread(index: usize) -> i32 {
    10 + index as i32
}

/// Ends the thread with this index as soon as the thread before it in the order has ended.
pub fn end_in_turn(order: [usize; 3], index: usize) -> ! {
    let turn = order.iter().position(|other| *other == index);
    if let Some(before) = turn.and_then(|turn| turn.checked_sub(1)) {
        await_end_of_thread(order[before]);
    }
    end_thread_as(index, status_of_thread(index))
}

/// Waits for the end of a child or tracee. Returns its status.
pub fn reap(pid: Pid) -> Result<u32, Failure> {
    reap_all(&[pid])
}

/// Waits for the ends of children or tracees, which may wait for one another to be reaped. Returns the
/// status of the last one that is named. A tracee that stops is continued.
pub fn reap_all(pids: &[Pid]) -> Result<u32, Failure> {
    let mut left = pids.to_vec();
    let mut last = 0;
    poll_until_done(EVENT_LIMIT, || {
        let mut lives = Vec::new();
        for pid in std::mem::take(&mut left) {
            let status = match waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, status) => (status as u32) << 8,
                WaitStatus::Signaled(_, signal, _) => signal as u32,
                stopped => {
                    if let WaitStatus::Stopped(_, signal) = stopped {
                        ptrace::cont(pid, signal)?;
                    }
                    lives.push(pid);
                    continue;
                }
            };
            if pids.last() == Some(&pid) {
                last = status;
            }
        }
        left = lives;
        Ok((!left.is_empty()).then(|| format!("the ends of {left:?}")))
    })?;
    Ok(last)
}

/// Waits until a task of /proc (its first thread, if it is a process) has ended and is not reaped.
pub fn await_zombie(task: &str) -> TestResult {
    // Nothing reports it to a process that is not the parent.
    poll_until_done(EVENT_LIMIT, || {
        let stat = Stat::of(task)?;
        Ok((stat.state != 'Z').then(|| format!("{task} to end, got {stat:?}")))
    })
}

/// All orders in which three threads may end.
pub const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// How the last thread of a process ends.
#[derive(Clone, Copy, Debug)]
pub enum LastThread {
    /// The thread ends only itself.
    Itself,
    /// The thread ends all threads.
    All,
    /// The process is killed.
    Killed,
}

impl LastThread {
    /// The status of the process.
    pub fn code(self) -> u32 {
        match self {
            Self::Itself => 4 << 8,
            Self::All => 7 << 8,
            Self::Killed => Signal::SIGKILL as u32,
        }
    }

    /// Ends the calling thread.
    pub fn act(self) -> i32 {
        match self {
            Self::Itself => end_thread(4),
            Self::All => end_all(7),
            Self::Killed => pause_for_ever(),
        }
    }
}

/// The status of a process, if it has ended.
pub fn try_wait(pid: Pid) -> nix::Result<WaitStatus> {
    waitpid(pid, Some(WaitPidFlag::WNOHANG))
}

/// How many threads each process has whose threads end at the same moment.
pub const THREADS_AT_ONCE: usize = 4;

/// Starts a process whose threads end at the same moment, each in a way that depends on the round.
pub fn end_at_once(round: usize) -> nix::Result<Child> {
    child::fork(|| {
        let barrier = Barrier::new(THREADS_AT_ONCE);
        let act = |index: usize| {
            barrier.wait();
            match (round % 3, index) {
                // One ends all, while others end themselves.
                (1, 1) => LastThread::All.act(),
                // All are killed where they are.
                (2, _) => LastThread::Killed.act(),
                _ => LastThread::Itself.act(),
            }
        };
        thread::scope(|scope| {
            for index in 1..THREADS_AT_ONCE {
                let act = &act;
                scope.spawn(move || act(index));
            }
            act(0)
        })
    })
}
