// SPDX-License-Identifier: GPL-2.0
//! Which of the code under test a thread covers in the kernel, on a kernel with CONFIG_KCOV. See
//! Documentation/dev-tools/kcov.rst in the kernel's source. The test kernels instrument only this
//! code.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::{ioctl_write_int_bad, request_code_none, request_code_read};
use rustc_demangle::demangle;

use crate::harness::Failure;

/// The file by which a thread asks for coverage.
const FILE: &str = "/sys/kernel/debug/kcov";

/// Where the kernel lists its functions.
const SYMBOLS: &str = "/proc/kallsyms";

/// How many blocks of a step are recorded at most.
const WORDS: usize = 1 << 18;

/// The mode that records a program counter for each block that runs.
const TRACE_PC: libc::c_int = 0;

/// The module's name in the list of functions.
const MODULE: &str = "[proc_events]";

/// The module's crate in the mangled names of its functions, which identifies them in a kernel where
/// it is built in.
const CRATE: &str = "_16proc_events_main";

/// The prefix of the symbol for the padding before a function.
const PADDING: &str = "__pfx_";

/// The prefix of the compiler's labels, which kernels with debugging information list.
const LABEL: &str = ".L";

ioctl_write_int_bad!(
    init_trace,
    request_code_read!(b'c', 1, size_of::<libc::c_ulong>())
);
ioctl_write_int_bad!(enable, request_code_none!(b'c', 100));
ioctl_write_int_bad!(disable, request_code_none!(b'c', 101));

/// A descriptor by which one thread at a time can be traced, and the memory where the kernel records
/// the blocks that ran: their number, then each of them.
pub struct Kcov {
    file: File,
    memory: NonNull<AtomicU64>,
}

impl Kcov {
    /// Opens a descriptor, which needs root. Returns `None` if the kernel has no KCOV.
    pub fn open() -> Result<Option<Self>, Failure> {
        let file = match OpenOptions::new().read(true).write(true).open(FILE) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        // SAFETY: The call takes a number.
        unsafe { init_trace(file.as_raw_fd(), WORDS as libc::c_int) }?;
        let length = NonZeroUsize::new(WORDS * size_of::<u64>()).expect("there are words");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: The kernel chooses the address, so that nothing else is there.
        let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Some(Self {
            file,
            memory: memory.cast(),
        }))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: The memory has this length, and is mapped until this is dropped. The kernel writes
        // to it only while this thread is in the kernel. The thread reads it in user space.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), WORDS) }
    }
}

impl Drop for Kcov {
    fn drop(&mut self) {
        // SAFETY: It was mapped with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.memory.cast(), WORDS * size_of::<u64>()) };
    }
}

/// A function of the module.
struct Function {
    start: u64,
    end: u64,
    name: String,
}

/// The module's functions, by their addresses.
pub struct Functions(Vec<Function>);

impl Functions {
    /// Looks up the functions. The module has to be loaded, and to stay loaded.
    pub fn new() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(SYMBOLS)?))
    }

    fn parse(symbols: &str) -> Self {
        let mut lines: Vec<_> = symbols.lines().filter_map(symbol).collect();
        // Keep the first of several names for one address.
        lines.sort_by_key(|(address, ..)| *address);
        lines.dedup_by_key(|(address, ..)| *address);
        let ends = lines.iter().skip(1).map(|(address, ..)| *address);
        let functions = lines.iter().zip(ends.chain([u64::MAX]));
        let ours = functions.filter(|((_, name, module), _)| {
            (*module == Some(MODULE) || name.contains(CRATE)) && !name.starts_with(PADDING)
        });
        let ours = ours.map(|((start, name, _), end)| Function {
            start: *start,
            end,
            name: format!("{:#}", demangle(name)),
        });
        Self(ours.collect())
    }

    /// The functions that contain one of these blocks, and the other functions.
    pub fn reached(&self, blocks: &BTreeSet<u64>) -> (Vec<&str>, Vec<&str>) {
        let is_reached =
            |function: &&Function| blocks.range(function.start..function.end).next().is_some();
        let (reached, missed): (Vec<_>, Vec<_>) = self.0.iter().partition(is_reached);
        (names(reached), names(missed))
    }
}

fn names(functions: Vec<&Function>) -> Vec<&str> {
    let names = functions.into_iter().map(|function| function.name.as_str());
    names.collect()
}

/// The address, name and module in a line about a function.
fn symbol(line: &str) -> Option<(u64, &str, Option<&str>)> {
    let mut words = line.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let is_function = matches!(words.next()?, "t" | "T" | "w" | "W");
    let (name, module) = (words.next()?, words.next());
    (is_function && !name.starts_with(LABEL)).then_some((address, name, module))
}

/// The code that a worker's rounds have covered so far.
pub struct Coverage<'a> {
    kcov: &'a Kcov,
    /// Blocks, each with the block before it in the same step.
    edges: HashSet<(u64, u64)>,
}

/// Traces this thread until it is dropped.
pub struct Following<'a, 'b> {
    coverage: &'a mut Coverage<'b>,
    /// Blocks that ran for the first time after the block before them.
    new: BTreeSet<u64>,
}

impl<'b> Coverage<'b> {
    /// Coverage of nothing.
    pub fn new(kcov: &'b Kcov) -> Self {
        Self {
            kcov,
            edges: HashSet::new(),
        }
    }

    /// Begins to trace this thread.
    pub fn follow<'a>(&'a mut self) -> nix::Result<Following<'a, 'b>> {
        // SAFETY: The call takes a number.
        unsafe { enable(self.kcov.file.as_raw_fd(), TRACE_PC) }?;
        Ok(Following {
            coverage: self,
            new: BTreeSet::new(),
        })
    }
}

impl Following<'_, '_> {
    /// Runs a function in this thread, and notes which of the code under test it covers.
    pub fn note<T>(&mut self, function: impl FnOnce() -> T) -> T {
        let Coverage { kcov, edges } = &mut *self.coverage;
        let [count, blocks @ ..] = kcov.words() else {
            return function();
        };
        // Relaxed, here and below: the kernel writes these words in this thread.
        count.store(0, Ordering::Relaxed);
        let result = function();
        let many = count.load(Ordering::Relaxed) as usize;
        let mut before = 0;
        for block in blocks.iter().take(many) {
            let block = block.load(Ordering::Relaxed);
            if edges.insert((before, block)) {
                self.new.insert(block);
            }
            before = block;
        }
        result
    }

    /// The blocks that ran in a new order, or for the first time.
    pub fn new_blocks(&self) -> &BTreeSet<u64> {
        &self.new
    }
}

impl Drop for Following<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: The call takes a number. It fails if this thread is not traced.
        let _ = unsafe { disable(self.coverage.kcov.file.as_raw_fd(), 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: &str = "\
ffffffff81000000 T _stext
ffffffffa00000c0 t cleanup\t[other]
ffffffffa0000040 t .Ltmp0\t[proc_events]
ffffffffa0000040 t _RNvMNtCs1_11proc_events9listenersNtB2_9Listeners6listen\t[proc_events]
ffffffffa0000040 t alias\t[proc_events]
ffffffffa0000050 t .Ltmp1\t[proc_events]
ffffffffa0000060 d data\t[proc_events]
ffffffffa0000070 t __pfx_init_module\t[proc_events]
ffffffffa0000080 t init_module\t[proc_events]
";

    fn reached(blocks: &[u64]) -> [Vec<String>; 2] {
        let functions = Functions::parse(SYMBOLS);
        let (reached, missed) = functions.reached(&blocks.iter().copied().collect());
        [reached, missed].map(|names| names.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn functions_are_reached_or_not() {
        let listen = vec!["<proc_events::listeners::Listeners>::listen".to_owned()];
        let init = vec!["init_module".to_owned()];
        for block in [
            0xffff_ffff_a000_0040,
            0xffff_ffff_a000_0044,
            0xffff_ffff_a000_006f,
        ] {
            assert_eq!(reached(&[block]), [listen.clone(), init.clone()]);
        }
        assert_eq!(reached(&[0xffff_ffff_a000_0080]), [init, listen]);
        for block in [
            0xffff_ffff_8100_0000,
            0xffff_ffff_a000_0070,
            0xffff_ffff_a000_00c0,
        ] {
            assert_eq!(reached(&[block])[0], [""; 0]);
        }
    }
}
