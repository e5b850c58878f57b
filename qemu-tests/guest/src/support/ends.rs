// SPDX-License-Identifier: GPL-2.0
//! The ways in which a listener ends while its socket stays.

use netlink_sys::SocketAddr;

use crate::listener::{Listener, ListenerError};
use crate::wire::{CN_PROC, IGNORE};

/// Ends a listener.
pub type End = fn(&mut Listener) -> Result<(), ListenerError>;

/// All of these ways.
pub const ENDS: [End; 3] = [ignore, leave, bind];

/// Sends IGNORE.
pub fn ignore(listener: &mut Listener) -> Result<(), ListenerError> {
    listener.request(&[IGNORE])
}

/// Leaves the group.
pub fn leave(listener: &mut Listener) -> Result<(), ListenerError> {
    let left = listener.socket().drop_membership(CN_PROC);
    left.map_err(|error| ListenerError::System("setsockopt", error))
}

/// Binds the socket again, without a group.
pub fn bind(listener: &mut Listener) -> Result<(), ListenerError> {
    let address = SocketAddr::new(listener.port_id()?, 0);
    let bound = listener.socket().bind(&address);
    bound.map_err(|error| ListenerError::System("bind", error))
}
