// SPDX-License-Identifier: GPL-2.0
//! The programs that the interface's documentation shows.

use std::time::Duration;

use crate::harness::{Declaration, Line, Test, TestResult};
use crate::support::container::{PID, without_proc};
use crate::support::example::{Example, NEEDS};
use crate::support::fault_injection::Setting;
use crate::test;

pub const TESTS: &[Test] = &Declaration::new()
    .not_on_stock(NEEDS)
    .limit(LIMIT)
    .covers(&[Line::C55])
    .of([
        test!(follows_sessions[c](IN_C)).covers(&[Line::C11, Line::C15, Line::C52]),
        test!(recovers_from_a_loss[c](IN_C)).covers(&[Line::C5, Line::C6]),
        test!(needs_no_proc[c](IN_C)).covers(&[Line::C21]),
        test!(follows_sessions[rust](IN_RUST)).covers(&[Line::C11, Line::C15, Line::C52]),
        test!(recovers_from_a_loss[rust](IN_RUST)).covers(&[Line::C5, Line::C6]),
        test!(needs_no_proc[rust](IN_RUST)).covers(&[Line::C21]),
    ]);

const LIMIT: Duration = Duration::from_secs(60);

/// scripts/examples puts these programs where the harness is built.
const IN_C: &str = "listener-c";
const IN_RUST: &str = "listener-rust";

fn follows_sessions(name: &str) -> TestResult {
    Example::named(name)?.follows_sessions()
}

fn recovers_from_a_loss(name: &str) -> TestResult {
    let _little = Setting::little_room()?;
    Example::named(name)?.recovers_from_a_loss()
}

fn needs_no_proc(name: &str) -> TestResult {
    let example = Example::named(name)?;
    without_proc(PID, || example.follows_sessions())?;
    let _little = Setting::little_room()?;
    without_proc(PID, || example.recovers_from_a_loss())
}
