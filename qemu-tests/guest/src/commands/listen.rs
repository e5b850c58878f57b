// SPDX-License-Identifier: GPL-2.0
//! Shows events as they happen.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::cgroup_paths::Groups;
use crate::describe::sentence;
use crate::identities;
use crate::listener::Listener;
use crate::wire::{Event, FEATURE_STATE, Received, mask};

/// How long one wait lasts before the next one follows.
const WAIT: Duration = Duration::from_secs(3600);

/// The sequence number of the request for the state.
const STATE_SEQ: u32 = 1;

/// What to listen for, and how to show it.
#[derive(Args)]
pub struct Options {
    /// Kinds of events, comma-separated: fork exec uid gid sid ptrace comm session-end nonzero-exit
    /// coredump exit. Without this option, all of them except session-end.
    #[arg(long, value_delimiter = ',', value_parser = parse_kind)]
    mask: Vec<u32>,
    /// Print one JSON object per line instead of words.
    #[arg(long)]
    json: bool,
    /// Also print the control group of each event, which identifies a service or container: its
    /// path, or its id if it is gone.
    #[arg(long)]
    cgroups: bool,
    /// First print the processes that exist already, as kind process.
    #[arg(long)]
    state: bool,
}

fn parse_kind(text: &str) -> Result<u32, String> {
    let names = || mask::NAMES.map(|(name, _)| name).join(", ");
    match mask::NAMES.iter().find(|(name, _)| *name == text) {
        Some((_, bit)) => Ok(*bit),
        None => Err(format!(
            "there is no such kind of event: the kinds are {}",
            names()
        )),
    }
}

/// Shows events until the process is killed.
pub fn run(options: &Options) -> Result<()> {
    let mask = options.mask.iter().fold(0, |mask, bit| mask | bit);
    let (mut listener, mut groups) = match (options.cgroups || options.state, mask) {
        (true, 0) => with_features(options, mask::ALL)?,
        (true, mask) => with_features(options, mask)?,
        (false, 0) => (Listener::listen_all()?, None),
        (false, mask) => (Listener::listen(mask)?, None),
    };
    if options.state {
        listener.ask_for_state(STATE_SEQ)?;
    }
    let mut output = io::stdout();
    loop {
        let Some(received) = listener.receive(Instant::now() + WAIT)? else {
            continue;
        };
        match received.event {
            Event::Ack { err } if err != 0 && received.message.connector.seq == STATE_SEQ => {
                bail!("no state: {}", io::Error::from_raw_os_error(err as i32));
            }
            _ => {}
        }
        let group = groups.as_mut().map(|groups| match received.identity {
            Some(identity) => groups.name(identity.cgroup),
            // It happened before identities were requested.
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

/// A listener on a kernel that has the features that the options need. Its events have the ids of
/// their control groups. Also returns the paths of the groups, if the options show them.
fn with_features(options: &Options, mask: u32) -> Result<(Listener, Option<Groups>)> {
    let mut listener = Listener::open()?;
    let features = identities::listen(&mut listener, mask)?;
    ensure!(
        !options.cgroups || features & identities::FEATURE != 0,
        "this kernel does not report control groups: it is too old"
    );
    ensure!(
        !options.state || features & FEATURE_STATE != 0,
        "this kernel does not report which processes exist: it is too old"
    );
    let groups = options.cgroups.then(Groups::open).transpose()?;
    Ok((listener, groups))
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
