// SPDX-License-Identifier: GPL-2.0
//! Storms of events with readers of every speed: see the `storm` command.

use std::time::Duration;

use clap::ValueEnum;

use crate::harness::{Declaration, Line, Test, TestResult};
use crate::loads::storm::{self, Options, Work};
use crate::test;

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock("there are no accounts, and a listener in a pid namespace gets no events")
    .limit(Duration::from_secs(60))
    .covers(&[
        Line::C5,
        Line::C6,
        Line::C7,
        Line::C8,
        Line::C9,
        Line::C10,
        Line::C11,
        Line::C13,
        Line::C15,
        Line::C16,
        Line::C17,
        Line::C30,
    ])
    .of([
        test!(each_event_is_read_or_counted_as_lost[alone](false)),
        test!(each_event_is_read_or_counted_as_lost[churn](true)).covers(&[Line::C18, Line::C27]),
    ]);

/// With `churn`, other listeners come and go meanwhile.
fn each_event_is_read_or_counted_as_lost(churn: bool) -> TestResult {
    let work = Work::value_variants().to_vec();
    storm::run(&Options {
        seconds: 5,
        churn,
        work,
        batches_only: false,
    })
}
