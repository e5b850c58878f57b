// SPDX-License-Identifier: GPL-2.0
//! Listeners that are killed again and again; see the `cycles` command.

use std::time::Duration;

use crate::harness::{Line, Test, TestResult};
use crate::loads::cycles::{kill_listeners, repeat};
use crate::test;

pub const TESTS: &[Test] = &[test!(killed_listeners_leave_nothing)
    .not_on_stock("its count is not reported, and never goes down")
    .limit(Duration::from_secs(30))
    .covers(&[Line::C27])];

fn killed_listeners_leave_nothing() -> TestResult {
    repeat("listeners killed", 200, kill_listeners)
}
