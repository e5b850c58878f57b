// SPDX-License-Identifier: GPL-2.0
//! Tasks that are made, execute a program and end in as few instructions as possible.
//!
//! If a task shares its parent's memory, nothing is copied when it is made, and nothing is freed when
//! it ends. The rest is almost the same each time and in each boot, so that the cost of a hook can be
//! measured to the instruction.

use std::arch::asm;
use std::ffi::{c_char, c_int};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use std::{mem, ptr, thread};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, pause};

use super::clock::{self, instructions};
use crate::child;

/// The size of the stack, which is enough for the little that a task does.
const STACK_SIZE: usize = 64 << 10;

/// A few RCU grace periods. The sleep costs the guest no more than its timer's ticks.
const SETTLED: Duration = Duration::from_millis(20);

/// The number of tasks before one that is measured is less than this.
const OTHERS: u32 = 8;

/// For a process of which only the task itself is new.
const ALL_SHARED: c_int = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND;

/// For a thread. When it ends, the kernel clears a word of memory and wakes the thread that waits for
/// that.
const THREAD: c_int = ALL_SHARED | libc::CLONE_THREAD | libc::CLONE_CHILD_CLEARTID;

/// For a process with a table of open files and signal handlers of its own, which execve(2) would
/// otherwise have to unshare.
const MEMORY_SHARED: c_int = libc::CLONE_VM | libc::CLONE_FS;

/// How long to wait for a thread whose word is cleared, and which is not quite gone.
const ALMOST_GONE: Duration = Duration::from_millis(1);

/// The pid of each task, which no other task has meanwhile. The time to find a free pid would depend
/// on the number of pids before it.
const NUMBER: libc::pid_t = 20_000;

/// The pid of a task that stays, so that the tables of pids need not grow for the others.
const NEIGHBOR: libc::pid_t = NUMBER + 1;

/// Makes a process that does nothing until it is killed. It has to exist before the first task.
pub fn neighbor() -> Result<Pid> {
    let arguments = arguments(&NEIGHBOR);
    let child = child::clone3(&arguments, || {
        loop {
            pause();
        }
    });
    let child = child.context("cannot make a process with a given pid")?;
    Ok(child.into_pid())
}

/// The arguments of clone3(2) for a child with this pid.
fn arguments(number: &libc::pid_t) -> libc::clone_args {
    libc::clone_args {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: (&raw const *number).addr() as u64,
        set_tid_size: 1,
        // SAFETY: All fields are integers, and 0 is valid for them.
        ..unsafe { mem::zeroed() }
    }
}

/// Makes such tasks, one at a time.
pub struct Short {
    stack: Vec<u128>,
    shared: Box<Shared>,
    others: u32,
}

/// The data that the tasks share.
struct Shared {
    /// When the last task began the operation that is measured, or how long that took.
    count: AtomicU64,
    /// Whether the last thread exists. The kernel clears it.
    thread: AtomicU32,
    program: File,
    output: OwnedFd,
}

type Function = extern "C" fn(&Shared) -> c_int;

impl Short {
    /// The tasks will execute this program, with this standard output.
    pub fn new(program: &Path, output: OwnedFd) -> Result<Self> {
        let program = File::open(program).context("cannot open the program to run")?;
        Ok(Self {
            stack: vec![0; STACK_SIZE / size_of::<u128>()],
            shared: Box::new(Shared {
                count: AtomicU64::new(0),
                thread: AtomicU32::new(0),
                program,
                output,
            }),
            others: 0,
        })
    }

    /// Measures clone(2), until it returns to the parent.
    pub fn fork(&mut self) -> Result<u64> {
        self.settled(|short| {
            let started = instructions();
            let child = short.start(ALL_SHARED, end)?;
            let taken = instructions() - started;
            waitpid(child, None)?;
            Ok(taken)
        })
    }

    /// Measures setsid(2) in a task.
    pub fn setsid(&mut self) -> Result<u64> {
        let child = self.start(ALL_SHARED, lead)?;
        let ended = waitpid(child, None)?;
        ensure!(
            ended == WaitStatus::Exited(child, 0),
            "setsid(2) failed: {ended:?}"
        );
        Ok(self.counted())
    }

    /// Measures a task's end, from its own last instruction until its parent has waited for it.
    pub fn exit(&mut self) -> Result<u64> {
        self.end_of(end)
    }

    /// Measures the same by a signal that dumps core.
    pub fn coredump(&mut self) -> Result<u64> {
        self.end_of(dump_core)
    }

    /// Measures execve(2) in a task, up to the program's first instruction, whose count is read here.
    pub fn exec(&mut self, mut read_count: impl FnMut() -> Result<u64>) -> Result<u64> {
        self.settled(|short| {
            let child = short.start(MEMORY_SHARED, execute)?;
            let executed = read_count()?;
            waitpid(child, None)?;
            Ok(executed - short.counted())
        })
    }

    /// Measures clone(2) of a thread, until it returns to its creator.
    pub fn thread_fork(&mut self) -> Result<u64> {
        self.settled(|short| {
            let started = instructions();
            short.start_thread()?;
            let taken = instructions() - started;
            short.join()?;
            short.gone()?;
            Ok(taken)
        })
    }

    /// Measures a thread's end, from its own last instruction until the thread that waits for it
    /// continues.
    pub fn thread_exit(&mut self) -> Result<u64> {
        loop {
            self.start_thread()?;
            // As in `end_of`.
            let has_run = self.counted() != 0;
            self.join()?;
            let joined = instructions();
            self.gone()?;
            if !has_run {
                return Ok(joined - self.counted());
            }
        }
    }

    fn start_thread(&mut self) -> Result<Pid> {
        self.shared.count.store(0, Relaxed);
        self.shared.thread.store(1, Relaxed);
        self.start(THREAD, end)
    }

    /// Waits until the last thread no longer uses the memory.
    fn join(&self) -> Result<()> {
        let word = &raw const self.shared.thread;
        while self.shared.thread.load(Relaxed) != 0 {
            let forever = ptr::null::<libc::timespec>();
            // SAFETY: The word outlives the call, which sleeps while it is 1. The kernel's wake-up is
            // for shared futexes, so the call must not have FUTEX_PRIVATE_FLAG.
            let result =
                unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, 1, forever) };
            match Errno::result(result) {
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for a thread"),
            }
        }
        Ok(())
    }

    /// Waits until the thread's pid is free. On a single CPU, it is free already if the thread ran
    /// until it had ended.
    fn gone(&self) -> Result<()> {
        loop {
            // SAFETY: The call takes integers. The last one is the signal, of which 0 sends none.
            let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), NUMBER, 0) };
            match Errno::result(result) {
                Ok(_) => thread::sleep(ALMOST_GONE),
                Err(Errno::ESRCH) => return Ok(()),
                Err(error) => return Err(error).context("cannot look for a thread"),
            }
        }
    }

    /// The count of the last task.
    fn counted(&self) -> u64 {
        self.shared.count.load(Relaxed)
    }

    /// The task first runs when its parent waits, unless the timer lets it run earlier. In that case
    /// another task is made.
    fn end_of(&mut self, function: Function) -> Result<u64> {
        loop {
            let child = self.start(ALL_SHARED, function)?;
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let ended = waitid(Id::Pid(child), flags)?;
            waitpid(child, None)?;
            let waited = instructions();
            if ended == WaitStatus::StillAlive {
                return Ok(waited - self.counted());
            }
        }
    }

    /// Waits until the memory of the last tasks is really free, so that the allocators need not
    /// fetch more. The part of it that the next task gets determines the placement of some bytes
    /// that are copied. The number of tasks before it varies, so that the placement is not the same
    /// each time. A real-time task has no averaged load, and no timer for its time slice.
    fn settled<T>(&mut self, function: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        for _ in 0..self.others {
            let other = self.start(ALL_SHARED, end)?;
            waitpid(other, None)?;
        }
        self.others = (self.others + 1) % OTHERS;
        clock::real_time()?;
        thread::sleep(SETTLED);
        let result = function(self);
        clock::no_preemption()?;
        result
    }

    fn start(&mut self, flags: c_int, function: Function) -> Result<Pid> {
        let stack = self.stack.as_mut_ptr_range();
        let number = NUMBER;
        let arguments = arguments(&number);
        let arguments = libc::clone_args {
            flags: flags as u64,
            // A thread's end sends no signal.
            exit_signal: match flags & libc::CLONE_THREAD {
                0 => arguments.exit_signal,
                _ => 0,
            },
            child_tid: (&raw const self.shared.thread).addr() as u64,
            stack: stack.start.addr() as u64,
            stack_size: (stack.end.addr() - stack.start.addr()) as u64,
            ..arguments
        };
        // SAFETY: The stack is large enough and used by one task at a time, since each is waited for
        // before the next one starts. What the functions touch outlives them, or is atomic.
        let child = unsafe { clone3(&arguments, function, &self.shared) };
        if child < 0 {
            let error = Errno::from_raw(-child as i32);
            return Err(error).context("cannot make a task with a given pid");
        }
        Ok(Pid::from_raw(child as i32))
    }
}

/// Makes a task that runs a function and ends when that returns, so that it never gets to the
/// parent's code. Returns as clone3(2) does, with a negative error.
///
/// # Safety
///
/// Only the task uses the stack that the arguments name, until its end, and the stack is large enough.
/// The function and the shared data outlive the task.
unsafe fn clone3(arguments: &libc::clone_args, function: Function, shared: &Shared) -> i64 {
    let child: i64;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: The caller guarantees this.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r9",
            "call r8",
            "mov edi, eax",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone3 => child,
            in("rdi") arguments,
            in("rsi") size_of_val(arguments),
            in("r8") function,
            in("r9") shared,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: The caller guarantees this.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x0, x21",
            "blr x20",
            "mov x8, #{exit}",
            "svc #0",
            "udf #0",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("x0") arguments => child,
            in("x1") size_of_val(arguments),
            in("x8") libc::SYS_clone3,
            in("x20") function,
            in("x21") shared,
        );
    }
    child
}

extern "C" fn end(shared: &Shared) -> c_int {
    shared.count.store(instructions(), Relaxed);
    0
}

extern "C" fn lead(shared: &Shared) -> c_int {
    let started = instructions();
    // SAFETY: The call has no arguments. It cannot fail for a task that is no group's leader.
    let session = unsafe { libc::setsid() };
    shared.count.store(instructions() - started, Relaxed);
    c_int::from(session < 0)
}

extern "C" fn dump_core(shared: &Shared) -> c_int {
    // raise(3) would send the signal to the parent's thread.
    let own = Pid::this();
    shared.count.store(instructions(), Relaxed);
    // SAFETY: The calls take numbers. The first one does not return.
    unsafe { libc::kill(own.as_raw(), libc::SIGQUIT) }
}

extern "C" fn execute(shared: &Shared) -> c_int {
    let nothing: [*const c_char; 1] = [ptr::null()];
    // SAFETY: The calls take numbers, and arrays that end with a null pointer.
    unsafe {
        if libc::dup2(shared.output.as_raw_fd(), libc::STDOUT_FILENO) < 0 {
            return 1;
        }
        shared.count.store(instructions(), Relaxed);
        // The descriptor is used, because the time of the look-up of a name depends on earlier
        // look-ups.
        libc::fexecve(
            shared.program.as_raw_fd(),
            nothing.as_ptr(),
            nothing.as_ptr(),
        );
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tiny;
    use std::{env, fs, process};

    #[test]
    fn tasks_begin_run_and_end() {
        let program = env::temp_dir().join(format!("proc-events-short.{}", process::id()));
        tiny::install(&program).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let short = Short::new(&program, writer);
        fs::remove_file(&program).unwrap();
        let mut short = short.unwrap();
        let made = (|| {
            short.fork()?;
            short.exit()?;
            ensure!(short.thread_fork()? > 0, "a thread takes nothing");
            ensure!(short.thread_exit()? > 0, "its end takes nothing");
            short.exec(|| {
                let mut count = [0; 8];
                nix::unistd::read(&reader, &mut count)?;
                Ok(u64::from_ne_bytes(count))
            })
        })();
        match made {
            Ok(taken) => assert_ne!(taken, 0),
            // It takes privileges to choose a pid. Another process may have this pid, and a sandbox
            // may not implement clone3(2).
            Err(error) => assert!(
                matches!(
                    error.downcast_ref(),
                    Some(Errno::EPERM | Errno::EEXIST | Errno::ENOSYS)
                ),
                "{error:#}"
            ),
        }
    }
}
