// SPDX-License-Identifier: GPL-2.0

//! Process events: tells user space, over the connector, about fork, exec, id changes, new session
//! leaders, exit and more.
//!
//! The kernel's hooks call [`Connector`]; what they tell goes from there to the listeners that
//! asked for it:
//!
//! hook ([`kernel::proc_events`]) -> receivers ([`listeners`], [`mask`]) -> translation and
//! numbering ([`listener`]) -> encoding ([`wire`]) -> delivery ([`kernel::net::connector`]).
//!
//! User-space interface: `include/uapi/linux/cn_proc.h`.

#![forbid(unsafe_code)]

mod connector;
mod control;
mod listener;
mod listeners;
mod mask;
mod wire;

use crate::connector::Connector;
use kernel::{
    prelude::*,
    proc_events::Registration, //
};

module! {
    type: ProcEvents,
    name: "proc_events",
    authors: ["The proc_events developers"],
    description: "Process events connector",
    license: "GPL",
}

#[pin_data]
struct ProcEvents {
    #[pin]
    _registration: Registration<Connector>,
}

impl kernel::InPlaceModule for ProcEvents {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init!(Self {
            _registration <- Registration::new(module, Connector::new(module)),
        }? Error)
    }
}
