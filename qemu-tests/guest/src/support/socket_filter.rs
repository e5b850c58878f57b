// SPDX-License-Identifier: GPL-2.0
//! Programs that a socket's owner attaches to it, which decide what is queued (`SO_ATTACH_FILTER`,
//! socket(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

use crate::wire::{ConnectorHeader, NetlinkHeader};

/// The longest program that the kernel takes: `BPF_MAXINSNS`.
const LONGEST: usize = 4096;

const fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Keeps this many bytes of each message. 0 drops it.
pub fn keep_bytes(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    attach(
        socket,
        &mut [instruction(libc::BPF_RET | libc::BPF_K, bytes)],
    )
}

/// Keeps the events of one kind. The program loads the kind at its place in the message, by an offset
/// from `base`: 0, or `SKF_NET_OFF` or `SKF_LL_OFF` of linux/filter.h.
pub fn keep_kind(socket: &impl AsFd, base: i32, bit: u32) -> io::Result<()> {
    const KIND: u32 = (size_of::<NetlinkHeader>() + size_of::<ConnectorHeader>()) as u32;
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let compare = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        instruction(load, (base as u32).wrapping_add(KIND)),
        // Numbers are loaded in network byte order.
        instruction(compare, bit.to_be()),
        instruction(end, u32::MAX),
        instruction(end, 0),
    ];
    program[1].jf = 1;
    attach(socket, &mut program)
}

/// The same as [`keep_bytes`], by a program that takes long.
pub fn keep_bytes_slowly(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_IMM, 0); LONGEST];
    program[LONGEST - 1] = instruction(libc::BPF_RET | libc::BPF_K, bytes);
    attach(socket, &mut program)
}

fn attach(socket: &impl AsFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: The kernel copies the structure, and the program that it points to, in this call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
