// SPDX-License-Identifier: GPL-2.0
//! A fuzzer that knows the structure of a message, and how the kernel has to react to it.
//!
//! All that is random in a round follows from one number, the round's seed, or is written down as a
//! program. Only the interleaving of threads and processes is up to the kernel. So a failing round
//! may have to be repeated until it fails again.
//!
//! On a kernel with CONFIG_KCOV, programs are made from those that covered something new. On a kernel
//! that lacks some kind of namespaces, all that needs them is left out.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use fastrand::Rng;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use serde::{Deserialize, Serialize};

use crate::child;
use crate::debugfs::Listing;
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::results;
use crate::support::container::{ALL, Container, NET, PID, USER, available, lacking};
use crate::support::namespace_user::NamespaceUser;
use crate::support::process::{status, succeed};
use crate::timeouts;
use corpus::Corpus;
use coverage::{Coverage, Functions, Kcov};
use environment::Environment;
use program::Program;
use tally::Tally;

mod cgroups;
mod checked_socket;
mod corpus;
mod coverage;
mod environment;
mod message;
mod program;
mod race;
mod reading;
mod requests;
mod sequence;
mod tally;
mod teardown;
mod this_process;

/// How much to do.
#[derive(Args)]
pub struct Options {
    /// How many messages to send, at least.
    #[arg(long, default_value_t = 1_000_000)]
    pub messages: u64,
    /// The seed of all that is random; by default the time.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Repeat only this round, in the form in which a failure names it.
    #[arg(long)]
    pub round: Option<Round>,
    /// Processes that send at the same time.
    #[arg(long, default_value_t = 8)]
    pub workers: usize,
}

/// Rounds that are run first, one per line, each with the bug that it once found.
const KEPT: &str = include_str!("../../fuzz-seeds");

/// How often to print the progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// How long to wait for the next report of any worker.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);

/// How many characters of a failure a worker reports, besides the round.
const FAILURE_LIMIT: usize = 1000;

/// How many bytes a report has at most: a program has some thousands.
const REPORT_LIMIT: usize = 1 << 17;

/// Steps of a program that follows from a seed.
const STEPS: usize = 200;

/// The prefix of a round's seed. A program begins with hexadecimal digits.
const SEED: &str = "seed:";

/// One round, in a form that can be repeated.
#[derive(Clone, Debug)]
pub enum Round {
    /// Everything in the round follows from this number.
    Seed(u64),
    /// The round runs this program.
    Program(Program),
}

impl fmt::Display for Round {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(seed) => write!(formatter, "{SEED}{seed}"),
            Self::Program(program) => program.fmt(formatter),
        }
    }
}

impl FromStr for Round {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |error: &dyn fmt::Display| format!("neither {SEED}NUMBER nor a program: {error}");
        match text.strip_prefix(SEED) {
            Some(seed) => seed.parse().map(Self::Seed).map_err(|error| wrong(&error)),
            None => text
                .parse()
                .map(Self::Program)
                .map_err(|error| wrong(&error)),
        }
    }
}

/// A worker's report.
#[derive(Deserialize, Serialize)]
enum WorkerReport {
    /// The worker ended a round.
    Round(Tally),
    /// The worker gave up in a round.
    Failure { round: String, what: String },
}

/// Runs the fuzzer, and prints the figures. Fails if the kernel did not react as it has to.
pub fn run(options: &Options) -> TestResult {
    let started = Instant::now();
    let environment = Environment::new()?;
    if let Some(kept) = &options.round {
        let mut tally = Tally::default();
        round(kept, &environment, &mut tally, None)?;
        println!("fuzz: {tally}");
        report_messages(&tally);
        return expect_no_listener();
    }
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    // Opened here, since some workers lack the rights: one for each worker, on a kernel with KCOV.
    let kcovs = (0..options.workers)
        .map(|_| Kcov::open())
        .collect::<Result<Vec<_>, _>>()?;
    let is_guided = kcovs.iter().any(Option::is_some);
    let guide = match is_guided {
        true => "guided by what programs run through",
        false => "by chance alone: the kernel has no KCOV",
    };
    println!("fuzz: seed {seed}, {} workers, {guide}", options.workers);
    // A user whose namespaces can be counted.
    let user = match lacking(ALL) {
        None => Some(NamespaceUser::new()?),
        Some(option) => {
            println!("fuzz: the kernel has no {option}, so namespaces are not counted");
            None
        }
    };
    let (reader, writer) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::empty(),
    )?;
    let share = options.messages / options.workers.max(1) as u64;
    let mut seeds = Rng::with_seed(seed);
    let mut workers = Vec::new();
    for (index, kcov) in kcovs.iter().enumerate() {
        let rounds = Rounds {
            kept: kept(index, options.workers)?.into_iter(),
            random: seeds.fork(),
            corpus: kcov.as_ref().map(|kcov| Corpus::new(Coverage::new(kcov))),
        };
        let work = || work(rounds, share, &environment, &writer);
        workers.push(child::fork(|| {
            status(|| {
                // Half of the workers in namespaces, and half of the others, are in the run's cgroup.
                if index / 2 % 2 > 0 {
                    environment.cgroups.enter()?;
                }
                match (index % 2, &user) {
                    (0, _) => work(),
                    (_, Some(user)) => {
                        let apart = || Container::start(PID | NET, work)?.finish();
                        succeed(user.spawn(apart)?)
                    }
                    (_, None) => Container::start(some_kinds(), work)?.finish(),
                }
            })
        })?);
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
    workers.into_iter().try_for_each(succeed)?;
    expect_no_listener()?;
    let none_is_left = match user {
        Some(user) => {
            user.expect_nothing_left()?;
            ", no namespace is left"
        }
        None => "",
    };
    let seconds = started.elapsed().as_secs_f64();
    let rate = tally.messages as f64 / seconds;
    println!("fuzz: {tally}");
    report_messages(&tally);
    println!("fuzz: {seconds:.1} s, {rate:.0} messages/s; no listener is left{none_is_left}");
    if is_guided {
        report_reached(&tally)?;
    }
    Ok(())
}

fn report_messages(tally: &Tally) {
    results::figure("messages", tally.messages as f64);
}

/// The namespaces of half of the workers, on a kernel that lacks some.
///
/// Sockets get their port ids from the process's pid. In a pid namespace without a network namespace,
/// they would get port ids that another worker's sockets had a moment ago. In a user and a network
/// namespace without a pid namespace, no process may listen.
fn some_kinds() -> CloneFlags {
    match lacking(NET | PID) {
        None => available(ALL),
        Some(_) => available(USER),
    }
}

/// Prints which functions of the module the programs covered. Fails if they missed functions that
/// every run covers: then the coverage that guides the fuzzer is wrong.
fn report_reached(tally: &Tally) -> TestResult {
    const SURE: [&str; 3] = ["::control", "::gone", "::comm"];
    let functions = Functions::new()?;
    let (reached, missed) = functions.reached(&tally.blocks);
    let (some, all) = (reached.len(), reached.len() + missed.len());
    println!("fuzz: programs reached {some} of {all} functions of the module, and not");
    missed.iter().for_each(|name| println!("fuzz:   {name}"));
    for part in SURE {
        let is_there = reached.iter().any(|name| name.contains(part));
        expect(is_there, format!("programs to cover {part}"))?;
    }
    Ok(())
}

/// A worker's share of the kept rounds.
fn kept(index: usize, workers: usize) -> Result<Vec<Round>, Failure> {
    let rounds = KEPT
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next());
    let share = rounds.skip(index).step_by(workers);
    share
        .map(|round| round.parse().map_err(Failure::new))
        .collect()
}

/// A worker's rounds: first the kept ones, then new ones without end.
struct Rounds<'a> {
    kept: std::vec::IntoIter<Round>,
    random: Rng,
    corpus: Option<Corpus<'a>>,
}

impl Rounds<'_> {
    /// One in this many rounds is of any kind, instead of a program of the corpus.
    const OTHERS: u8 = 4;

    fn next(&mut self) -> Result<Round, Failure> {
        if let Some(round) = self.kept.next() {
            return Ok(round);
        }
        match &self.corpus {
            Some(corpus) if self.random.u8(..Self::OTHERS) > 0 => {
                Ok(Round::Program(corpus.next(&mut self.random)?))
            }
            _ => Ok(Round::Seed(self.random.u64(..))),
        }
    }
}

/// Runs rounds until this many messages are sent.
fn work(
    mut rounds: Rounds<'_>,
    messages: u64,
    environment: &Environment,
    reports: &OwnedFd,
) -> TestResult {
    let environment = &environment.of_this_process()?;
    let mut sent = 0;
    while sent < messages {
        let mut tally = Tally::default();
        let next = rounds.next()?;
        if let Err(failure) = round(&next, environment, &mut tally, rounds.corpus.as_mut()) {
            let what = failure.to_string().chars().take(FAILURE_LIMIT).collect();
            let round = next.to_string();
            return send_report(reports, &WorkerReport::Failure { round, what });
        }
        sent += tally.messages;
        send_report(reports, &WorkerReport::Round(tally))?;
    }
    Ok(())
}

/// Runs one round, of one kind.
fn round(
    round: &Round,
    environment: &Environment,
    tally: &mut Tally,
    corpus: Option<&mut Corpus<'_>>,
) -> TestResult {
    let kind = match round {
        Round::Program(program) => {
            run_program(program, environment, tally, corpus)?;
            "programs"
        }
        Round::Seed(seed) => {
            let mut random = Rng::with_seed(*seed);
            match random.u8(..10) {
                0..6 => {
                    let program = Program::random(&mut random, STEPS)?;
                    sequence::run(&program, environment, tally, None)?;
                    "sequences"
                }
                9 if lacking(PID).is_none() => {
                    teardown::run(random, environment, tally)?;
                    "teardowns"
                }
                _ => {
                    race::run(random, environment, tally)?;
                    "races"
                }
            }
        }
    };
    tally.rounds.insert(kind.to_owned(), 1);
    Ok(())
}

/// Runs a program, and keeps it if it covered something new.
fn run_program(
    program: &Program,
    environment: &Environment,
    tally: &mut Tally,
    corpus: Option<&mut Corpus<'_>>,
) -> TestResult {
    let Some(corpus) = corpus else {
        return sequence::run(program, environment, tally, None);
    };
    let mut following = corpus.coverage.follow()?;
    sequence::run(program, environment, tally, Some(&mut following))?;
    let new = following.new_blocks().clone();
    drop(following);
    if !new.is_empty() {
        corpus.keep(program.clone());
        tally.kept += 1;
        tally.blocks = new;
    }
    Ok(())
}

/// Sends a report to the parent.
fn send_report(socket: &OwnedFd, report: &WorkerReport) -> TestResult {
    send(
        socket.as_raw_fd(),
        &serde_json::to_vec(report)?,
        MsgFlags::empty(),
    )?;
    Ok(())
}

/// Adds up the workers' reports, until all workers have ended.
fn follow(reader: &OwnedFd, started: Instant) -> Result<Tally, Failure> {
    let mut total = Tally::default();
    let mut progress = Instant::now();
    let mut bytes = vec![0; REPORT_LIMIT];
    let silence = timeouts::scaled(SILENCE_LIMIT);
    let limit = timeouts::for_poll(silence);
    loop {
        if poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], limit)? == 0 {
            let what = format!("no worker ended a round in {silence:?}");
            return Err(Failure::new(what));
        }
        let length = recv(reader.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        if length == 0 {
            return Ok(total);
        }
        match serde_json::from_slice(&bytes[..length])? {
            WorkerReport::Round(tally) => total += tally,
            WorkerReport::Failure { round, what } => {
                let how = "repeat it with: proc-events-guest fuzz --round";
                return Err(Failure::new(format!("{what}\n  {how} {round}")));
            }
        }
        if progress.elapsed() > PROGRESS {
            progress = Instant::now();
            println!("fuzz: {:.0} s: {total}", started.elapsed().as_secs_f64());
        }
    }
}

fn expect_no_listener() -> TestResult {
    expect_eq("listeners at the end", Listing::read()?.count, 0)
}

#[cfg(test)]
mod tests {
    use super::cgroups::Cgroups;
    use super::message::{Command, Reaction, Request};
    use super::program::Step;
    use super::*;
    use crate::wire::mask;

    #[test]
    fn rounds_can_be_repeated_as_they_are_printed() {
        let kept = kept(0, 1).unwrap();
        assert!(!kept.is_empty());
        let program = Program::random(&mut Rng::with_seed(1), 3).unwrap();
        for round in kept.into_iter().chain([Round::Program(program)]) {
            let text = round.to_string();
            assert_eq!(text.parse::<Round>().unwrap().to_string(), text);
        }
        for wrong in ["seed:", "seed:x", "1966757701439937517x"] {
            assert!(wrong.parse::<Round>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_round_that_found_an_unknown_event_asks_for_it_still() {
        let mut random = Rng::with_seed(1_966_757_701_439_937_517);
        assert!((0..6).contains(&random.u8(..10)));
        let program = Program::random(&mut random, STEPS).unwrap();
        let asks = |step: Step| {
            let Step::Send { message, .. } = step else {
                return false;
            };
            let reaction = Reaction::of(&message.bytes(0), &Cgroups::default());
            matches!(reaction, Reaction::Answered(Request { command: Ok(Command::Listen(listen)), .. })
                if listen.mask & mask::SESSION_END != 0)
        };
        assert!(program.steps().map(Result::unwrap).any(asks));
    }
}
