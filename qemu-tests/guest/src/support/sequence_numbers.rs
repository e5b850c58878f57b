// SPDX-License-Identifier: GPL-2.0
//! The numbers of messages: which come next on a CPU, and which are missing.

use std::collections::BTreeMap;

use crate::harness::{Failure, expect, expect_eq};
use crate::listener::Listener;
use crate::wire::{Event, Received};

/// The CPU on which a message was numbered, and its number there.
pub fn cpu_and_seq(received: &Received) -> (u32, u32) {
    let message = &received.message;
    (message.body.cpu, message.connector.seq)
}

/// How many numbers are missing: on each CPU, from the given first one to the last one.
pub fn missing(messages: &[Received], first: &BTreeMap<u32, u32>) -> Result<u64, Failure> {
    missing_in_part(messages, &mut first.clone())
}

/// As [`missing`], for a part of the messages. The numbers that come next become those of the part that
/// follows.
pub fn missing_in_part(
    messages: &[Received],
    next: &mut BTreeMap<u32, u32>,
) -> Result<u64, Failure> {
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

/// Reads the answer to a listener's first request, and expects it to say that the socket listens. Returns
/// the next number of the answer's CPU.
pub fn first_numbers(listener: &mut Listener) -> Result<BTreeMap<u32, u32>, Failure> {
    let answer = listener.answer()?;
    expect_eq("answer", answer.event, Event::Ack { err: 0 })?;
    Ok(next_after(&answer))
}

/// The next number of the CPU that an answer is from.
pub fn next_after(answer: &Received) -> BTreeMap<u32, u32> {
    let (cpu, seq) = cpu_and_seq(answer);
    BTreeMap::from([(cpu, seq.wrapping_add(1))])
}
