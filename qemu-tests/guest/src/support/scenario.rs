// SPDX-License-Identifier: GPL-2.0
//! Scenarios: what a task does between two marks, and the events that it raises.
//!
//! The events of one task arrive in the order in which they happened. So a task that renames
//! itself after what is tested proves, with its COMM event, that nothing else is under way. This is
//! how tests check for "exactly one" and "none" without ever sleeping.

use std::ffi::CString;
use std::sync::Barrier;
use std::thread;

use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::{Gid, Pid, Uid, execv, setgid, setsid, setuid};
use zerocopy::{Immutable, IntoBytes};

use super::process::succeed;
use super::tracer::trace;
use crate::child::{self, Child, Gate, own_pid, own_tid};
use crate::cpus::{cpus, pin};
use crate::debugfs::{self, Listing};
use crate::harness::{Failure, TestResult, expect, expect_eq};
use crate::listener::{Listener, ListenerError};
use crate::wire::{Comm, Event, EventBody, LISTEN, Received, Task, mask};

/// Names of the marks around what is tested.
const BEGIN: &str = "test begins";
/// The name of the mark at the end of a [`Scene`].
pub const END: &str = "test ends";

/// A child that listens to everything until it is killed.
pub struct ListeningChild {
    child: Child,
    /// What the child waits for. It is never opened.
    _never: Gate,
}

impl ListeningChild {
    /// Starts a child, and waits until it listens.
    pub fn start() -> Result<Self, Failure> {
        let (listening, never) = (Gate::new()?, Gate::new()?);
        let child = child::fork(|| {
            let Ok(_listener) = Listener::listen_all() else {
                return 1;
            };
            let opened = listening.open(0);
            i32::from(opened.is_err() || never.pass().is_err())
        })?;
        listening.pass()?;
        Ok(Self {
            child,
            _never: never,
        })
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(self) -> TestResult {
        kill(self.child.pid(), Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }
}

/// The running task, as events name it.
pub fn own_task() -> Task {
    Task {
        pid: own_tid(),
        tgid: own_pid(),
    }
}

/// A name in the form in which COMM events carry it.
pub fn comm(name: &str) -> Comm {
    let mut comm = [0; 16];
    comm[..name.len()].copy_from_slice(name.as_bytes());
    Comm(comm)
}

/// Raises a COMM event of the running task with this name, of at most 15 characters.
pub fn mark(name: &str) -> nix::Result<()> {
    prctl::set_name(&CString::new(name).expect("names contain no NUL"))
}

/// Raises this many COMM events of the running task on a CPU, and moves back.
pub fn mark_on(cpu: usize, times: usize) -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    pin(cpu)?;
    for _ in 0..times {
        mark("numbered")?;
    }
    sched_setaffinity(this, &before)
}

/// The same on each CPU in turn.
pub fn mark_on_each_cpu(times: usize) -> nix::Result<()> {
    cpus()?.into_iter().try_for_each(|cpu| mark_on(cpu, times))
}

/// Sends a request from two threads at the same time.
pub fn request_from_two_threads(listener: &Listener, words: &[u32]) -> Result<(), ListenerError> {
    let start = Barrier::new(2);
    let request = || {
        start.wait();
        listener.request(words)
    };
    thread::scope(|scope| {
        let other = scope.spawn(request);
        let own = request();
        other.join().expect("a request does not panic").and(own)
    })
}

/// Takes the messages up to the event that [`mark`] raised for this task.
pub fn take_through_mark(
    listener: &mut Listener,
    task: Task,
    name: &str,
) -> Result<Vec<Received>, Failure> {
    let marker = Event::Comm {
        task,
        comm: comm(name),
    };
    Ok(listener.take_through(&format!("{marker:?}"), |received| received.event == marker)?)
}

/// The events of a kind (a bit of the mask) about any task of a process.
pub fn events_of(messages: &[Received], bit: u32, tgid: i32) -> Vec<Event> {
    let events = messages.iter().map(|received| received.event);
    events
        .filter(|event| event.bit() == bit && event.subject().tgid == tgid)
        .collect()
}

/// The events about any task of a process, in their order.
pub fn events_about(messages: &[Received], tgid: i32) -> Vec<Event> {
    let events = messages.iter().map(|received| received.event);
    events
        .filter(|event| event.bit() != 0 && event.subject().tgid == tgid)
        .collect()
}

/// What is the same for all listeners that get an event.
pub fn bodies(messages: &[Received]) -> Vec<EventBody> {
    messages
        .iter()
        .map(|received| received.message.body)
        .collect()
}

/// The end of a process that its parent may wait for.
pub fn exit(task: Task, code: u32, parent: Task) -> Event {
    Event::Exit {
        task,
        code,
        signal: Signal::SIGCHLD as u32,
        parent,
    }
}

/// What a child did between two marks of its own.
pub struct Scene {
    /// The child's main thread.
    pub child: Task,
    /// What the child's function returned.
    pub number: i32,
    /// What was received about the whole guest after the first mark. The last message is the second
    /// mark, which is a COMM event of the child.
    pub messages: Vec<Received>,
}

impl Scene {
    /// The events of a kind (a bit of the mask) about the child.
    pub fn events(&self, bit: u32) -> Vec<Event> {
        events_of(&self.messages, bit, self.child.tgid)
    }
}

/// Runs a function in a child, between two marks.
pub fn in_child(
    listener: &mut Listener,
    function: impl FnOnce() -> Result<i32, Failure>,
) -> Result<Scene, Failure> {
    let result = Gate::new()?;
    let process = child::fork(|| {
        let number = mark(BEGIN).map_err(Failure::from).and_then(|()| function());
        let marked = mark(END);
        let number = number.unwrap_or_else(|failure| {
            eprintln!("in the child: {failure}");
            child::exit(|| 1)
        });
        i32::from(marked.is_err() || result.open(number).is_err())
    })?;
    let child = Task::leader(process.pid().as_raw());
    take_through_mark(listener, child, BEGIN)?;
    let messages = take_through_mark(listener, child, END)?;
    succeed(process)?;
    Ok(Scene {
        child,
        number: result.pass()?,
        messages,
    })
}

/// Runs a function in this process, between two marks. Returns what was received after the first mark,
/// up to and including the second.
pub fn in_self(
    listener: &mut Listener,
    function: impl FnOnce() -> TestResult,
) -> Result<Vec<Received>, Failure> {
    mark(BEGIN)?;
    function()?;
    mark(END)?;
    take_through_mark(listener, own_task(), BEGIN)?;
    take_through_mark(listener, own_task(), END)
}

/// Expects a listener to get what this process raises, once.
pub fn expect_own_events(listener: &mut Listener) -> TestResult {
    let messages = in_self(listener, || Ok(mark("reported")?))?;
    let own = messages
        .iter()
        .filter(|received| received.event.subject() == own_task());
    // The event and the mark after it.
    expect_eq("number of own events", own.count(), 2)
}

/// The numbers of a request, by which its answer is recognised.
pub const SEQ: u32 = 42;
pub const ACK: u32 = 77;

/// Sends a request and takes its answer. Exactly one answer has to be there, with the request's
/// numbers. Events stay.
#[track_caller]
pub fn request(
    listener: &mut Listener,
    data: &(impl IntoBytes + Immutable + ?Sized),
) -> Result<Received, Failure> {
    listener.send(data.as_bytes(), SEQ, ACK)?;
    let answers = listener.take_answers()?;
    let [answer] = answers.as_slice() else {
        return Err(Failure::new(format!("one answer, got {answers:?}")));
    };
    let connector = answer.message.connector;
    let numbers = (connector.seq, connector.ack);
    expect_eq("seq and ack", numbers, (SEQ, ACK + 1))?;
    expect_eq("sender", answer.sender, (0, 1))?;
    Ok(*answer)
}

/// Like [`request`], but returns only the errno.
#[track_caller]
pub fn ask(
    listener: &mut Listener,
    data: &(impl IntoBytes + Immutable + ?Sized),
) -> Result<u32, Failure> {
    match request(listener, data)?.event {
        Event::Ack { err } => Ok(err),
        event => Err(Failure::new(format!("an answer, got {event:?}"))),
    }
}

/// Opens a socket without a listener's large buffer, and sends LISTEN for COMM. Returns the socket and
/// the answer's errno.
pub fn try_to_listen() -> Result<(Listener, u32), Failure> {
    let mut listener = Listener::open_unprivileged()?;
    let err = ask_for_comm(&mut listener)?;
    Ok((listener, err))
}

/// Sends LISTEN for COMM. Returns the answer's errno.
pub fn ask_for_comm(listener: &mut Listener) -> Result<u32, Failure> {
    ask(listener, &[LISTEN, mask::COMM])
}

/// Sends a request, and expects it to be answered once, with this errno.
#[track_caller]
pub fn expect_answer(
    listener: &mut Listener,
    data: &(impl IntoBytes + Immutable + ?Sized),
    err: u32,
) -> TestResult {
    expect_eq("err", ask(listener, data)?, err)
}

/// Waits for the end of a process: EXIT may come after its parent has reaped it.
pub fn take_through_exit(listener: &mut Listener, pid: i32) -> Result<Vec<Received>, Failure> {
    Ok(listener.take_through(&format!("EXIT of {pid}"), |received| is_exit(received, pid))?)
}

/// Whether a message reports the end of this task.
pub fn is_exit(received: &Received, pid: i32) -> bool {
    matches!(received.event, Event::Exit { task, .. } if task.pid == pid)
}

/// Makes a child raise at least one event of every kind. In the end, it dies of a signal that dumps
/// core.
/// Returns the child's pid, and all messages up to its EXIT.
pub fn every_kind(listener: &mut Listener) -> Result<(i32, Vec<Received>), Failure> {
    let (ready, go_on) = (Gate::new()?, Gate::new()?);
    let process = child::fork(|| {
        let result = (|| -> Result<(), Failure> {
            ready.open(0)?;
            go_on.pass()?;
            setsid()?;
            mark("every kind")?;
            child::fork(|| 0)?.wait()?;
            setgid(Gid::from_raw(4242))?;
            setuid(Uid::from_raw(4242))?;
            let shell = [c"/bin/sh", c"-c", c"kill -ABRT $$"];
            execv(shell[0], &shell)?;
            Ok(())
        })();
        eprintln!("in the child: {result:?}");
        1
    })?;
    let pid = process.pid();
    ready.pass()?;
    trace(pid)?;
    go_on.open(0)?;
    let messages = take_through_exit(listener, pid.as_raw())?;
    let ended = process.wait()?;
    let aborted = matches!(ended, WaitStatus::Signaled(_, Signal::SIGABRT, _));
    expect(aborted, format!("the child to abort, got {ended:?}"))?;
    Ok((pid.as_raw(), messages))
}

/// Expects this many listeners.
///
/// The stock kernel does not say how many there are. But its bound sockets get events as soon as it counts
/// any listener, so that the test can distinguish 0 from more.
#[track_caller]
pub fn expect_count(expected: usize) -> TestResult {
    if debugfs::is_there() {
        let listing = Listing::read()?;
        expect_eq("lines of listeners", listing.lines.len(), listing.count)?;
        expect_eq("listeners", listing.count, expected)?;
    }
    if expected == 0 {
        let mut silent = Listener::open()?;
        mark("unreported")?;
        let received = silent.take_queued()?.len();
        expect_eq("messages while there is no listener", received, 0)?;
    }
    Ok(())
}

/// Waits for all of these events, and expects no further event that is `relevant`. `reader` names the
/// listener.
#[track_caller]
pub fn expect_exactly(
    reader: &str,
    listener: &mut Listener,
    expected: &[Event],
    relevant: impl Fn(&Event) -> bool,
) -> TestResult {
    for event in expected {
        listener.wait_for(&format!("{reader}: {event:?}"), |received| {
            received.event == *event
        })?;
    }
    let more = events(listener)?.into_iter().filter(relevant).collect();
    expect_eq(&format!("{reader}: further events"), more, vec![])
}

/// The events that have arrived, without acknowledgements.
pub fn events(listener: &mut Listener) -> Result<Vec<Event>, Failure> {
    let messages = listener.take_queued()?;
    Ok(without_acks(&messages))
}

/// The events among messages.
pub fn without_acks(messages: &[Received]) -> Vec<Event> {
    let events = messages.iter().map(|received| received.event);
    events.filter(|event| event.bit() != 0).collect()
}
