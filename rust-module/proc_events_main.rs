// SPDX-License-Identifier: GPL-2.0

//! Process events: reports to user space, over the connector, that processes fork, execute a
//! program, change their ids, become session leaders, exit and more.
//!
//! The kernel's hooks call [`Connector`]. From there, an event goes to the listeners that asked for
//! it:
//!
//! hook ([`kernel::proc_events`]) -> ids of the task ([`subject`]) -> subscribers in each pid
//! namespace ([`kernel::proc_events::Subscribers`]) -> encoding ([`wire`]) -> numbering
//! ([`accounts`]) -> delivery ([`kernel::net::connector`]).
//!
//! Requests of user space are parsed by [`control`], and [`listeners`] keeps the listeners.
//! [`state`] reports the existing processes.
//!
//! User-space interface: `include/uapi/linux/cn_proc.h`.

#![forbid(unsafe_code)]

mod accounts;
mod cgroup;
mod connector;
mod control;
mod listener;
mod listeners;
mod mask;
mod state;
mod subject;
mod wire;

use crate::{
    connector::Connector,
    listeners::Listeners, //
};
use kernel::{
    debugfs,
    prelude::*,
    proc_events::Registration,
    sync::Arc, //
};

module! {
    type: ProcEvents,
    name: "proc_events",
    authors: ["The proc_events developers"],
    description: "Process events connector",
    license: "GPL",
    params: {
        unprivileged: u8 {
            default: 1,
            description: "Whether processes without CAP_NET_ADMIN may listen (0 or 1)",
        },
    },
}

#[pin_data]
struct ProcEvents {
    #[pin]
    _registration: Registration<Connector>,
    /// `/sys/kernel/debug/proc_events/listeners`: the listing of listeners, which only root can
    /// read.
    #[pin]
    _listing: debugfs::File<Arc<Listeners>>,
}

impl kernel::InPlaceModule for ProcEvents {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let unprivileged = module_parameters::unprivileged.value() != 0;
            let listeners = Arc::pin_init(Listeners::new(unprivileged), GFP_KERNEL)?;
            let directory = debugfs::Dir::new(c"proc_events");

            Ok(try_pin_init!(Self {
                _registration <- Registration::new(Ok(Connector::new(listeners.clone()))),
                _listing <- directory.read_callback_file(
                    c"listeners",
                    listeners,
                    &|listeners, f| f.write_fmt(fmt!("{}", **listeners)),
                ),
            }? Error))
        })
    }
}
