// SPDX-License-Identifier: GPL-2.0
//! Whom a message is from, as a socket is told that asks for it with SO_PASSCRED.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};

use crate::harness::Failure;
use crate::listener::Listener;

/// What an id that has no number in a user namespace is shown as.
pub const OVERFLOW_ID: u32 = 65534;

/// The sender's pid, uid and gid.
pub type Sender = (i32, u32, u32);

/// Root of the reader's user namespace.
pub const ROOT: Sender = (0, 0, 0);

/// Whose ids are not mapped in the reader's user namespace.
pub const NOBODY_KNOWN: Sender = (0, OVERFLOW_ID, OVERFLOW_ID);

/// Takes the next datagram, if there is one, into a buffer of this size; and who it is from, as a
/// socket is told that asked for it.
pub fn receive(socket: &Listener, room: usize) -> Result<Option<(Vec<u8>, Sender)>, Failure> {
    let mut bytes = vec![0; room];
    let mut data = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(libc::ucred);
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    );
    let (length, sender) = match message {
        Err(Errno::EAGAIN) => return Ok(None),
        message => {
            let message = message?;
            let sender = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmCredentials(sender) => Some(sender),
                _ => None,
            });
            (message.bytes, sender)
        }
    };
    let sender = sender.ok_or_else(|| Failure::new("a message came without its sender"))?;
    bytes.truncate(length);
    Ok(Some((bytes, numbers(&sender))))
}

fn numbers(sender: &UnixCredentials) -> Sender {
    (sender.pid(), sender.uid(), sender.gid())
}
