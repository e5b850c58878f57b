// SPDX-License-Identifier: GPL-2.0
//! Storms of events on all CPUs, with readers that are fast, slow and stuck.
//!
//! All happens in one pid namespace, where no other process raises visible events. So the workers,
//! which raise the events, know how many of each kind there are. On a kernel without pid namespaces,
//! they know this only for the kinds that no other process raises. Each listener has to read all events
//! that it asked for, unless the kernel counts the rest as lost. Other listeners may come and go
//! meanwhile, and none of them is left at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::AddAssign;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Uid, pipe, setresgid, setresuid, setsid};
use serde::{Deserialize, Serialize};

use super::counted_listener::{Comparison, CountedListener, read, settle};
use super::victim;
use crate::child::{self, Child, execute_true};
use crate::cpus::{cpus, pin};
use crate::debugfs::Listing;
use crate::harness::{Failure, TestResult};
use crate::listener::{Listener, ListenerError};
use crate::support::container::{Container, PID, available, lacking};
use crate::timeouts;
use crate::wire::{BATCH, IGNORE, LISTEN, mask, proc_listen};

/// How much to do.
#[derive(Args)]
pub struct Options {
    /// How long to run, in seconds.
    #[arg(long, default_value_t = 200)]
    pub seconds: u64,
    /// Whether other listeners come and go meanwhile.
    #[arg(long)]
    pub churn: bool,
    /// What the workers do. A kernel that is slow with processes has more events without them.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Work::value_variants().to_vec())]
    pub work: Vec<Work>,
    /// Listen only with BATCH, which also takes less time for an event.
    #[arg(long)]
    pub batches_only: bool,
}

/// What a worker does, which raises events of some kinds.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Work {
    /// Starts threads.
    Threads,
    /// Forks, and waits.
    Forks,
    /// Runs programs.
    Execs,
    /// Changes its name.
    Renames,
    /// Changes user and group ids.
    Ids,
    /// Becomes a session leader, in a child.
    Sessions,
}

impl Work {
    fn load(self) -> Load {
        match self {
            Self::Threads => threads,
            Self::Forks => forks,
            Self::Execs => execs,
            Self::Renames => renames,
            Self::Ids => ids,
            Self::Sessions => sessions,
        }
    }
}

/// How many threads are started at the same time.
const THREADS: usize = 4;

/// The receive buffer of a slow reader, in bytes: it overruns.
const SMALL_BUFFER: u32 = 4096;

/// How many events a reader takes in a turn.
const TURN: usize = 1000;

/// A slow reader reads in one of this many turns.
const SLOW_TURNS: usize = 20;

/// How often to check whether the workers have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long the workers may take for their last events, and these events to arrive.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How a reader reads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Fast,
    Slow,
    /// Only when all is over.
    Stuck,
}

/// The pace of a reader, its mask and its flags.
type Reader = (Pace, u32, u32);

/// All readers.
const READERS: [Reader; 16] = [
    (Pace::Fast, mask::ALL, 0),
    (Pace::Slow, mask::ALL, 0),
    (Pace::Stuck, mask::ALL, 0),
    (Pace::Fast, mask::ALL, BATCH),
    (Pace::Slow, mask::ALL, BATCH),
    (Pace::Stuck, mask::ALL, BATCH),
    (Pace::Fast, mask::FORK, 0),
    (Pace::Fast, mask::EXEC, 0),
    (Pace::Fast, mask::EXIT, 0),
    (Pace::Fast, mask::NONZERO_EXIT, 0),
    (Pace::Fast, mask::COMM, BATCH),
    (Pace::Slow, mask::UID | mask::GID, 0),
    (Pace::Slow, mask::FORK | mask::EXIT, BATCH),
    (Pace::Stuck, mask::SID, 0),
    (Pace::Slow, mask::SESSION_END, 0),
    (Pace::Stuck, mask::FORK | mask::NONZERO_EXIT, 0),
];

/// How many events of each kind were raised, by the kind's bit in a mask. A failed exit counts for both
/// of its bits.
#[derive(Default, Deserialize, Serialize)]
struct Raised(BTreeMap<u32, u64>);

impl Raised {
    fn add(&mut self, bit: u32, number: u64) {
        *self.0.entry(bit).or_default() += number;
    }

    /// Adds the start and the end of a process or thread with this exit status.
    fn add_process(&mut self, status: i32) {
        self.add(mask::FORK, 1);
        self.add(mask::EXIT, 1);
        self.add(mask::NONZERO_EXIT, u64::from(status != 0));
    }

    /// How many events a mask asks for: a listener that wants all exits gets none of them twice.
    fn wanted(&self, wanted: u32) -> u64 {
        let wanted = match wanted & mask::EXIT {
            0 => wanted,
            _ => wanted & !mask::NONZERO_EXIT,
        };
        let bits = self.0.iter().filter(|(bit, _)| wanted & **bit != 0);
        bits.map(|(_, number)| number).sum()
    }
}

impl AddAssign for Raised {
    fn add_assign(&mut self, other: Self) {
        for (bit, number) in other.0 {
            self.add(bit, number);
        }
    }
}

/// A function that raises some events and counts them, or does something else to other listeners. A
/// worker calls it over and over.
type Load = fn(&mut Raised) -> Result<()>;

/// What is done to other listeners: two workers start and end them, and one kills them.
const CHURN: [Load; 3] = [start_and_end, start_and_end, kill_listener];

/// Threads of a worker that starts and ends listeners.
const CHURNING: usize = 8;

/// How many listeners each of them starts.
const LISTENERS: usize = 50;

/// How long a listener in a process of its own runs before it is killed.
const LISTENER_TIME: Duration = Duration::from_millis(20);

fn forks(raised: &mut Raised) -> Result<()> {
    for status in [0, 1] {
        child::fork(|| status)?.wait()?;
        raised.add_process(status);
    }
    Ok(())
}

fn execs(raised: &mut Raised) -> Result<()> {
    child::fork(|| i32::from(execute_true().is_err()))?.wait()?;
    raised.add_process(0);
    raised.add(mask::EXEC, 1);
    Ok(())
}

fn threads(raised: &mut Raised) -> Result<()> {
    let threads: Vec<_> = (0..THREADS).map(|_| thread::spawn(|| {})).collect();
    for thread in threads {
        thread.join().expect("an empty function does not panic");
        raised.add_process(0);
    }
    Ok(())
}

fn renames(raised: &mut Raised) -> Result<()> {
    const NAMES: [&std::ffi::CStr; 4] = [c"gale", c"squall", c"tempest", c"hurricane"];
    for name in NAMES {
        prctl::set_name(name)?;
    }
    raised.add(mask::COMM, NAMES.len() as u64);
    Ok(())
}

/// Changes to other effective ids, and back.
fn ids(raised: &mut Raised) -> Result<()> {
    let (root, other) = (Uid::from_raw(0), Uid::from_raw(4242));
    setresuid(root, other, root)?;
    setresuid(root, root, root)?;
    raised.add(mask::UID, 2);
    let (root, other) = (Gid::from_raw(0), Gid::from_raw(4242));
    setresgid(root, other, root)?;
    setresgid(root, root, root)?;
    raised.add(mask::GID, 2);
    Ok(())
}

fn sessions(raised: &mut Raised) -> Result<()> {
    child::fork(|| i32::from(setsid().is_err()))?.wait()?;
    raised.add_process(0);
    raised.add(mask::SID, 1);
    raised.add(mask::SESSION_END, 1);
    Ok(())
}

/// Starts, changes and ends listeners in many threads, also in two threads on one socket.
fn start_and_end(raised: &mut Raised) -> Result<()> {
    let started = thread::scope(|scope| {
        let threads: Vec<_> = (0..CHURNING)
            .map(|first| scope.spawn(move || (first..first + LISTENERS).map(churn).sum()))
            .collect();
        let started = threads.into_iter().map(|thread| {
            let started: Result<usize, ListenerError> =
                thread.join().expect("requests do not panic");
            started
        });
        started.sum::<Result<usize, _>>()
    })?;
    for _ in 0..CHURNING + started {
        raised.add_process(0);
    }
    Ok(())
}

/// Opens, uses and closes a socket, in a way that depends on the round. Returns how many threads that
/// took.
fn churn(round: usize) -> Result<usize, ListenerError> {
    const MASKS: [u32; 5] = [mask::SID, mask::ALL, mask::COMM, mask::FORK, 0];
    let listener = Listener::open_unprivileged()?;
    let masks = MASKS.iter().cycle().skip(round).take(1 + round % 3);
    for (index, mask) in masks.enumerate() {
        let flags = if index % 2 == 0 { BATCH } else { 0 };
        listener.request(&proc_listen(LISTEN, *mask, flags))?;
    }
    match round % 4 {
        0 => {}
        1 => listener.request(&[IGNORE])?,
        2 => {
            listener.request(&[IGNORE])?;
            listener.request(&[LISTEN])?;
        }
        _ => {
            thread::scope(|scope| {
                let other = scope.spawn(|| listener.request(&[LISTEN, mask::EXIT]));
                let ignored = listener.request(&[IGNORE]);
                other.join().expect("a request does not panic").and(ignored)
            })?;
            return Ok(1);
        }
    }
    Ok(0)
}

/// Starts a process that listens, and kills it.
fn kill_listener(raised: &mut Raised) -> Result<()> {
    let victim = victim::start(&[mask::EXEC])?;
    let end = child::pidfd(victim.pid())?;
    if child::has_ended(&end, LISTENER_TIME)? {
        bail!("a listener ended by itself: {:?}", victim.wait()?);
    }
    kill(victim.pid(), Signal::SIGKILL)?;
    victim.wait()?;
    raised.add_process(1);
    Ok(())
}

/// Runs the storm, and prints the figures. Fails if an event is neither read nor counted as lost.
pub fn run(options: &Options) -> TestResult {
    let load = || run_in_namespace(options).map_err(|error| Failure::new(format!("{error:#}")));
    Container::start(available(PID), load)?.finish()
}

/// What the first process of the pid namespace does: it starts the workers, and reads.
fn run_in_namespace(options: &Options) -> Result<()> {
    let time = Duration::from_secs(options.seconds);
    let chosen: Vec<_> = READERS
        .into_iter()
        .filter(|(.., flags)| !options.batches_only || flags & BATCH != 0)
        .collect();
    let mut readers = Vec::new();
    for &(pace, mask, flags) in &chosen {
        let mut listener = Listener::open()?;
        if pace == Pace::Slow {
            listener.socket().set_rx_buf_sz(SMALL_BUFFER)?;
        }
        listener.request(&proc_listen(LISTEN, mask, flags))?;
        readers.push(CountedListener::new(listener)?);
    }
    let cpus = cpus()?;
    let stop = Instant::now() + time;
    let (reports, report_writer) = pipe()?;
    let mut loads: Vec<_> = cpus
        .iter()
        .flat_map(|cpu| options.work.iter().map(|work| (work.load(), Some(*cpu))))
        .collect();
    if options.churn {
        loads.extend(CHURN.map(|load| (load, None)));
    }
    let mut workers = Vec::new();
    let mut raised = Raised::default();
    for (load, cpu) in loads {
        workers.push(child::fork(|| {
            send_report(&report_writer, repeat(load, cpu, stop))
        })?);
        raised.add_process(0);
    }
    drop(report_writer);
    read_until_over(
        &mut readers,
        &chosen,
        workers,
        stop + timeouts::scaled(END_LIMIT),
    )?;
    raised += add_reports(reports)?;
    // A loss at the end shows only in the number of the next event. So a few more events are raised,
    // for which each reader has room.
    read(&mut readers)?;
    for cpu in &cpus {
        pin(*cpu)?;
        for work in Work::value_variants() {
            work.load()(&mut raised)?;
            read(&mut readers)?;
        }
    }
    report(&mut readers, &chosen, &raised, time)
}

/// Repeats a load, on one CPU or any, until it is time to stop.
fn repeat(load: Load, cpu: Option<usize>, stop: Instant) -> Result<Raised> {
    if let Some(cpu) = cpu {
        pin(cpu)?;
    }
    let mut raised = Raised::default();
    while Instant::now() < stop {
        load(&mut raised)?;
    }
    Ok(raised)
}

/// Sends a worker's report, which says what it raised. Returns the worker's exit status.
fn send_report(writer: &OwnedFd, raised: Result<Raised>) -> i32 {
    let sent = raised.and_then(|raised| {
        let mut line = serde_json::to_vec(&raised)?;
        line.push(b'\n');
        Ok(File::from(writer.try_clone()?).write_all(&line)?)
    });
    match sent {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("storm: {error:#}");
            1
        }
    }
}

/// Adds up the reports of the workers, all of which have ended.
fn add_reports(reports: OwnedFd) -> Result<Raised> {
    let mut text = String::new();
    File::from(reports).read_to_string(&mut text)?;
    let mut total = Raised::default();
    for line in text.lines() {
        total += serde_json::from_str(line)?;
    }
    Ok(total)
}

/// Reads for each reader, at its pace, until all workers have ended.
fn read_until_over(
    readers: &mut [CountedListener],
    chosen: &[Reader],
    workers: Vec<Child>,
    limit: Instant,
) -> Result<()> {
    let mut turns = 0;
    for worker in workers {
        let end = child::pidfd(worker.pid())?;
        while !child::has_ended(&end, POLL_INTERVAL)? {
            turns += 1;
            for (reader, (pace, ..)) in readers.iter_mut().zip(chosen) {
                if *pace == Pace::Fast || (*pace == Pace::Slow && turns % SLOW_TURNS == 0) {
                    reader.read_at_most(TURN)?;
                }
            }
            ensure!(Instant::now() < limit, "the workers do not end");
        }
        let pid = worker.pid();
        let ended = worker.wait()?;
        let succeeded = nix::sys::wait::WaitStatus::Exited(pid, 0);
        ensure!(ended == succeeded, "a worker failed: {ended:?}");
    }
    Ok(())
}

/// Prints what was raised and what became of it. Fails unless the accounts balance.
fn report(
    readers: &mut [CountedListener],
    chosen: &[Reader],
    raised: &Raised,
    time: Duration,
) -> Result<()> {
    let comparison = settle(readers, END_LIMIT, |readers| {
        compare(readers, chosen, raised)
    })?;
    for (name, bit) in mask::NAMES {
        if let Some(number) = raised.0.get(&bit) {
            println!("storm: {number} {name}");
        }
    }
    let total = raised.wanted(mask::ALL);
    let rate = total as f64 / time.as_secs_f64();
    println!("storm: {total} events raised in {time:?}, {rate:.0} a second");
    comparison.report("storm")?;
    // The readers that are slow or stuck are there to lose events.
    ensure!(comparison.totals.lost > 0, "no reader lost an event");
    Ok(())
}

/// The events that other processes raise, too, without a pid namespace.
const RAISED_BY_OTHERS: u32 = mask::FORK | mask::EXIT | mask::NONZERO_EXIT | mask::COMM;

/// Compares the kernel's accounts with what was raised and read.
fn compare(readers: &[CountedListener], chosen: &[Reader], raised: &Raised) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    let Comparison {
        lines,
        totals,
        wrong,
    } = &mut comparison;
    let is_alone = lacking(PID).is_none();
    let count = Listing::read()?.count;
    if count != readers.len() {
        let there = readers.len();
        wrong.push(format!(
            "{count} listeners are counted and {there} are there"
        ));
    }
    for (listener, &(pace, mask, flags)) in readers.iter().zip(chosen) {
        let line = Listing::of(listener.port_id)?;
        let (delivered, lost) = (line.delivered, line.lost);
        let is_known = is_alone || mask & RAISED_BY_OTHERS == 0;
        let generated = is_known.then(|| raised.wanted(mask));
        let CountedListener {
            events,
            missing,
            overruns,
            ..
        } = listener;
        totals.generated = totals.generated.zip(generated).map(|(sum, own)| sum + own);
        totals.delivered += delivered;
        totals.lost += lost;
        let reader = format!("{pace:?} {mask:#010x}, flags {flags}");
        let account = match generated {
            Some(generated) => {
                let unaccounted = i128::from(generated) - i128::from(delivered) - i128::from(lost);
                if unaccounted != 0 {
                    wrong.push(format!(
                        "{reader}: {unaccounted} of {generated} are unaccounted for"
                    ));
                }
                format!("generated {generated}, unaccounted {unaccounted}, ")
            }
            None => String::new(),
        };
        lines.push(format!(
            "{reader}: {account}delivered {delivered}, lost {lost}, ENOBUFS {overruns}"
        ));
        if delivered != *events || lost != *missing {
            wrong.push(format!(
                "{reader}: {delivered} were delivered and {events} read, {lost} lost and {missing} missed"
            ));
        }
        // The first loss raises ENOBUFS. Another one does so only after the queue has been empty.
        let possible = u64::from(lost > 0)..=lost;
        if !possible.contains(overruns) {
            wrong.push(format!(
                "{reader}: {lost} were lost and ENOBUFS came {overruns} times"
            ));
        }
    }
    Ok(comparison)
}
