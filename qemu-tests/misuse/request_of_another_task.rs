// SPDX-License-Identifier: GPL-2.0
//! A request checks the current task, which has to be its sender.
//!
//! Refused: error[E0277]

use kernel::proc_events::{
    Handler,
    Request, //
};

fn send<T: Send>(_: T) {}

pub fn control<H: Handler>(request: Request<'_, H>) {
    send(request);
}
