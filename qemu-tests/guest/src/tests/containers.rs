// SPDX-License-Identifier: GPL-2.0
//! Many containers at the same time, each with a listener.

use std::time::Duration;

use crate::harness::{Line, Test, TestResult, expect_eq};
use crate::loads::containers::{CONTAINERS, listen_in};
use crate::support::stock::NO_NETWORK_NAMESPACES;
use crate::test;

pub const TESTS: &[Test] = &[test!(two_hundred_containers_get_their_own_events)
    .covers(&[Line::C21, Line::C22, Line::C25, Line::C30])
    .stock_fails(NO_NETWORK_NAMESPACES)
    .limit(Duration::from_secs(120))];

fn two_hundred_containers_get_their_own_events() -> TestResult {
    let made = listen_in(CONTAINERS)?;
    expect_eq("containers", made, CONTAINERS)
}
