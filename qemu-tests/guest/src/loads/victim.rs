// SPDX-License-Identifier: GPL-2.0
//! A process to be killed at any point of its requests.

use std::io;

use crate::child::{self, Child, Gate};
use crate::listener::Listener;
use crate::wire::{LISTEN, mask};

/// Starts a process that listens on two sockets, and keeps asking for these masks on each.
pub fn start(masks: &[u32]) -> io::Result<Child> {
    let listening = Gate::new()?;
    let victim = child::fork(|| {
        let listeners = [Listener::listen_all(), Listener::listen(mask::SID)];
        if listeners.iter().any(Result::is_err) || listening.open(0).is_err() {
            return 1;
        }
        loop {
            for listener in listeners.iter().flatten() {
                for &mask in masks {
                    if listener.request(&[LISTEN, mask]).is_err() {
                        return 1;
                    }
                }
            }
        }
    })?;
    listening.pass()?;
    Ok(victim)
}
