// SPDX-License-Identifier: GPL-2.0
//! Programs that a socket's owner attaches to it, which decide what is queued (`SO_ATTACH_FILTER`,
//! socket(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

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

/// The same, by a program that takes long.
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
