// SPDX-License-Identifier: GPL-2.0
//! The lock of a section is released by the hook, and by nobody else.
//!
//! Refused: error[E0507]

use kernel::proc_events::{
    Handler,
    Section, //
};

pub fn unlock<H: Handler>(section: &Section<'_, H>) {
    drop(*section.rcu());
}
