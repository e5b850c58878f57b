// SPDX-License-Identifier: GPL-2.0
//! Only the hook releases the lock of a section.
//!
//! Refused: error[E0507]

use kernel::proc_events::{
    Handler,
    Section, //
};

pub fn unlock<H: Handler>(section: &Section<'_, H>) {
    drop(*section.rcu());
}
