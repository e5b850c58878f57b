// SPDX-License-Identifier: GPL-2.0
//! Only the connector makes requests, because their socket has to be open.
//!
//! Refused: error[E0451]

use kernel::{
    net::connector::Socket,
    proc_events::{
        Handler,
        Request, //
    }, //
};

pub fn is_admin<H: Handler>(socket: &Socket, of: Request<'_, H>) -> bool {
    Request { socket, ..of }.is_from_net_admin()
}
