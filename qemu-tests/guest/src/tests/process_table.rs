// SPDX-License-Identifier: GPL-2.0
//! State and events form one table of the processes (C55). After any load and any loss, it is the same
//! as the kernel's own, which the tests read by other means. See also the `tables` command.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::sys::sysinfo::sysinfo;
use nix::unistd::{Pid, setsid};

use crate::child::{self, Gate};
use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::identities;
use crate::loads::rounds::rounds;
use crate::loads::tables::{self, EVENTS};
use crate::process_table::{FLAGS, MASK, ProcessTable};
use crate::results;
use crate::support::background_load::{BackgroundLoad, beside_load};
use crate::support::container::{ALL, Container, PID, without_proc};
use crate::support::fault_injection::{FailNth, Setting, has_checkers};
use crate::support::follower::{EXACT_LIMIT, Follower};
use crate::support::idle_processes::{MANY_IDLE, start_idle, start_many_idle, start_small};
use crate::support::process::{pause_for_ever, status};
use crate::support::procfs::{in_container, living_in_proc};
use crate::support::state_dump::{RARE, is_without_memory, listen, state};
use crate::support::stock::NO_STATE;
use crate::test;
use crate::timeouts;
use crate::wire::{BATCH, PROCESSES};

pub const TESTS: &[Test] = &[
    test!(it_is_the_kernels_whenever_it_is_begun)
        .not_on_stock(NO_STATE)
        .limit(LONG)
        .covers(&[Line::C55]),
    test!(after_losses_the_state_alone_restores_it)
        .not_on_stock(NO_STATE)
        .limit(LONG)
        .covers(&[Line::C6, Line::C55]),
    test!(a_state_that_overruns_is_repeated)
        .not_on_stock(NO_STATE)
        .limit(LONG)
        .covers(&[Line::C6, Line::C55]),
    test!(ten_thousand_processes_and_more_are_counted)
        .not_on_stock(NO_STATE)
        .limit(LONG)
        .covers(&[Line::C55]),
    test!(a_state_is_completed_while_processes_change)
        .not_on_stock(NO_STATE)
        .limit(LONG)
        .covers(&[Line::C55]),
    test!(a_supervisor_that_restarts_finds_the_sessions_without_proc)
        .not_on_stock(NO_STATE)
        .covers(&[Line::C21, Line::C55]),
    test!(it_is_completed_after_allocations_failed)
        .not_on_stock(NO_STATE)
        .covers(&[Line::C6, Line::C55]),
];

const LONG: Duration = Duration::from_secs(120);

/// How often a table is begun, unless that takes too long.
const STARTS: usize = 1000;

/// The time after which no more are begun.
const TIME: Duration = Duration::from_secs(40);

fn it_is_the_kernels_whenever_it_is_begun() -> TestResult {
    tables::begin(STARTS, TIME)
}

fn after_losses_the_state_alone_restores_it() -> TestResult {
    const ROUNDS: usize = 200;
    tables::lose(ROUNDS, TIME)
}

/// A listener with little room also loses events while the state is sent, and requests it again.
fn a_state_that_overruns_is_repeated() -> TestResult {
    const ROUNDS: usize = 200;
    let mut random = Rng::with_seed(1);
    beside_load(|load| {
        let mut pace = Follower::new(0)?;
        let mut readers = Vec::new();
        for room in [4096, 32_768, 131_072] {
            readers.push(Follower::with_little_room(BATCH, room)?);
        }
        let rounds = rounds(
            ("process table", "rounds with little room"),
            ROUNDS,
            TIME,
            |_| {
                for _ in 0..2 {
                    // The readers do not read until the smallest buffer overruns, even while a state is sent.
                    pace.read(10 * EVENTS)?;
                    for reader in &mut readers {
                        for _ in 0..random.usize(0..5 * EVENTS) {
                            let now = Instant::now();
                            reader.table.read(&mut reader.listener, now)?;
                        }
                    }
                }
                load.pause()?;
                pace.expect_exact()?;
                readers.iter_mut().try_for_each(Follower::expect_exact)?;
                load.resume()
            },
        )?;
        for reader in &readers {
            let (losses, states) = (reader.table.losses(), reader.table.states());
            println!("process table: {losses} losses and {states} states in {rounds} rounds");
        }
        let least = &readers[0].table;
        expect(least.losses() >= rounds as u64, "a loss in each round")?;
        expect(least.states() > 1, "states after losses")
    })
}

/// Bytes that a process of [`start_small`] takes at most, including its kernel stack.
const SMALL_PROCESS: u64 = 64 << 10;

/// How many processes fit into half of the free memory: at least 10,000, at most 100,000.
fn many() -> Result<usize, Failure> {
    let count = sysinfo()?.ram_unused() / 2 / SMALL_PROCESS;
    Ok(count.clamp(10_000, 100_000) as usize)
}

/// The machine of the tests has room for about 10,000 processes, and one with 14 GB for 100,000: see
/// `MEMORY=` of `make boot`.
fn ten_thousand_processes_and_more_are_counted() -> TestResult {
    let count = if has_checkers() { 1000 } else { many()? };
    let limits = ["pid_max", "threads-max"];
    let limits = limits.map(|limit| Setting::change("/proc/sys/kernel", limit, "300000"));
    let _limits = limits.into_iter().collect::<io::Result<Vec<_>>>()?;
    Container::start(PID, || {
        let mut expected = vec![1];
        for _ in 0..count {
            expected.push(start_small()?);
        }
        expected.sort_unstable();
        let listener = listen(RARE, 0)?;
        let started = Instant::now();
        let dump = state(&listener)?;
        let (took, datagrams) = (started.elapsed(), dump.datagrams.len());
        results::figure("processes", count as f64);
        results::figure("seconds until all are reported", took.as_secs_f64());
        results::figure("datagrams", datagrams as f64);
        expect_eq("processes", dump.pids().len(), count + 1)?;
        expect(dump.pids() == expected, "each of them in the state")?;
        let mut follower = Follower::new(0)?;
        follower.complete()?;
        let pids = follower.living().into_iter().map(|(_, pid, _)| pid);
        let pids: BTreeSet<_> = pids.collect();
        expect(pids.into_iter().eq(expected), "each of them in the table")
    })?
    .finish()
}

fn a_state_is_completed_while_processes_change() -> TestResult {
    const STATES: usize = 500;
    in_container(|| {
        start_many_idle(MANY_IDLE)?;
        let constant: Vec<_> = living_in_proc()?.into_keys().collect();
        let _load = BackgroundLoad::start()?;
        let (mut longest, mut changes) = (0, 0);
        let mut before = Vec::new();
        let states = rounds(("process table", "states"), STATES, TIME, |_| {
            let listener = listen(RARE, BATCH)?;
            let dump = state(&listener)?;
            let pids: BTreeSet<_> = dump.pids().into_iter().collect();
            let missing = constant.iter().find(|pid| !pids.contains(pid));
            expect_eq(
                "a process that lives all the time and is not reported",
                missing,
                None,
            )?;
            longest = longest.max(dump.datagrams.len());
            changes += usize::from(dump.pids() != before);
            before = dump.pids();
            Ok(())
        })?;
        println!("{states} states of up to {longest} datagrams, {changes} of them changed");
        expect(changes > 1, "processes that come and go")
    })
}

fn a_supervisor_that_restarts_finds_the_sessions_without_proc() -> TestResult {
    without_proc(ALL, || {
        let mut leaders = BTreeMap::new();
        start_idle(|| Ok(()))?;
        for _ in 0..5 {
            // Each supervisor finds a session that began while no supervisor ran.
            let leader = start_idle(|| Ok(setsid().map(drop)?))?;
            leaders.insert(leader, identities::number_of(Pid::from_raw(leader))?);
            supervise_until_killed(&leaders)?;
        }
        Ok(())
    })
}

/// Lets a process complete a table that has to contain these session leaders, and kills the process.
fn supervise_until_killed(leaders: &BTreeMap<i32, u64>) -> TestResult {
    let found = Gate::new()?;
    let supervisor = child::fork(|| {
        status(|| {
            let mut follower = Follower::new(PROCESSES | BATCH)?;
            follower.complete()?;
            let living = follower.living().into_iter();
            let leading = living.filter(|(.., leads)| *leads);
            let leading: BTreeMap<_, _> = leading.map(|(number, pid, _)| (pid, number)).collect();
            expect_eq("leaders of sessions", &leading, leaders)?;
            found.open(0)?;
            pause_for_ever()
        })
    })?;
    found.pass()?;
    kill(supervisor.pid(), Signal::SIGKILL)?;
    supervisor.wait()?;
    Ok(())
}

/// Lets each allocation fail in turn that is made while a table is begun and completed.
fn it_is_completed_after_allocations_failed() -> TestResult {
    start_many_idle(MANY_IDLE)?;
    // The first time is without a failure, so that this process has the memory that it needs.
    Follower::new(0)?.complete()?;
    let faults = FailNth::of_slabs()?;
    let (mut failures, mut refusals) = (0, 0);
    for nth in 1.. {
        let mut listener = listen(MASK, FLAGS)?;
        let mut table = ProcessTable::default();
        let limit = timeouts::deadline(EXACT_LIMIT);
        let (first, failed) = faults.run(nth, || table.complete(&mut listener, limit))?;
        let is_exact = match first {
            Err(error) if failed && is_without_memory(&error) => {
                refusals += 1;
                table.complete(&mut listener, limit)?
            }
            first => first?,
        };
        expect(is_exact, format!("an exact table, with failure {nth}"))?;
        let own = child::own_pid();
        let mut living = table.living().values();
        let has_own = living.any(|process| process.pid == own);
        expect(has_own, "this process in it")?;
        let count = table.living().len();
        expect(count > MANY_IDLE, format!("all in it, got {count}"))?;
        if !failed {
            break;
        }
        failures += 1;
    }
    println!("{failures} allocations failed, {refusals} of them of requests");
    expect(failures > 0, "an allocation to fail")
}
