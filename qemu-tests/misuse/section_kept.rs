// SPDX-License-Identifier: GPL-2.0
//! A listener that a section finds is not valid after it.
//!
//! Refused: lifetime may not live long enough

use kernel::proc_events::{
    Handler,
    Kind,
    Request, //
};

pub fn first<'a, H: Handler>(
    request: &'a Request<'_, H>,
    namespace: &kernel::pid_namespace::PidNamespace,
) -> Option<&'a H::Listener> {
    request.in_section(|section| section.subscribers(namespace)?.to(Kind::Fork).next())
}
