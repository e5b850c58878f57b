// SPDX-License-Identifier: GPL-2.0
//! Listeners that come and go under load; see the `stress` command.

use std::time::Duration;

use crate::harness::{Failure, Line, Test, TestResult};
use crate::loads::stress::{self, Options};
use crate::test;

pub const TESTS: &[Test] = &[test!(accounts_balance_while_listeners_come_and_go)
    .not_on_stock("there are no accounts, and its count never goes down")
    .limit(Duration::from_secs(60))
    .covers(&[Line::C5, Line::C6, Line::C18, Line::C27, Line::C30])];

fn accounts_balance_while_listeners_come_and_go() -> TestResult {
    let options = Options {
        seconds: 10,
        threads: 8,
    };
    stress::run(&options).map_err(|error| Failure::new(format!("{error:#}")))
}
