// SPDX-License-Identifier: GPL-2.0
//! The sender of a message, which a socket gets with SO_PASSCRED.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg};

use super::container::FIRST_ID;
use crate::harness::Failure;
use crate::listener::Listener;

/// The id that stands for ids which are not mapped in a user namespace.
pub const OVERFLOW_ID: u32 = 65534;

/// The sender's pid, uid and gid.
pub type Sender = (i32, u32, u32);

/// Root of the reader's user namespace.
pub const ROOT: Sender = (0, 0, 0);

/// Root of a container that the reader's root made.
pub const OUTER_ROOT: Sender = (0, FIRST_ID, FIRST_ID);

/// A sender whose ids are not mapped in the reader's user namespace.
pub const UNMAPPED: Sender = (0, OVERFLOW_ID, OVERFLOW_ID);

/// Reads the next datagram, if there is one, into a buffer of this size. Returns its bytes and its sender.
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
