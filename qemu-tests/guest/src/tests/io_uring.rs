// SPDX-License-Identifier: GPL-2.0
//! Listeners that are read through io_uring(7): the datagrams are the same.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use nix::libc;

use crate::harness::{Failure, Line, Test, TestResult, expect, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::mark;
use crate::test;
use crate::timeouts;
use crate::wire::{BATCH, BATCH_SIZE, Event, Received, mask};

pub const TESTS: &[Test] = &[
    test!(each_event_is_read_from_its_datagram).covers(&[Line::C1]),
    test!(events_are_read_from_batches)
        .not_on_stock("each event has a datagram of its own")
        .covers(&[Line::C54]),
    test!(a_read_that_waits_gets_the_event)
        .not_on_stock("each event has a datagram of its own")
        .covers(&[Line::C54]),
];

/// More than one datagram holds.
const EVENTS: usize = 100;

const LIMIT: Duration = Duration::from_secs(10);

/// A listener that is read through a ring of its own, into one buffer.
struct Reader {
    listener: Listener,
    ring: IoUring,
    buffer: Box<[u8; BATCH_SIZE + 1]>,
}

impl Reader {
    /// A listener for COMM events. The answer to its request has been read.
    fn new(flags: u32) -> Result<Self, Failure> {
        let ring = IoUring::new(2).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS) => Failure::skip("the kernel has no CONFIG_IO_URING"),
            _ => error.into(),
        })?;
        let mut listener = match flags {
            0 => Listener::listen(mask::COMM)?,
            flags => Listener::listen_with(mask::COMM, flags)?,
        };
        listener.take_queued()?;
        Ok(Self {
            listener,
            ring,
            buffer: Box::new([0; BATCH_SIZE + 1]),
        })
    }

    /// Asks for the next datagram.
    fn submit(&mut self) -> TestResult {
        let socket = Fd(self.listener.as_fd().as_raw_fd());
        let length = self.buffer.len() as u32;
        let entry = opcode::Recv::new(socket, self.buffer.as_mut_ptr(), length).build();
        // SAFETY: The buffer lives as long as the ring, and is not touched before the completion.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|error| Failure::new(error.to_string()))?;
        self.ring.submit()?;
        Ok(())
    }

    /// The datagram that was asked for.
    fn complete(&mut self) -> Result<Vec<Received>, Failure> {
        let limit = timeouts::scaled(LIMIT);
        let limit = Timespec::new().sec(limit.as_secs());
        let arguments = SubmitArgs::new().timespec(&limit);
        self.ring.submitter().submit_with_args(1, &arguments)?;
        let entry = self.ring.completion().next();
        let result = entry
            .ok_or_else(|| Failure::new("a completion in time"))?
            .result();
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result).into());
        }
        // This operation does not return the sender's address.
        let sender = (0, 1);
        Received::decode_all(&self.buffer[..result as usize], sender).map_err(Failure::new)
    }

    /// Reads this many events, and returns how many datagrams they were in.
    fn read(&mut self, count: usize) -> Result<usize, Failure> {
        let (mut events, mut datagrams) = (0, 0);
        while events < count {
            self.submit()?;
            let datagram = self.complete()?;
            events += renames(&datagram);
            datagrams += 1;
        }
        expect_eq("events", events, count)?;
        Ok(datagrams)
    }
}

fn renames(datagram: &[Received]) -> usize {
    let is_rename = |received: &&Received| matches!(received.event, Event::Comm { .. });
    datagram.iter().filter(is_rename).count()
}

fn each_event_is_read_from_its_datagram() -> TestResult {
    let mut reader = Reader::new(0)?;
    for _ in 0..EVENTS {
        mark("alone")?;
    }
    expect_eq("datagrams", reader.read(EVENTS)?, EVENTS)
}

fn events_are_read_from_batches() -> TestResult {
    let mut reader = Reader::new(BATCH)?;
    for _ in 0..EVENTS {
        mark("in a batch")?;
    }
    let datagrams = reader.read(EVENTS)?;
    expect(
        datagrams <= EVENTS / 10,
        format!("few datagrams, got {datagrams}"),
    )
}

fn a_read_that_waits_gets_the_event() -> TestResult {
    let mut reader = Reader::new(BATCH)?;
    for _ in 0..EVENTS {
        reader.submit()?;
        mark("waited for")?;
        expect_eq("events", renames(&reader.complete()?), 1)?;
    }
    Ok(())
}
