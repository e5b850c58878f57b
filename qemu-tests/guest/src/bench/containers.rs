// SPDX-License-Identifier: GPL-2.0
//! The cost of an event in one of many containers that listen, each in namespaces of its own.

use std::fs::File;

use anyhow::{Context, Result, anyhow};
use nix::unistd::pipe;
use protocol::bench::{LISTENER_COUNTS, Operation, Situation, THOUSANDS};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::listener_set::ListenerSet;
use super::measure::{Measured, measure, repeated};
use super::operations::rename;
use super::report::{missing, report_figure};
use crate::child::allow_descriptors;
use crate::harness::Failure;
use crate::support::container::{ALL, Container, PID};
use crate::wire::mask;

/// Measures a rename in a container, without a listener and with an increasing number of listeners,
/// each in a container of its own.
pub fn run() -> Result<()> {
    let mut containers = vec![start()?];
    let measured = measure_in(&containers[0], None)?;
    report_figure(Operation::Comm, Situation::Containers, 0, measured)?;
    let mut listeners = Vec::new();
    for (index, count) in LISTENER_COUNTS.into_iter().enumerate() {
        while containers.len() < count as usize {
            containers.push(start()?);
        }
        for container in &containers[listeners.len()..] {
            match container.listen(mask::ALL) {
                Ok(listener) => {
                    listener.enlarge_buffer()?;
                    listeners.push(ListenerSet::of(listener));
                }
                Err(failure) => {
                    let left = LISTENER_COUNTS.len() - index + 1;
                    eprintln!("bench: listening in a container: {failure}");
                    let reason = "no process in a container can listen".to_owned();
                    return missing(left, Situation::Containers, reason);
                }
            }
        }
        let worst = worst_of(&containers, &mut listeners)?;
        report_figure(Operation::Comm, Situation::Containers, count, worst)?;
    }
    drop((containers, listeners));
    thousands()
}

/// The same with thousands of containers. Each has only a pid namespace, so that they do not take all
/// memory.
fn thousands() -> Result<()> {
    // The descriptors of each container and its listener.
    const DESCRIPTORS: usize = 8;
    allow_descriptors(DESCRIPTORS * THOUSANDS as usize)?;
    let containers = (0..THOUSANDS)
        .map(|_| {
            Container::idle(PID).map_err(|failure| anyhow!("cannot start a container: {failure}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut listeners = containers
        .iter()
        .map(|container| {
            let listener = container.listen(mask::ALL);
            listener
                .map(ListenerSet::of)
                .map_err(|failure| anyhow!("{failure}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let worst = worst_of(&containers, &mut listeners)?;
    report_figure(Operation::Comm, Situation::Containers, THOUSANDS, worst)
}

/// Returns the worst figure of the first, the middle and the last container: the figure must not
/// depend on the place.
fn worst_of(containers: &[Container], listeners: &mut [ListenerSet]) -> Result<Measured> {
    let last = containers.len() - 1;
    let mut worst: Option<Measured> = None;
    for index in [0, last / 2, last] {
        let measured = measure_in(&containers[index], Some(&mut listeners[index]))?;
        if worst.is_none_or(|worst| measured.median > worst.median) {
            worst = Some(measured);
        }
    }
    worst.context("there is a container")
}

fn start() -> Result<Container> {
    Container::idle(ALL).map_err(|failure| anyhow!("cannot start a container: {failure}"))
}

/// Runs a function in a new process of the container, which sends the result over a pipe. The result
/// has to be small, because it is read after the process has ended.
pub fn run_in<T: Serialize + DeserializeOwned>(
    container: &Container,
    function: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (reader, writer) = pipe()?;
    let outcome = container.run(move || {
        let result = function().map_err(|error| Failure::new(format!("{error:#}")))?;
        Ok(serde_json::to_writer(File::from(writer), &result)?)
    });
    outcome.map_err(|failure| anyhow!("in a container: {failure}"))?;
    Ok(serde_json::from_reader(File::from(reader))?)
}

fn measure_in(container: &Container, listener: Option<&mut ListenerSet>) -> Result<Measured> {
    run_in(container, move || measure_renames(listener))
}

fn measure_renames(mut listener: Option<&mut ListenerSet>) -> Result<Measured> {
    // The events that were sent to it until now are of no interest.
    if let Some(listener) = &mut listener {
        listener.drain(0, 0)?;
    }
    measure(&mut repeated(rename), &mut |times| match &mut listener {
        Some(listener) => listener.drain(mask::COMM, times),
        None => Ok(()),
    })
}
