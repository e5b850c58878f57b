// SPDX-License-Identifier: GPL-2.0
//! The opener of a closed socket is no longer known: only a request can check it.
//!
//! Refused: error[E0599]

use kernel::net::connector::Socket;

pub fn gone(socket: &Socket) -> bool {
    socket.is_from_net_admin()
}
