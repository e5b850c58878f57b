// SPDX-License-Identifier: GPL-2.0
//! Storms of events on all CPUs, before readers that are fast, slow and stuck.
//!
//! All happens in one pid namespace, where nobody else raises events that can be seen. So those who
//! raise them know how many of each kind there are, and each listener has to have read as many as
//! it asked for, or the kernel to have counted the rest as lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::AddAssign;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, pipe, setresgid, setresuid, setsid};
use serde::{Deserialize, Serialize};

use crate::account::{Account, Sum, read};
use crate::child::{self, Child, execute_true};
use crate::cpus::{cpus, pin};
use crate::harness::{Failure, TestResult};
use crate::listener::Listener;
use crate::listing::Listing;
use crate::patience;
use crate::support::container::{Container, PID};
use crate::wire::{BATCH, LISTEN, mask, proc_listen};

/// How much is to happen.
#[derive(Args)]
pub struct Options {
    /// How long, in seconds.
    #[arg(long, default_value_t = 200)]
    pub seconds: u64,
}

/// Threads that are started at once.
const THREADS: usize = 4;

/// Room of a reader that overruns, in bytes.
const SMALL_BUFFER: u32 = 4096;

/// How many events a reader takes before it is the next one's turn.
const TURN: usize = 1000;

/// In which of its turns a slow reader reads.
const SELDOM: usize = 20;

/// How often to look whether the storms are over.
const GLANCE: Duration = Duration::from_millis(5);

/// How long the storms have for their last gust, and the last events to come.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How a reader reads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Fast,
    Slow,
    /// Not before all is over.
    Stuck,
}

/// Who reads, and what, with which flags.
const READERS: [(Pace, u32, u32); 16] = [
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

/// How many events of each kind, by its bit in a mask. A failed exit is counted at both its bits.
#[derive(Default, Deserialize, Serialize)]
struct Raised(BTreeMap<u32, u64>);

impl Raised {
    fn add(&mut self, bit: u32, number: u64) {
        *self.0.entry(bit).or_default() += number;
    }

    /// A process with an exit status, whatever it does in between.
    fn life(&mut self, status: i32) {
        self.add(mask::FORK, 1);
        self.add(mask::EXIT, 1);
        self.add(mask::NONZERO_EXIT, u64::from(status != 0));
    }

    /// How many events a mask asks for: who wants all exits gets none of them twice.
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

/// What one gust of a storm raises, over and over.
type Gust = fn(&mut Raised) -> Result<()>;

const STORMS: [Gust; 6] = [threads, forks, execs, renames, ids, sessions];

fn forks(raised: &mut Raised) -> Result<()> {
    for status in [0, 1] {
        child::fork(|| status)?.wait()?;
        raised.life(status);
    }
    Ok(())
}

fn execs(raised: &mut Raised) -> Result<()> {
    child::fork(|| i32::from(execute_true().is_err()))?.wait()?;
    raised.life(0);
    raised.add(mask::EXEC, 1);
    Ok(())
}

fn threads(raised: &mut Raised) -> Result<()> {
    let threads: Vec<_> = (0..THREADS).map(|_| thread::spawn(|| {})).collect();
    for thread in threads {
        thread.join().expect("an empty function does not panic");
        raised.life(0);
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

/// To other effective ids and back.
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
    raised.life(0);
    raised.add(mask::SID, 1);
    raised.add(mask::SESSION_END, 1);
    Ok(())
}

/// Runs it, prints the figures, and fails when an event is neither read nor counted as lost.
pub fn run(options: &Options) -> TestResult {
    let storm = || {
        weather(Duration::from_secs(options.seconds))
            .map_err(|error| Failure::new(format!("{error:#}")))
    };
    Container::start(PID, storm)?.finish()
}

/// The first process of the namespace: makes the storms, and reads.
fn weather(time: Duration) -> Result<()> {
    let mut readers = Vec::new();
    for (pace, mask, flags) in READERS {
        let mut listener = Listener::open()?;
        if pace == Pace::Slow {
            listener.socket().set_rx_buf_sz(SMALL_BUFFER)?;
        }
        listener.request(&proc_listen(LISTEN, mask, flags))?;
        readers.push(Account::new(listener, mask)?);
    }
    let cpus = cpus()?;
    let stop = Instant::now() + time;
    let (tallies, teller) = pipe()?;
    let mut storms = Vec::new();
    let mut raised = Raised::default();
    for cpu in &cpus {
        for gust in STORMS {
            storms.push(child::fork(|| tell(&teller, blow(gust, *cpu, stop)))?);
            raised.life(0);
        }
    }
    drop(teller);
    read_until_over(&mut readers, storms, stop + patience::stretched(END_LIMIT))?;
    raised += collect(tallies)?;
    // What is lost at the end shows by the number of what comes after it: gusts for which everybody
    // has room.
    read(&mut readers)?;
    for cpu in &cpus {
        pin(*cpu)?;
        for gust in STORMS {
            gust(&mut raised)?;
            read(&mut readers)?;
        }
    }
    settle(&mut readers, &raised, time)
}

/// One storm, on one CPU.
fn blow(gust: Gust, cpu: usize, stop: Instant) -> Result<Raised> {
    pin(cpu)?;
    let mut raised = Raised::default();
    while Instant::now() < stop {
        gust(&mut raised)?;
    }
    Ok(raised)
}

fn tell(teller: &OwnedFd, raised: Result<Raised>) -> i32 {
    let told = raised.and_then(|raised| {
        let mut line = serde_json::to_vec(&raised)?;
        line.push(b'\n');
        Ok(File::from(teller.try_clone()?).write_all(&line)?)
    });
    match told {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("storm: {error:#}");
            1
        }
    }
}

/// Adds up what the storms raised, who all have ended.
fn collect(tallies: OwnedFd) -> Result<Raised> {
    let mut text = String::new();
    File::from(tallies).read_to_string(&mut text)?;
    let mut total = Raised::default();
    for line in text.lines() {
        total += serde_json::from_str(line)?;
    }
    Ok(total)
}

/// Reads, each at its pace, until all storms are over.
fn read_until_over(readers: &mut [Account], storms: Vec<Child>, limit: Instant) -> Result<()> {
    let mut turns = 0;
    for storm in storms {
        let end = child::pidfd(storm.pid())?;
        while !child::has_ended(&end, GLANCE)? {
            turns += 1;
            for (reader, (pace, ..)) in readers.iter_mut().zip(READERS) {
                if pace == Pace::Fast || (pace == Pace::Slow && turns % SELDOM == 0) {
                    reader.read_at_most(TURN)?;
                }
            }
            ensure!(Instant::now() < limit, "the storms do not end");
        }
        let pid = storm.pid();
        let ended = storm.wait()?;
        let succeeded = nix::sys::wait::WaitStatus::Exited(pid, 0);
        ensure!(ended == succeeded, "a storm failed: {ended:?}");
    }
    Ok(())
}

/// Prints the accounts, and fails unless they balance.
///
/// The EXIT of a child may come a moment after its parent has waited for it: until then an account
/// may not balance. One that is wrong never does.
fn settle(readers: &mut [Account], raised: &Raised, time: Duration) -> Result<()> {
    let limit = patience::deadline(END_LIMIT);
    let (figures, sum, wrong) = loop {
        read(readers)?;
        let (figures, sum, wrong) = compare(readers, raised)?;
        if wrong.is_empty() || Instant::now() > limit {
            break (figures, sum, wrong);
        }
        thread::yield_now();
    };
    for (name, bit) in mask::NAMES {
        if let Some(number) = raised.0.get(&bit) {
            println!("storm: {number} {name}");
        }
    }
    let total = raised.wanted(mask::ALL);
    let rate = total as f64 / time.as_secs_f64();
    println!("storm: {total} events raised in {time:?}, {rate:.0} a second");
    for line in figures {
        println!("storm: {line}");
    }
    sum.tell();
    ensure!(
        wrong.is_empty(),
        "accounts do not balance: {}",
        wrong.join("; ")
    );
    Ok(())
}

/// The accounts, what they add up to, and what is wrong with them.
fn compare(readers: &[Account], raised: &Raised) -> Result<(Vec<String>, Sum, Vec<String>)> {
    let mut sum = Sum::default();
    let (mut figures, mut wrong) = (Vec::new(), Vec::new());
    for (account, (pace, mask, flags)) in readers.iter().zip(READERS) {
        let line = Listing::of(account.port_id)?;
        let (delivered, lost) = (line.delivered, line.lost);
        let generated = raised.wanted(mask);
        let unaccounted = i128::from(generated) - i128::from(delivered) - i128::from(lost);
        let Account {
            events,
            missing,
            overruns,
            ..
        } = account;
        sum.generated += generated;
        sum.delivered += delivered;
        sum.lost += lost;
        figures.push(format!(
            "{pace:?} {mask:#010x}, flags {flags}: generated {generated}, delivered {delivered}, lost {lost}, \
             unaccounted {unaccounted}, ENOBUFS {overruns}"
        ));
        if unaccounted != 0 || delivered != *events || lost != *missing {
            wrong.push(format!(
                "{pace:?} {mask:#010x}, flags {flags}: of {generated}, {delivered} were delivered and {events} \
                 read, {lost} lost and {missing} missed"
            ));
        }
    }
    Ok((figures, sum, wrong))
}
