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

/// The number that a listener's next message of each CPU is to have. It is 0 on a CPU that had none.
#[derive(Clone, Debug, Default)]
pub struct SequenceNumbers(BTreeMap<u32, u32>);

impl SequenceNumbers {
    /// The numbers after these messages: after an answer, or after one event of each CPU.
    pub fn after(messages: &[Received]) -> Self {
        let next = messages.iter().map(|received| {
            let (cpu, seq) = cpu_and_seq(received);
            (cpu, seq.wrapping_add(1))
        });
        Self(next.collect())
    }

    /// Reads the answer to a listener's first request, and expects it to say that the socket listens.
    pub fn first(listener: &mut Listener) -> Result<Self, Failure> {
        let answer = listener.answer()?;
        expect_eq("answer", answer.event, Event::Ack { err: 0 })?;
        Ok(Self::after(&[answer]))
    }

    /// Returns how many numbers are missing before a message, and goes on after it. Fails if the number
    /// goes back.
    #[track_caller]
    pub fn advance_to(&mut self, received: &Received) -> Result<u32, Failure> {
        let (cpu, seq) = cpu_and_seq(received);
        let next = self.0.entry(cpu).or_insert(0);
        let gap = seq.wrapping_sub(*next);
        expect(
            gap < 1 << 31,
            format!("CPU {cpu} to go on from {next}, not back to {seq}"),
        )?;
        *next = seq.wrapping_add(1);
        Ok(gap)
    }

    /// Like [`Self::advance_to`], for all of these messages.
    #[track_caller]
    pub fn advance(&mut self, messages: &[Received]) -> Result<u64, Failure> {
        let mut missing = 0;
        for received in messages {
            missing += u64::from(self.advance_to(received)?);
        }
        Ok(missing)
    }

    /// Returns how many numbers are missing: on each CPU, from the next one to that of the last message.
    #[track_caller]
    pub fn missing(&self, messages: &[Received]) -> Result<u64, Failure> {
        self.clone().advance(messages)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::wire::Message;

    fn numbered(cpu: u32, seq: u32) -> Received {
        let mut message = Message::new_zeroed();
        message.body.cpu = cpu;
        message.connector.seq = seq;
        Received {
            message,
            event: Event::Ack { err: 0 },
            identity: None,
            defined: 0,
            sender: (0, 1),
        }
    }

    #[test]
    fn gaps_of_all_cpus_are_added_up() {
        let numbers = SequenceNumbers::after(&[numbered(1, u32::MAX - 1)]);
        let messages = [numbered(1, u32::MAX), numbered(0, 2), numbered(1, 3)];
        assert_eq!(numbers.missing(&messages).unwrap(), 5);
    }

    #[test]
    fn a_number_that_goes_back_or_comes_again_fails() {
        for seq in [6, 7] {
            let mut numbers = SequenceNumbers::after(&[numbered(0, 7)]);
            assert!(numbers.advance_to(&numbered(0, seq)).is_err(), "{seq}");
        }
    }
}
