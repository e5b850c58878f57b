// SPDX-License-Identifier: GPL-2.0
//! The cost of a list of all processes: from the kernel's state, and from /proc.
//!
//! A process reads both, one after the other, in its pid namespace.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::thread;

use anyhow::{Result, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};
use protocol::bench::{BenchRecord, Enumeration, POPULATIONS, Situation};

use super::clock::instructions;
use super::containers::run_in;
use super::listener_set::request;
use super::measure::{Times, repeated};
use super::reader::{ReadCount, Reader};
use super::report::{missing, report_line};
use super::rounds::LINGER;
use crate::debugfs;
use crate::harness::TestResult;
use crate::listener::Listener;
use crate::support::container::{Container, PID, keep_mounts, mount_own_proc};
use crate::support::idle_processes::start_small;
use crate::wire::{PROCESS, STATE, mask};

/// The forms in which the kernel reports the state.
const FORMS: [Situation; 2] = [Situation::State, Situation::IdentityState];

/// How many figures there are: from /proc, and in each form.
pub const FIGURES: usize = (1 + FORMS.len()) * POPULATIONS.len();

/// How often the list is read for each figure. The number is small, because each time takes long.
const TIMES: usize = 5;

/// More bytes than a /proc/PID/stat has.
const STAT_SIZE: usize = 1024;

/// Measures all of them.
pub fn run() -> Result<()> {
    let has_state = debugfs::is_there();
    for count in POPULATIONS {
        let container = Container::idle(PID)
            .map_err(|failure| anyhow!("cannot start a container: {failure}"))?;
        container
            .run(|| populate(count))
            .map_err(|failure| anyhow!("cannot make {count} processes: {failure}"))?;
        // Until each has started, and does nothing more.
        thread::sleep(LINGER);
        let enumerations = run_in(&container, move || enumerations(count, has_state))?;
        for enumeration in enumerations {
            report_line(&BenchRecord::Enumeration(enumeration))?;
        }
    }
    if has_state {
        return Ok(());
    }
    let figures = FORMS.len() * POPULATIONS.len();
    missing(figures, Situation::State, "it has no such request".into())
}

/// Makes this many processes that do nothing until they are killed.
fn populate(count: u32) -> TestResult {
    for _ in 0..count {
        start_small()?;
    }
    Ok(())
}

/// Lists the processes in all ways. `made` is the number of processes that were made for this.
fn enumerations(made: u32, has_state: bool) -> Result<Vec<Enumeration>> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    keep_mounts()?;
    mount_own_proc()?;
    let mut enumerations = vec![enumeration(Situation::NoListener, made, &mut read_proc)?];
    if !has_state {
        return Ok(enumerations);
    }
    let listener = Listener::open()?;
    let mut reader = Reader::default();
    for form in FORMS {
        // The listener does not ask for the events that happen meanwhile.
        listener.request(&request(form, mask::SID))?;
        reader.read_all(&listener, 0)?;
        let mut list = || ask(&listener, &mut reader);
        enumerations.push(enumeration(form, made, &mut list)?);
    }
    Ok(enumerations)
}

/// Lists the processes in one way: those that were made, the first process of the namespace, and this
/// one.
fn enumeration(
    situation: Situation,
    made: u32,
    list: &mut dyn FnMut() -> Result<u64>,
) -> Result<Enumeration> {
    let all = u64::from(made) + 2;
    let mut operation = repeated(|| {
        let started = instructions();
        let processes = list()?;
        let taken = instructions() - started;
        ensure!(
            processes == all,
            "{processes} of {all} processes were found"
        );
        Ok(taken)
    });
    // Warms up.
    Times::default().take_of(1, 1, &mut operation, &mut |_| Ok(()))?;
    let mut times = Times::default();
    times.take_of(TIMES, 1, &mut operation, &mut |_| Ok(()))?;
    let measured = times.measured().of_each(all);
    Ok(Enumeration {
        situation,
        processes: made,
        instructions: measured.median,
        spread: measured.spread,
    })
}

/// Reads /proc/PID/stat of all processes, as a fast program does: into one buffer, without parsing it.
/// Returns the number of processes.
fn read_proc() -> Result<u64> {
    let mut processes = 0;
    let mut path = String::new();
    let mut stat = [0; STAT_SIZE];
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|name| name.as_bytes()[0].is_ascii_digit())
        else {
            continue;
        };
        path.clear();
        write!(path, "/proc/{pid}/stat")?;
        let length = File::open(&path)?.read(&mut stat)?;
        ensure!(length > 0, "{path} is empty");
        processes += 1;
    }
    Ok(processes)
}

/// Requests the state, and reads until the answer. Returns the number of processes.
fn ask(listener: &Listener, reader: &mut Reader) -> Result<u64> {
    let mut count = ReadCount::default();
    listener.request(&[STATE])?;
    loop {
        let before = count.events;
        count.add(reader.receive(listener)?, PROCESS)?;
        // The answer has a datagram of its own.
        if count.events == before {
            return Ok(count.events);
        }
    }
}
