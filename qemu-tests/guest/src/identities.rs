// SPDX-License-Identifier: GPL-2.0
//! Events that identify their process by numbers that are never reused. Kernels without
//! `PROC_CN_LISTEN_IDENTITY` send events without these numbers.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, bail, ensure};
use nix::unistd::Pid;

use crate::child;
use crate::listener::{EVENT_LIMIT, Listener};
use crate::timeouts;
use crate::wire::{Event, IDENTITY, LISTEN, proc_listen};

/// `PROC_CN_FEATURE_IDENTITY`.
pub const FEATURE: u32 = 0x40;

/// Makes a new socket listen, with identities if the kernel has them. Returns the kernel's features.
/// Without [`FEATURE`], events have no identities, as on older kernels.
pub fn listen(listener: &mut Listener, mask: u32) -> Result<u32> {
    listener.request(&[LISTEN, mask])?;
    let answer = listener.receive(timeouts::deadline(EVENT_LIMIT))?;
    let Some(answer) = answer.filter(|answer| answer.event.bit() == 0) else {
        bail!("this kernel does not answer requests: it is too old");
    };
    if let Event::Ack { err } = answer.event {
        ensure!(err == 0, "{}", io::Error::from_raw_os_error(err as i32));
    }
    let features = answer.features();
    if features & FEATURE == 0 {
        return Ok(features);
    }
    listener.request(&proc_listen(LISTEN, mask, IDENTITY))?;
    // Events may come before this answer, without identities.
    let answer = listener.answer()?;
    Ok(match answer.event {
        Event::Ack { err: 0 } => features,
        // Nothing has changed.
        _ => features & !FEATURE,
    })
}

/// The number of a process in events. The process must not be reaped meanwhile.
pub fn number_of(process: Pid) -> io::Result<u64> {
    number_of_pidfd(child::pidfd(process)?)
}

/// The same for a thread.
pub fn number_of_thread(thread: Pid) -> io::Result<u64> {
    number_of_pidfd(child::thread_pidfd(thread)?)
}

/// The number of the process or thread that a pidfd refers to.
fn number_of_pidfd(pidfd: OwnedFd) -> io::Result<u64> {
    Ok(File::from(pidfd).metadata()?.ino())
}
