// SPDX-License-Identifier: GPL-2.0
//! Who opened a closed socket is not known any more: only a request can ask.
//!
//! Refused: error[E0599]

use kernel::net::connector::Socket;

pub fn gone(socket: &Socket) -> bool {
    socket.is_from_net_admin()
}
