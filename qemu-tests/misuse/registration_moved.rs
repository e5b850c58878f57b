// SPDX-License-Identifier: GPL-2.0
//! A registered handler must not move in memory.
//!
//! Refused: error[E0507]

use kernel::{
    prelude::*,
    proc_events::{
        Handler,
        Registration, //
    }, //
};

pub fn moved<H: Handler>(registration: Pin<KBox<Registration<H>>>) -> Registration<H> {
    *registration
}
