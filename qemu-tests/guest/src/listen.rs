// SPDX-License-Identifier: GPL-2.0
//! Shows events as they happen.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::describe::sentence;
use crate::listener::Listener;
use crate::wire::{Received, mask};

/// How long one wait lasts; the next one follows.
const WAIT: Duration = Duration::from_secs(3600);

/// What to listen for, and how to show it.
#[derive(Args)]
pub struct Options {
    /// Kinds of events, comma-separated: fork exec uid gid sid ptrace comm session-end nonzero-exit
    /// coredump exit; without any, all of them but session-end.
    #[arg(long, value_delimiter = ',', value_parser = parse_kind)]
    mask: Vec<u32>,
    /// One JSON object a line instead of words.
    #[arg(long)]
    json: bool,
}

fn parse_kind(text: &str) -> Result<u32, String> {
    let names = || mask::NAMES.map(|(name, _)| name).join(", ");
    match mask::NAMES.iter().find(|(name, _)| *name == text) {
        Some((_, bit)) => Ok(*bit),
        None => Err(format!(
            "there is no such kind of event; there are {}",
            names()
        )),
    }
}

/// Shows events until the process is killed.
pub fn run(options: &Options) -> Result<()> {
    let mut listener = match options.mask.iter().fold(0, |mask, bit| mask | bit) {
        0 => Listener::listen_all()?,
        mask => Listener::listen(mask)?,
    };
    let mut output = io::stdout();
    loop {
        if let Some(received) = listener.receive(Instant::now() + WAIT)? {
            if options.json {
                writeln!(output, "{}", in_json(&received))?;
            } else {
                let event = &received.event;
                writeln!(output, "{:<11} {}", event.kind(), sentence(event))?;
            }
            output.flush()?;
        }
    }
}

fn in_json(received: &Received) -> serde_json::Value {
    let subject = received.event.subject();
    json!({
        "kind": received.event.kind(),
        "pid": subject.pid,
        "tgid": subject.tgid,
        "text": sentence(&received.event),
        "cpu": received.message.body.cpu,
        "seq": received.message.connector.seq,
        "ack": received.message.connector.ack,
        "timestamp_ns": received.timestamp_ns(),
    })
}
