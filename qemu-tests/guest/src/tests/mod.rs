// SPDX-License-Identifier: GPL-2.0
//! The tests, one file a concept.

use crate::harness::Test;

mod scenario;
mod sid;

/// All tests, in the order in which they run.
pub fn all() -> Vec<Test> {
    [sid::TESTS].concat()
}
