// SPDX-License-Identifier: GPL-2.0
//! Shows events as they happen.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use crate::cgroup_paths::Groups;
use crate::describe::sentence;
use crate::identities;
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
    /// Also the control group that it happened in, by which services and containers are known: its
    /// path, or its id if it is gone.
    #[arg(long)]
    cgroups: bool,
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
    let mask = options.mask.iter().fold(0, |mask, bit| mask | bit);
    let (mut listener, mut groups) = match (options.cgroups, mask) {
        (true, 0) => with_groups(mask::ALL)?,
        (true, mask) => with_groups(mask)?,
        (false, 0) => (Listener::listen_all()?, None),
        (false, mask) => (Listener::listen(mask)?, None),
    };
    let mut output = io::stdout();
    loop {
        let Some(received) = listener.receive(Instant::now() + WAIT)? else {
            continue;
        };
        let group = groups.as_mut().map(|groups| match received.identity {
            Some(identity) => groups.name(identity.cgroup),
            // It happened before identities were asked for.
            None => "-".to_owned(),
        });
        if options.json {
            writeln!(output, "{}", in_json(&received, group))?;
        } else {
            let event = &received.event;
            let group = group.map_or_else(String::new, |group| format!("{group:<30} "));
            writeln!(output, "{:<11} {group}{}", event.kind(), sentence(event))?;
        }
        output.flush()?;
    }
}

/// A listener that hears which control groups events are from, and what tells their paths.
fn with_groups(mask: u32) -> Result<(Listener, Option<Groups>)> {
    let mut listener = Listener::open()?;
    let features = identities::listen(&mut listener, mask)?;
    ensure!(
        features & identities::FEATURE != 0,
        "this kernel does not tell control groups: it is too old"
    );
    Ok((listener, Some(Groups::open()?)))
}

fn in_json(received: &Received, group: Option<String>) -> serde_json::Value {
    let subject = received.event.subject();
    let mut event = json!({
        "kind": received.event.kind(),
        "pid": subject.pid,
        "tgid": subject.tgid,
        "text": sentence(&received.event),
        "cpu": received.message.body.cpu,
        "seq": received.message.connector.seq,
        "ack": received.message.connector.ack,
        "timestamp_ns": received.timestamp_ns(),
    });
    if let Some(group) = group {
        event["cgroup"] = group.into();
    }
    event
}
