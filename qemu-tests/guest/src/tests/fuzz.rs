// SPDX-License-Identifier: GPL-2.0
//! Hostile input; see the `fuzz` command.

use std::time::Duration;

use crate::fuzz::{self, Options};
use crate::harness::{Test, TestResult};
use crate::test;

pub const TESTS: &[Test] = &[test!(every_message_becomes_what_it_has_to)
    .not_on_stock("requests are not answered as they have to be, and listeners are not told")
    .limit(Duration::from_secs(60))
    .covers(&["C3", "C5", "C18", "C19", "C20", "C24", "C25", "C27", "C30"])];

fn every_message_becomes_what_it_has_to() -> TestResult {
    fuzz::run(&Options {
        messages: 20_000,
        seed: None,
        round: None,
        workers: 8,
    })
}
