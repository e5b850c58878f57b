// SPDX-License-Identifier: GPL-2.0
//! Events that say which process they are about, by numbers that are never used again: on kernels
//! that have them (`PROC_CN_LISTEN_IDENTITY`), and without them on others.

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

/// Has a new socket listen, with identities if it can have them. What the kernel can do: without
/// [`FEATURE`], events come as on older kernels.
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

/// The number that events have for a process. Nobody may reap it meanwhile.
pub fn number_of(process: Pid) -> io::Result<u64> {
    number_behind(child::pidfd(process)?)
}

/// The same of a thread.
pub fn number_of_thread(thread: Pid) -> io::Result<u64> {
    number_behind(child::thread_pidfd(thread)?)
}

/// The number of whom a pidfd is for.
fn number_behind(pidfd: OwnedFd) -> io::Result<u64> {
    Ok(File::from(pidfd).metadata()?.ino())
}
