// SPDX-License-Identifier: GPL-2.0
//! A fuzzer that knows what a message is made of, and what has to become of it.
//!
//! All that is random in a round follows from one number, the round's seed. Only how threads and
//! processes interleave is up to the kernel, so that a failing round may have to be repeated.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use fastrand::Rng;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::pipe;
use serde::{Deserialize, Serialize};

use crate::child::{self, Child};
use crate::harness::{Failure, TestResult, expect_eq};
use crate::listing::Listing;
use crate::patience;
use crate::tests::container::{self, ALL, Container, NET, PID, status};
use crate::tests::namespaces_lifetimes::Account;
use peer::Surroundings;
use tally::Tally;

mod life;
mod message;
mod peer;
mod race;
mod tally;
mod teardown;

/// How much is to happen.
#[derive(Args)]
pub struct Options {
    /// How many messages to send, at least.
    #[arg(long, default_value_t = 1_000_000)]
    pub messages: u64,
    /// What all that is random follows from; by default the time.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Repeat this round only, as a failure names it.
    #[arg(long)]
    pub round: Option<u64>,
    /// Processes that send at the same time.
    #[arg(long, default_value_t = 8)]
    pub workers: usize,
}

/// Rounds that are run first, one in a line, with what they once found.
const KEPT: &str = include_str!("../../fuzz-seeds");

/// How often to tell how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// How long nobody may have anything to tell.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);

/// How many characters a worker tells of a failure: fewer than a pipe takes at once.
const FAILURE_LIMIT: usize = 1000;

/// What a worker tells.
#[derive(Deserialize, Serialize)]
enum News {
    /// It ended a round.
    Round(Tally),
    /// It gave up.
    Failure(String),
}

/// Runs it, prints the figures, and fails when something was not as it has to be.
pub fn run(options: &Options) -> TestResult {
    let started = Instant::now();
    container::require(ALL)?;
    let surroundings = Surroundings::new()?;
    if let Some(seed) = options.round {
        let mut tally = Tally::default();
        round(seed, &surroundings, &mut tally)?;
        println!("fuzz: {tally}");
        return expect_nobody();
    }
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("fuzz: seed {seed}, {} workers", options.workers);
    // A user whose namespaces can be counted.
    let account = Account::new()?;
    let (reader, writer) = pipe()?;
    let share = options.messages / options.workers.max(1) as u64;
    let mut seeds = Rng::with_seed(seed);
    let mut workers = Vec::new();
    for index in 0..options.workers {
        let rounds = rounds(seeds.fork(), index, options.workers)?;
        let work = || work(rounds, share, &surroundings, &writer);
        workers.push(match index % 2 {
            0 => child::fork(|| status(work))?,
            _ => account.spawn(|| Container::start(PID | NET, work)?.finish())?,
        });
    }
    drop(writer);
    let followed = follow(&reader, started);
    if followed.is_err() {
        for worker in &workers {
            // ESRCH: it is gone already.
            let _ = kill(worker.pid(), Signal::SIGKILL);
        }
    }
    let tally = followed?;
    workers.into_iter().try_for_each(expect_end)?;
    expect_nobody()?;
    account.expect_nothing_left()?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = tally.messages as f64 / seconds;
    println!("fuzz: {tally}");
    println!("fuzz: {seconds:.1} s, {rate:.0} messages/s; nobody listens, no namespace is left");
    Ok(())
}

/// A worker's share of the kept rounds, and new ones without end.
fn rounds(
    mut seeds: Rng,
    index: usize,
    workers: usize,
) -> Result<impl Iterator<Item = u64>, Failure> {
    let kept = KEPT
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::parse)
        .collect::<Result<Vec<u64>, _>>()?;
    let kept = kept.into_iter().skip(index).step_by(workers);
    Ok(kept.chain(std::iter::repeat_with(move || seeds.u64(..))))
}

/// Runs rounds until so many messages are sent.
fn work(
    mut rounds: impl Iterator<Item = u64>,
    messages: u64,
    surroundings: &Surroundings,
    news: &OwnedFd,
) -> TestResult {
    let mut sent = 0;
    while sent < messages {
        let mut tally = Tally::default();
        let Some(seed) = rounds.next() else {
            return Ok(());
        };
        if let Err(failure) = round(seed, surroundings, &mut tally) {
            let what = format!("round {seed}: {failure}");
            let what = what.chars().take(FAILURE_LIMIT).collect();
            return tell(news, &News::Failure(what));
        }
        sent += tally.messages;
        tell(news, &News::Round(tally))?;
    }
    Ok(())
}

/// One round, of one kind.
fn round(seed: u64, surroundings: &Surroundings, tally: &mut Tally) -> TestResult {
    let mut random = Rng::with_seed(seed);
    let kind = match random.u8(..10) {
        0..6 => {
            life::run(random, surroundings, tally)?;
            "lives"
        }
        6..9 => {
            race::run(random, surroundings, tally)?;
            "races"
        }
        _ => {
            teardown::run(random, surroundings, tally)?;
            "teardowns"
        }
    };
    tally.rounds.insert(kind.to_owned(), 1);
    Ok(())
}

/// Tells the parent, in one write, so that lines of several workers do not mix.
fn tell(pipe: &OwnedFd, news: &News) -> TestResult {
    let mut line = serde_json::to_vec(news)?;
    line.push(b'\n');
    Ok(File::from(pipe.try_clone()?).write_all(&line)?)
}

/// Adds up what the workers tell, until they have ended.
fn follow(reader: &OwnedFd, started: Instant) -> Result<Tally, Failure> {
    let mut reader = File::from(reader.try_clone()?);
    let mut total = Tally::default();
    let mut progress = Instant::now();
    let mut rest = Vec::new();
    let silence = patience::stretched(SILENCE_LIMIT);
    let limit = PollTimeout::try_from(silence).unwrap_or(PollTimeout::MAX);
    loop {
        if poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], limit)? == 0 {
            let what = format!("no worker ended a round in {silence:?}");
            return Err(Failure::new(what));
        }
        let mut bytes = [0; 4096];
        let length = reader.read(&mut bytes)?;
        if length == 0 {
            return Ok(total);
        }
        rest.extend(&bytes[..length]);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            match serde_json::from_slice(&line)? {
                News::Round(tally) => total += tally,
                News::Failure(failure) => {
                    let how = "repeat it with: proc-events-guest fuzz --round N";
                    return Err(Failure::new(format!("{failure}\n  {how}")));
                }
            }
        }
        if progress.elapsed() > PROGRESS {
            progress = Instant::now();
            println!("fuzz: {:.0} s: {total}", started.elapsed().as_secs_f64());
        }
    }
}

fn expect_end(worker: Child) -> TestResult {
    let pid = worker.pid();
    let ended = worker.wait()?;
    let succeeded = nix::sys::wait::WaitStatus::Exited(pid, 0);
    expect_eq("a worker", ended, succeeded)
}

fn expect_nobody() -> TestResult {
    expect_eq("listeners at the end", Listing::read()?.count, 0)
}

/// A namespace of this process, by its inode.
fn own_namespace(kind: &str) -> Result<u64, Failure> {
    Ok(fs::metadata(format!("/proc/thread-self/ns/{kind}"))?.ino())
}
