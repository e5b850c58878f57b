// SPDX-License-Identifier: GPL-2.0
//! Allocation failures (C20): each allocation fails once. Nothing is left half done, miscounted or
//! unreported.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sched::unshare;
use nix::sys::socket::{MsgFlags, recv};
use zerocopy::IntoBytes;

use crate::cpus::{cpus, pin};
use crate::debugfs::{self, Listing};
use crate::harness::{Declaration, Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::container::{NET, require};
use crate::support::ends::{End, bind, leave};
use crate::support::fault_injection::{
    FailNth, NoPages, QuietConsole, has_checkers, report_failures,
};
use crate::support::module::{self, ModuleGuard, expect_references};
use crate::support::scenario::{SEQ, expect_count, mark, own_task};
use crate::support::sequence_numbers::{SequenceNumbers, cpu_and_seq};
use crate::support::state_dump::is_without_memory;
use crate::test;
use crate::wire::{BATCH, BATCH_SIZE, Event, IGNORE, LISTEN, Received, mask, proc_listen};

pub const TESTS: &[Test] = &Declaration::new().not_on_stock(NO_LISTING).of([
    test!(listen_without_memory_changes_nothing)
        .stock_fails("nothing is answered if there is no listener")
        .covers(&[Line::C19, Line::C20, Line::C27]),
    test!(listening_again_without_memory_changes_nothing).covers(&[
        Line::C5,
        Line::C18,
        Line::C19,
        Line::C20,
    ]),
    test!(ignore_without_memory_ends_a_listener).covers(&[Line::C19, Line::C27]),
    test!(an_end_takes_no_memory[close](None)).covers(&[Line::C27, Line::C57]),
    test!(an_end_takes_no_memory[leave](Some(leave))).covers(&[Line::C27, Line::C57]),
    test!(an_end_takes_no_memory[bind](Some(bind))).covers(&[Line::C27, Line::C57]),
    test!(an_event_is_lost_for_one_listener_alone[enobufs](1, &ALONE))
        .stock_fails("an event without memory is lost for all listeners, and none can detect it")
        .covers(&[Line::C5, Line::C6, Line::C30]),
    test!(an_event_is_lost_for_one_listener_alone[no_enobufs](
        0, &ALONE
    ))
    .stock_fails("an event without memory is lost for all listeners")
    .covers(&[Line::C5, Line::C6, Line::C30]),
    test!(an_event_is_lost_for_one_listener_alone[batches](
        1, &BATCHES
    ))
    .covers(&[Line::C5, Line::C6, Line::C30, Line::C54]),
    test!(an_event_is_lost_for_one_listener_alone[batches_no_enobufs](
        0, &BATCHES
    ))
    .covers(&[Line::C5, Line::C6, Line::C30, Line::C54]),
    test!(an_event_for_which_there_is_no_page_has_a_small_datagram).covers(&[Line::C54]),
    test!(accounts_balance_without_pages[alone](0)).covers(&[Line::C5, Line::C6, Line::C30]),
    test!(accounts_balance_without_pages[in_batches](BATCH)).covers(&[
        Line::C5,
        Line::C6,
        Line::C30,
        Line::C54,
    ]),
    test!(a_network_namespace_without_memory_is_whole_or_not_made)
        .limit(Duration::from_secs(120))
        .covers(&[Line::C26]),
    // It waits for several grace periods for each of a hundred allocations.
    test!(loading_without_memory_leaves_nothing)
        .limit(Duration::from_secs(120))
        .not_on_stock("cn_proc is built in, there is no module")
        .covers(&[Line::C32]),
]);

const NO_LISTING: &str = "there is no list of listeners and of what they lost";

/// The outcome of a request during which an allocation may have failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RequestResult {
    /// netlink had no memory for the request.
    NotSent,
    /// The answer has this errno.
    Answered(u32),
    /// There was no memory for the answer: ENOBUFS.
    Unanswered,
}

const NO_MEMORY: RequestResult = RequestResult::Answered(Errno::ENOMEM as u32);
const DONE: RequestResult = RequestResult::Answered(0);

/// Sends a request whose nth allocation fails, and takes its answer. Also returns whether an
/// allocation failed.
fn request(
    faults: &FailNth,
    nth: u32,
    listener: &mut Listener,
    words: &[u32],
) -> Result<(RequestResult, bool), Failure> {
    let (sent, failed) = faults.run(nth, || listener.send(words.as_bytes(), SEQ, 0))?;
    let outcome = match sent {
        Err(error) if is_without_memory(&error) => RequestResult::NotSent,
        sent => {
            sent?;
            answer(listener)?
        }
    };
    expect(
        failed || outcome == DONE,
        format!("success, got {outcome:?}"),
    )?;
    Ok((outcome, failed))
}

/// Takes the answer to a request, which is one message or one ENOBUFS.
fn answer(listener: &mut Listener) -> Result<RequestResult, Failure> {
    let read = listener.drain()?;
    let errs: Vec<_> = read
        .messages
        .iter()
        .map(|received| received.event)
        .collect();
    match (errs.as_slice(), read.enobufs) {
        ([Event::Ack { err }], 0) => Ok(RequestResult::Answered(*err)),
        ([], 1) => Ok(RequestResult::Unanswered),
        _ => Err(Failure::new(format!(
            "one answer or one ENOBUFS, got {read:?}"
        ))),
    }
}

/// Raises a COMM event, and returns how many messages about it are received.
fn count_received(listener: &mut Listener) -> Result<usize, Failure> {
    mark("received?")?;
    let read = listener.drain()?;
    let own = |received: &&Received| received.event.subject() == own_task();
    Ok(read.messages.iter().filter(own).count())
}

/// The outcomes when each allocation of a LISTEN fails once.
const OF_LISTEN: &[RequestResult] = &[RequestResult::NotSent, NO_MEMORY, RequestResult::Unanswered];

/// Fails each allocation in turn, and then random ones, until each wanted outcome has occurred. The
/// function returns the outcome, and whether an allocation failed.
///
/// A request may take from a cache what the request before it had to allocate. So the same number
/// may be that of another allocation the next time.
fn fail_each(
    wanted: &[RequestResult],
    mut attempt: impl FnMut(u32) -> Result<(RequestResult, bool), Failure>,
) -> TestResult {
    const ATTEMPTS: usize = 200;
    let mut outcomes = Vec::new();
    let mut last = 1;
    loop {
        let (outcome, failed) = attempt(last)?;
        outcomes.push(outcome);
        if !failed {
            break;
        }
        last += 1;
    }
    let mut random = Rng::with_seed(0);
    while !wanted.iter().all(|outcome| outcomes.contains(outcome)) {
        let what = format!("{wanted:?} to occur, got {outcomes:?}");
        expect(outcomes.len() < ATTEMPTS, what)?;
        outcomes.push(attempt(random.u32(1..=last))?.0);
    }
    Ok(())
}

fn listen_without_memory_changes_nothing() -> TestResult {
    let faults = FailNth::of_slabs()?;
    fail_each(OF_LISTEN, |nth| {
        let mut listener = Listener::open()?;
        let words = [LISTEN, mask::COMM | mask::SID];
        let (outcome, failed) = request(&faults, nth, &mut listener, &words)?;
        if let RequestResult::NotSent | NO_MEMORY = outcome {
            expect_count(0)?;
            expect_references(0)?;
            expect_eq("messages", count_received(&mut listener)?, 0)?;
            listener.send(words.as_bytes(), SEQ, 0)?;
            expect_eq(
                "answer to the repeated request",
                answer(&mut listener)?,
                DONE,
            )?;
        }
        expect_count(1)?;
        expect_references(1)?;
        expect_eq("messages", count_received(&mut listener)?, 1)?;
        Ok((outcome, failed))
    })?;
    expect_references(0)
}

fn listening_again_without_memory_changes_nothing() -> TestResult {
    let faults = FailNth::of_slabs()?;
    let (few, many) = (mask::COMM, mask::COMM | mask::SID | mask::PTRACE);
    let mut listener = Listener::open()?;
    listener.send([LISTEN, few].as_bytes(), SEQ, 0)?;
    let mut messages = listener.drain()?.messages;
    let mut marks = 0;
    for (before, wanted) in [(few, many), (many, few)] {
        fail_each(OF_LISTEN, |nth| {
            listener.send([LISTEN, before].as_bytes(), SEQ, 0)?;
            expect_eq(
                "answer to LISTEN with the old mask",
                answer(&mut listener)?,
                DONE,
            )?;
            let (outcome, failed) = request(&faults, nth, &mut listener, &[LISTEN, wanted])?;
            let now = match outcome {
                DONE | RequestResult::Unanswered => wanted,
                _ => before,
            };
            let debugfs::ListenerLine { mask, lost, .. } = Listing::of(listener.port_id()?)?;
            expect_eq("mask", mask, now)?;
            expect_eq("lost", lost, 0)?;
            expect_references(1)?;
            mark("still received")?;
            marks += 1;
            messages.extend(listener.drain()?.messages);
            Ok((outcome, failed))
        })?;
    }
    let [answer, events @ ..] = messages.as_slice() else {
        return Err(Failure::new("no answer"));
    };
    expect_eq("events", events.len(), marks)?;
    let missing = SequenceNumbers::after(&[*answer]).missing(events)?;
    expect_eq("missing numbers", missing, 0)
}

/// Ends a listener while each allocation fails in turn, until each wanted outcome has occurred.
/// Another listener stays. The function ends the first one, and leaves its socket if that is still
/// open.
fn expect_ended(
    wanted: &[RequestResult],
    end: impl Fn(&FailNth, u32, &mut Option<Listener>) -> Result<(RequestResult, bool), Failure>,
) -> TestResult {
    let faults = FailNth::of_slabs()?;
    let mut stays = Listener::listen(mask::COMM)?;
    fail_each(wanted, |nth| {
        let mut goes = Listener::listen(mask::COMM | mask::SID)?;
        expect_eq("listening", answer(&mut goes)?, DONE)?;
        let mut goes = Some(goes);
        let (outcome, failed) = end(&faults, nth, &mut goes)?;
        if outcome == RequestResult::NotSent {
            expect_count(2)?;
            expect_references(2)?;
            return Ok((outcome, failed));
        }
        expect_count(1)?;
        expect_references(1)?;
        mark("received by one")?;
        if let Some(goes) = &mut goes {
            let messages = goes.drain()?.messages;
            let events = messages.iter().filter(|received| received.event.bit() != 0);
            expect_eq("events after the end", events.count(), 0)?;
            goes.request(&[LISTEN, mask::COMM])?;
            goes.drain()?;
            expect_count(2)?;
            expect_eq("messages, listening again", count_received(goes)?, 1)?;
        }
        drop(goes);
        stays.drain()?;
        expect_eq(
            "messages for the listener that stays",
            count_received(&mut stays)?,
            1,
        )?;
        Ok((outcome, failed))
    })?;
    drop(stays);
    expect_count(0)?;
    expect_references(0)
}

fn ignore_without_memory_ends_a_listener() -> TestResult {
    expect_ended(
        &[RequestResult::NotSent, RequestResult::Unanswered],
        |faults, nth, goes| {
            let goes = goes.as_mut().ok_or_else(|| Failure::new("no listener"))?;
            request(faults, nth, goes, &[IGNORE])
        },
    )
}

/// An end allocates nothing and always succeeds. Without a function that ends it, the socket is
/// closed.
fn an_end_takes_no_memory(end: Option<End>) -> TestResult {
    expect_ended(&[DONE], |faults, nth, goes| {
        let (ended, failed) = faults.run(nth, || match (end, goes.as_mut()) {
            (Some(end), Some(goes)) => end(goes),
            _ => {
                drop(goes.take());
                Ok(())
            }
        })?;
        ended?;
        // A kernel with checkers allocates debug data about sockets and namespaces.
        expect(!failed || has_checkers(), "an end that allocates nothing")?;
        Ok((DONE, failed))
    })
}

/// Each allocation for a new network namespace fails in turn.
fn a_network_namespace_without_memory_is_whole_or_not_made() -> TestResult {
    require(NET)?;
    let faults = FailNth::of_slabs()?;
    let mut refused = 0;
    for nth in 1.. {
        let (made, failed) = faults.run(nth, || unshare(NET))?;
        match made {
            Ok(()) => {
                let callbacks = fs::read_to_string("/proc/self/net/connector")?;
                expect(
                    callbacks.contains("cn_proc"),
                    format!("cn_proc, got {callbacks}"),
                )?;
            }
            // Some subsystems have another error for it than ENOMEM.
            Err(_) => refused += 1,
        }
        if !failed {
            break;
        }
    }
    expect(refused > 0, "a namespace that was not made")
}

/// A small datagram waits already, so the next event would begin a page of events. Each allocation
/// for that fails in turn. The event then gets a small datagram, too.
fn an_event_for_which_there_is_no_page_has_a_small_datagram() -> TestResult {
    let faults = FailNth::of_slabs()?;
    let mut failures = 0;
    for nth in 1.. {
        let mut listener = Listener::listen_with(mask::COMM, BATCH)?;
        expect_eq("listening", answer(&mut listener)?, DONE)?;
        // Nothing is appended to a datagram after a peek.
        mark("waits")?;
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(listener.as_fd().as_raw_fd(), &mut [0; BATCH_SIZE], flags)?;
        let (marked, failed) = faults.run(nth, || mark("in a small one"))?;
        marked?;
        mark("after it")?;
        let read = listener.drain()?;
        expect_eq("events", read.messages.len(), 3)?;
        expect_eq("number of ENOBUFS", read.enobufs, 0)?;
        if !failed {
            break;
        }
        failures += 1;
    }
    expect(failures > 0, "an allocation to fail")
}

/// The requests of a listener that gets each event in its own datagram, and of one that gets
/// batches.
const ALONE: [u32; 2] = [LISTEN, mask::COMM];
const BATCHES: [u32; 6] = proc_listen(LISTEN, mask::COMM, BATCH);

/// Events are raised for two listeners while each allocation fails in turn. Each failure is a loss
/// for one of them, which reads this many ENOBUFS.
fn an_event_is_lost_for_one_listener_alone(enobufs: usize, request: &[u32]) -> TestResult {
    /// Far more than the allocations for one event.
    const EVENTS: usize = 100;
    pin(cpus()?[0])?;
    let faults = FailNth::of_slabs()?;
    let mut listeners = Vec::new();
    for _ in 0..2 {
        let mut listener = Listener::open()?;
        listener.socket().set_no_enobufs(enobufs == 0)?;
        listener.request(request)?;
        mark("begins the count")?;
        let first = listener.drain()?.messages.last().map(cpu_and_seq);
        let (_, seq) = first.ok_or_else(|| Failure::new("no event came"))?;
        listeners.push(Victim {
            listener,
            seq,
            delivered: 1,
            lost: 0,
        });
        // The next event has to find all queues empty.
        for victim in &mut listeners[..] {
            victim.catch_up()?;
        }
    }
    let mut nth = 1;
    for _ in 0..EVENTS {
        let (marked, failed) = faults.run(nth, || mark("lost?"))?;
        marked?;
        let mut lost = 0;
        for victim in &mut listeners {
            lost += victim.read_one_or_lose(enobufs)?;
        }
        // A kernel with checkers may do without the allocation that failed.
        if lost > 0 || !has_checkers() {
            expect_eq("listeners that lost the event", lost, u64::from(failed))?;
        }
        if failed {
            nth += 1;
        } else if listeners.iter().all(|victim| victim.lost > 0) {
            break;
        } else {
            // This event took from a cache what the event before it had to allocate.
            nth = 1;
        }
    }
    for victim in &listeners {
        println!(
            "{} of {} events lost",
            victim.lost,
            victim.lost + victim.delivered
        );
        expect(victim.lost > 0, "each listener to lose an event")?;
        if debugfs::is_there() {
            let line = Listing::of(victim.listener.port_id()?)?;
            let expected = (victim.delivered, victim.lost);
            expect_eq("delivered and lost", (line.delivered, line.lost), expected)?;
        }
    }
    Ok(())
}

/// A listener that loses events on purpose.
struct Victim {
    listener: Listener,
    /// The number of the last event, read or lost.
    seq: u32,
    delivered: u64,
    lost: u64,
}

impl Victim {
    /// Takes the events that were raised for other listeners.
    fn catch_up(&mut self) -> TestResult {
        for received in self.listener.drain()?.messages {
            self.expect_next(&received)?;
        }
        Ok(())
    }

    #[track_caller]
    fn expect_next(&mut self, received: &Received) -> TestResult {
        self.seq = self.seq.wrapping_add(1);
        self.delivered += 1;
        expect_eq("number", cpu_and_seq(received).1, self.seq)
    }

    /// Reads the event that was raised, or ENOBUFS in its place. Returns 1 if the event was lost.
    fn read_one_or_lose(&mut self, enobufs: usize) -> Result<u64, Failure> {
        let got = self.listener.drain()?;
        let lost = u64::from(got.messages.is_empty());
        expect_eq("number of ENOBUFS", got.enobufs, lost as usize * enobufs)?;
        self.lost += lost;
        self.seq = self.seq.wrapping_add(lost as u32);
        for received in got.messages {
            self.expect_next(&received)?;
        }
        Ok(lost)
    }
}

/// Events are raised for a listener with these flags until some are lost for lack of pages.
fn accounts_balance_without_pages(flags: u32) -> TestResult {
    const AT_ONCE: usize = 500;
    const ROUNDS: usize = 100;
    pin(cpus()?[0])?;
    let mut listener = Listener::open()?;
    listener.socket().set_no_enobufs(true)?;
    listener.request(&proc_listen(LISTEN, mask::COMM, flags))?;
    let answer = listener.drain()?.messages.pop();
    let first = SequenceNumbers::after(&[answer.ok_or_else(|| Failure::new("no answer"))?]);
    let mut marks = 0;
    let lost = |listener: &Listener| -> Result<u64, Failure> {
        Ok(Listing::of(listener.port_id()?)?.lost)
    };
    let no_pages = NoPages::new()?;
    for _ in 0..ROUNDS {
        for _ in 0..AT_ONCE {
            mark("no page?")?;
        }
        marks += AT_ONCE as u64;
        if lost(&listener)? > 0 {
            break;
        }
    }
    drop(no_pages);
    let mut messages = listener.drain()?.messages;
    mark("shows the gap")?;
    marks += 1;
    messages.extend(listener.drain()?.messages);
    let line = Listing::of(listener.port_id()?)?;
    println!("{} of {marks} events lost", line.lost);
    // Each event is lost for lack of a page.
    report_failures(line.lost);
    expect(line.lost > 0, "the pages to run out")?;
    expect_eq("delivered, as read", line.delivered, messages.len() as u64)?;
    expect_eq("lost, as missing", line.lost, first.missing(&messages)?)?;
    expect_eq("delivered and lost", line.delivered + line.lost, marks)
}

fn loading_without_memory_leaves_nothing() -> TestResult {
    let faults = FailNth::of_slabs()?;
    // The kernel's loader warns when it gets no memory for the file.
    let mut console = QuietConsole::new()?;
    let mut refused = 0;
    for nth in 1.. {
        let changed = ModuleGuard::unloaded()?;
        let file = File::open(module::path()?)?;
        let (loaded, failed) =
            faults.run(nth, || finit_module(&file, c"", ModuleInitFlags::empty()))?;
        match loaded {
            Ok(()) => {
                drop(Listener::listen_all()?);
            }
            Err(error) => {
                expect(failed, format!("success, got {error}"))?;
                refused += 1;
                for left in ["/sys/kernel/debug/proc_events", "/sys/module/proc_events"] {
                    expect(
                        !Path::new(left).exists(),
                        format!("no {left} after {error}"),
                    )?;
                }
            }
        }
        drop(changed);
        if !failed {
            break;
        }
    }
    console.expect_no_fault()?;
    println!("{refused} loads refused");
    expect(refused > 0, "a load to be refused")?;
    let mut listener = Listener::listen(mask::COMM)?;
    listener.drain()?;
    expect_eq("messages", count_received(&mut listener)?, 1)?;
    expect_count(1)
}
