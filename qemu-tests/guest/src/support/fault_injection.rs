// SPDX-License-Identifier: GPL-2.0
//! Allocations that fail on demand, see Documentation/fault-injection/ in the kernel's source.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::mman::{MlockAllFlags, mlockall};
use protocol::complaints::{PROVOKED_BEGINS, PROVOKED_ENDED};

use super::kernel_log::{self, Log};
use crate::harness::{Failure, TestResult, expect};
use crate::results;

/// Counts down with each allocation of the thread. The allocation that reaches 0 fails.
const FAIL_NTH: &str = "/proc/thread-self/fail-nth";

/// Marks a process whose allocations fail if faults are filtered by task.
const MAKE_IT_FAIL: &str = "/proc/thread-self/make-it-fail";

/// Faults of slab objects, and of pages.
const SLABS: &str = "/sys/kernel/debug/failslab";
const PAGES: &str = "/sys/kernel/debug/fail_page_alloc";

/// The kernel's caches of slab objects.
const CACHES: &str = "/sys/kernel/slab";

/// The caches of its checkers, which have a reserve of objects: a fault there fails no caller.
const CHECKERS: [&str; 3] = [
    "kmemleak_object",
    "kmemleak_scan_area",
    "debug_objects_cache",
];

/// A file of a setting, which has another value until this is dropped.
pub struct Setting {
    file: PathBuf,
    before: String,
}

impl Setting {
    /// Changes it.
    pub fn change(directory: &str, name: &str, value: &str) -> io::Result<Self> {
        let file = Path::new(directory).join(name);
        let before = fs::read_to_string(&file)?;
        fs::write(&file, value)?;
        Ok(Self { file, before })
    }

    /// Gives new listeners so little room that they overrun, until this is dropped.
    pub fn little_room() -> io::Result<Self> {
        Self::change("/proc/sys/net/core", "rmem_default", "16384")
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.file, &self.before) {
            eprintln!("{} is not as before: {error}", self.file.display());
        }
    }
}

/// Changes settings of a kind of fault, and keeps its injection out of the kernel's log.
fn change(directory: &str, settings: &[(&str, &str)]) -> Result<Vec<Setting>, Failure> {
    let quiet = [("verbose", "0")];
    let changed = quiet.iter().chain(settings);
    let changed = changed.map(|(name, value)| Setting::change(directory, name, value));
    Ok(changed.collect::<io::Result<_>>()?)
}

/// Whether the kernel has checkers, which allocate memory that they can do without.
pub fn has_checkers() -> bool {
    let caches = Path::new(CACHES);
    CHECKERS.iter().any(|name| caches.join(name).exists())
}

/// Injects no faults into the kernel's checkers, if there are any.
fn spare_checkers() -> io::Result<Option<Setting>> {
    if !has_checkers() {
        return Ok(None);
    }
    for entry in fs::read_dir(CACHES)? {
        let entry = entry?;
        let name = entry.file_name();
        if !CHECKERS.iter().any(|checker| name == **checker) {
            fs::write(entry.path().join("failslab"), "1")?;
        }
    }
    Setting::change(SLABS, "cache-filter", "Y").map(Some)
}

/// Keeps messages off the console until this is dropped. The runner watches the console, and the
/// kernel's own code logs when its allocations fail.
pub struct QuietConsole {
    log: Log,
    level: Option<Setting>,
}

impl QuietConsole {
    /// Keeps all messages from now on off the console.
    pub fn new() -> Result<Self, Failure> {
        let log = Log::new()?;
        kernel_log::say(PROVOKED_BEGINS)?;
        Ok(Self {
            log,
            level: Some(Setting::change("/proc/sys/kernel", "printk", "1")?),
        })
    }

    /// Expects that nothing was logged that shows a fault of the kernel.
    pub fn expect_no_fault(&mut self) -> TestResult {
        const FAULTS: [&str; 5] = ["BUG:", "WARNING:", "Oops", "KASAN", "RCU"];
        for record in self.log.records()? {
            let fault = FAULTS.iter().any(|fault| record.contains(fault));
            expect(
                !fault,
                format!("no fault in the kernel's log, got {record}"),
            )?;
        }
        Ok(())
    }
}

impl Drop for QuietConsole {
    fn drop(&mut self) {
        // The console gets this line, too.
        drop(self.level.take());
        if let Err(error) = kernel_log::say(PROVOKED_ENDED) {
            eprintln!("further complaints of the kernel are not noticed: {error}");
        }
    }
}

/// Skips the test if the kernel cannot inject this kind of fault.
fn require(directory: &str, option: &str) -> Result<(), Failure> {
    if Path::new(FAIL_NTH).exists() && Path::new(directory).exists() {
        return Ok(());
    }
    Err(Failure::skip(format!(
        "the kernel lacks CONFIG_FAULT_INJECTION, CONFIG_FAULT_INJECTION_DEBUG_FS or {option}"
    )))
}

/// Reports how many faults were injected.
pub fn report_failures(failures: u64) {
    if failures > 0 {
        results::figure("faults injected", failures as f64);
    }
}

/// Makes a single allocation of the thread fail, which is chosen by its number.
pub struct FailNth {
    counter: File,
    failures: Cell<u64>,
    _settings: Vec<Setting>,
}

impl FailNth {
    /// For slab objects, whether their allocation may sleep or not.
    pub fn of_slabs() -> Result<Self, Failure> {
        require(SLABS, "CONFIG_FAILSLAB")?;
        // A page fault must not take a failure that is meant for a system call.
        mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)?;
        let mut settings = change(SLABS, &[("ignore-gfp-wait", "N")])?;
        settings.extend(spare_checkers()?);
        Ok(Self {
            counter: File::options().read(true).write(true).open(FAIL_NTH)?,
            failures: Cell::new(0),
            _settings: settings,
        })
    }

    /// Runs a function in which the nth allocation fails, counted from 1. Also returns whether there was an
    /// nth allocation.
    pub fn run<T>(&self, nth: u32, function: impl FnOnce() -> T) -> io::Result<(T, bool)> {
        let nth = nth.to_string();
        let mut left = [0; 16];
        self.counter.write_all_at(nth.as_bytes(), 0)?;
        let result = function();
        let length = self.counter.read_at(&mut left, 0)?;
        self.counter.write_all_at(b"0", 0)?;
        let failed = &left[..length] == b"0\n";
        self.failures.set(self.failures.get() + u64::from(failed));
        Ok((result, failed))
    }
}

impl Drop for FailNth {
    fn drop(&mut self) {
        report_failures(self.failures.get());
    }
}

/// Until this is dropped, page allocations of this process fail if they must not sleep.
pub struct NoPages {
    _settings: Vec<Setting>,
}

impl NoPages {
    /// Makes them fail from now on.
    pub fn new() -> Result<Self, Failure> {
        require(PAGES, "CONFIG_FAIL_PAGE_ALLOC")?;
        fs::write(MAKE_IT_FAIL, "1")?;
        let settings = change(
            PAGES,
            &[
                ("task-filter", "Y"),
                ("min-order", "0"),
                ("times", "-1"),
                ("probability", "100"),
            ],
        )?;
        Ok(Self {
            _settings: settings,
        })
    }
}
