// SPDX-License-Identifier: GPL-2.0
//! The numbers of messages: which come next on a CPU, and which are missing.

use std::collections::BTreeMap;

use crate::harness::{Failure, expect, expect_eq};
use crate::listener::Listener;
use crate::wire::{Event, Received};

/// Where a message was numbered, and how.
pub fn cpu_and_seq(received: &Received) -> (u32, u32) {
    let message = &received.message;
    (message.body.cpu, message.connector.seq)
}

/// The numbers that are missing between the first one of each CPU, as given, and its last.
pub fn missing(messages: &[Received], first: &BTreeMap<u32, u32>) -> Result<u64, Failure> {
    let mut next = first.clone();
    let mut missing = 0;
    for received in messages {
        let (cpu, seq) = cpu_and_seq(received);
        let next = next.entry(cpu).or_insert(0);
        let gap = seq.wrapping_sub(*next);
        expect(
            gap < 1 << 31,
            format!("CPU {cpu} to go on from {next}, not back to {seq}"),
        )?;
        missing += u64::from(gap);
        *next = seq.wrapping_add(1);
    }
    Ok(missing)
}

/// The answer to a listener's first request, which is there and says that it listens: with which
/// number the answer's CPU goes on.
pub fn first_numbers(listener: &mut Listener) -> Result<BTreeMap<u32, u32>, Failure> {
    let answer = listener.wait_for("the answer", |received| received.event.bit() == 0)?;
    expect_eq("answer", answer.event, Event::Ack { err: 0 })?;
    Ok(next_after(&answer))
}

/// The number with which the CPU of an answer goes on.
pub fn next_after(answer: &Received) -> BTreeMap<u32, u32> {
    let (cpu, seq) = cpu_and_seq(answer);
    BTreeMap::from([(cpu, seq.wrapping_add(1))])
}
