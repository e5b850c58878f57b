// SPDX-License-Identifier: GPL-2.0
//! What perf records about a process, see perf_event_open(2).

use std::num::NonZeroUsize;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::Pid;

use crate::harness::Failure;

/// The pages that are mapped: the metadata page, and one page of records.
const PAGE: usize = 4096;
const LENGTH: usize = 2 * PAGE;

/// The offset of `data_head` in the metadata page.
const HEAD: usize = 1024;

/// `struct perf_event_attr`, in the first of its sizes.
#[derive(Default)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sampling: [u64; 3],
    flags: u64,
    rest: [u64; 2],
}

/// `PERF_TYPE_SOFTWARE` and `PERF_COUNT_SW_DUMMY`: an event that counts nothing, and records.
const SOFTWARE: u32 = 1;
const DUMMY: u64 = 9;

/// `task` among the flags: forks and exits are recorded.
const TASK: u64 = 1 << 13;

/// `PERF_RECORD_FORK`.
const FORK: u32 = 7;

/// The forks and exits of a process.
pub struct Records {
    _event: OwnedFd,
    memory: NonNull<u8>,
    read: usize,
}

impl Records {
    /// The forks and exits from now on. Skips the test on a kernel without perf.
    pub fn of(pid: Pid) -> Result<Self, Failure> {
        let attributes = Attributes {
            kind: SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: DUMMY,
            flags: TASK,
            ..Attributes::default()
        };
        let (any_cpu, no_group, flags) = (-1, -1, 0);
        // SAFETY: The call reads the structure, which contains its own size, and takes numbers.
        let opened = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                pid.as_raw(),
                any_cpu,
                no_group,
                flags,
            )
        });
        if opened == Err(Errno::ENOSYS) {
            return Err(Failure::skip("the kernel has no CONFIG_PERF_EVENTS"));
        }
        // SAFETY: The call made the descriptor, and nothing else owns it.
        let event = unsafe { OwnedFd::from_raw_fd(opened? as i32) };
        let length = NonZeroUsize::new(LENGTH).expect("there are pages");
        let access = ProtFlags::PROT_READ;
        // SAFETY: The kernel chooses the address, so that nothing else is there.
        let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &event, 0) }?;
        Ok(Self {
            _event: event,
            memory: memory.cast(),
            read: 0,
        })
    }

    /// Takes the records that have arrived. Returns the tids of the forked threads.
    pub fn forks(&mut self) -> Vec<i32> {
        // SAFETY: The page is mapped until this is dropped, and the place is aligned.
        let head = unsafe { self.memory.byte_add(HEAD).cast::<AtomicU64>().as_ref() };
        let head = head.load(Ordering::Acquire) as usize;
        let mut forks = Vec::new();
        while self.read < head {
            // The type; then a word whose upper half is the size; then pid, ppid, tid and ptid.
            let (kind, size) = (self.word(0), self.word(1) >> 16);
            if kind == FORK {
                forks.push(self.word(4) as i32);
            }
            self.read += size as usize;
        }
        forks
    }

    /// A word of the next record.
    fn word(&self, index: usize) -> u32 {
        let place = PAGE + (self.read + 4 * index) % PAGE;
        // SAFETY: Both pages are mapped until this is dropped. Records are aligned to 8 bytes. The
        // kernel does not overwrite records before `data_head`: the page is read before it is full.
        unsafe { self.memory.byte_add(place).cast::<u32>().read_volatile() }
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: It was mapped with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.memory.cast(), LENGTH) };
    }
}
