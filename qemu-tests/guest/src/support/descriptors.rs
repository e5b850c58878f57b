// SPDX-License-Identifier: GPL-2.0
//! File descriptors that go from one process to another over a Unix socket.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

use crate::harness::{Failure, TestResult};

/// Sends descriptors in one message, 253 at most.
pub fn send_descriptors(to: &OwnedFd, descriptors: &[RawFd]) -> TestResult {
    let data = [IoSlice::new(b"x")];
    let rights = [ControlMessage::ScmRights(descriptors)];
    sendmsg::<()>(to.as_raw_fd(), &data, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Receives the one descriptor of the next message.
pub fn receive_descriptor(from: &OwnedFd) -> Result<OwnedFd, Failure> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        from.as_raw_fd(),
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for rights in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = rights {
            if let [descriptor] = descriptors.as_slice() {
                // SAFETY: The kernel just made this descriptor for this call, and nothing else owns it.
                return Ok(unsafe { OwnedFd::from_raw_fd(*descriptor) });
            }
        }
    }
    Err(Failure::new("no descriptor was received"))
}

/// Two connected sockets.
pub fn unix_pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}
