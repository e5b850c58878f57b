// SPDX-License-Identifier: GPL-2.0
//! Listeners, and all tests before, leak no kernel memory (C25, C32), as kmemleak reports.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::harness::{Failure, Line, Test, TestResult, expect};
use crate::listener::Listener;
use crate::support::module::ModuleGuard;
use crate::test;

/// Runs last.
pub const TESTS: &[Test] = &[test!(nothing_is_leaked)
    .not_on_stock("what the stock kernel leaks is not tested")
    .limit(Duration::from_secs(60))
    .covers(&[Line::C25, Line::C32])];

/// Where kmemleak takes commands and lists the leaks that it found.
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// kmemleak does not report objects that are younger.
const MIN_AGE: Duration = Duration::from_secs(5);

/// An object counts as leaked when a scan found it, and it had not changed since the scan before.
const SCANS: usize = 3;

fn nothing_is_leaked() -> TestResult {
    if !Path::new(KMEMLEAK).exists() {
        return Err(Failure::skip("the kernel has no CONFIG_DEBUG_KMEMLEAK"));
    }
    drop(Listener::listen_all()?);
    leaks_nothing("with the module")?;
    let _unloaded = ModuleGuard::unloaded()?;
    leaks_nothing("without the module")
}

fn leaks_nothing(when: &str) -> TestResult {
    thread::sleep(MIN_AGE);
    for _ in 0..SCANS {
        fs::write(KMEMLEAK, "scan")?;
    }
    let leaks = fs::read_to_string(KMEMLEAK)?;
    expect(leaks.is_empty(), format!("no leaks {when}, got:\n{leaks}"))
}
