// SPDX-License-Identifier: GPL-2.0
//! Hostile input; see the `fuzz` command.

use std::time::Duration;

use crate::fuzz::{self, Options};
use crate::harness::{Line, Test, TestResult};
use crate::test;

pub const TESTS: &[Test] = &[test!(every_message_has_its_expected_effect)
    .not_on_stock("requests are not answered as they have to be, and listeners get no error")
    .limit(Duration::from_secs(60))
    .covers(&[
        Line::C3,
        Line::C5,
        Line::C18,
        Line::C19,
        Line::C20,
        Line::C24,
        Line::C25,
        Line::C27,
        Line::C30,
        Line::C50,
        Line::C54,
        Line::C55,
    ])];

fn every_message_has_its_expected_effect() -> TestResult {
    fuzz::run(&Options {
        messages: 20_000,
        seed: None,
        round: None,
        workers: 8,
    })
}
