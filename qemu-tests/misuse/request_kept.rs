// SPDX-License-Identifier: GPL-2.0
//! A request ends when `control()` returns.
//!
//! Refused: error[E0521]

use kernel::{
    prelude::*,
    proc_events::{
        Handler,
        Request, //
    }, //
};

pub fn control<H: Handler>(request: &Request<'_, H>, kept: &mut KVec<&'static [u8]>) -> Result {
    Ok(kept.push(request.data, GFP_KERNEL)?)
}
