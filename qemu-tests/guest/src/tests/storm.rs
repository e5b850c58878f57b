// SPDX-License-Identifier: GPL-2.0
//! Storms of events before readers of every pace; see the `storm` command.

use std::time::Duration;

use crate::harness::{Test, TestResult};
use crate::storm::{self, Options};
use crate::test;

pub const TESTS: &[Test] = &[test!(each_event_is_read_or_counted_as_lost)
    .not_on_stock("there are no accounts, and nobody hears anything in a pid namespace")
    .limit(Duration::from_secs(60))
    .covers(&["C5", "C6", "C7", "C16", "C30"])];

fn each_event_is_read_or_counted_as_lost() -> TestResult {
    storm::run(&Options { seconds: 5 })
}
