// SPDX-License-Identifier: GPL-2.0
//! What one thread does in a round, step by step. A program consists of bytes, from which its steps
//! are made. So it can be written down, and changed a little.

use std::fmt;
use std::str::FromStr;

use arbitrary::{Arbitrary, Result, Unstructured};
use fastrand::Rng;
use mutatis::{Candidates, Context, Generate, Mutate, Session, mutators};

use super::message::Message;
use super::reading::Reading;
use crate::harness::Failure;

/// Random bytes for a step: almost always enough, even for two messages in a datagram.
const ENTROPY: usize = 512;

/// How many changes make a new program from another one at most.
const CHANGES: u32 = 8;

/// How often a step renames the task at most: so often that not all events fit into one datagram.
const RENAMES: usize = 8;

/// The separator of the steps of a program that is written down.
const SEPARATOR: &str = "-";

/// One step. A socket is named by any number: its remainder by the number of sockets is the index.
#[derive(Debug)]
pub enum Step {
    /// Opens one more socket, bound to the group of process events or not at all.
    Open { bound: bool },
    /// Closes one descriptor, which ends a listener if it is the last one.
    Close { socket: usize },
    /// The same without reading what is queued.
    Abandon { socket: usize },
    /// Makes another descriptor of the same socket.
    Duplicate { socket: usize },
    /// Passes one descriptor on, so that for a while only the message holds it. If the message is not
    /// read, the descriptor is closed with it.
    PassOn { socket: usize, is_read: bool },
    /// Leaves the group.
    Leave { socket: usize },
    /// Joins the group.
    Join { socket: usize },
    /// Binds a socket to its own address once more, with the group or without.
    Bind { socket: usize, in_group: bool },
    /// Renames the task that many times.
    Rename { times: usize },
    /// Peeks at the next datagram of a socket.
    Peek { socket: usize, reading: Reading },
    /// Reads one datagram, or the part of it that fits.
    Read { socket: usize, reading: Reading },
    /// Checks that the listing matches the model.
    CheckListing,
    /// Attaches a filter that keeps everything to a socket.
    Filter { socket: usize },
    /// Sends a message, and reads until it is answered.
    Send { socket: usize, message: Message },
    /// Sends a message, often one that asks for the state, and reads nothing.
    Post { socket: usize, message: Message },
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let (choice, socket) = (u.int_in_range(0..=99)?, u.arbitrary::<u8>()?.into());
        Ok(match choice {
            0..4 => Self::Open {
                bound: u.ratio(3, 4)?,
            },
            4..6 => Self::Close { socket },
            6..8 => Self::Duplicate { socket },
            8..10 => Self::PassOn {
                socket,
                is_read: u.arbitrary()?,
            },
            10..12 => Self::Leave { socket },
            12..14 => Self::Join { socket },
            14..16 => Self::Bind {
                socket,
                in_group: u.arbitrary()?,
            },
            16..19 => Self::Rename {
                times: u.int_in_range(1..=RENAMES)?,
            },
            19..21 => Self::CheckListing,
            21..25 => Self::Peek {
                socket,
                reading: u.arbitrary()?,
            },
            25..28 => Self::Read {
                socket,
                reading: u.arbitrary()?,
            },
            92..98 => Self::Post {
                socket,
                message: match u.ratio(2, 3)? {
                    true => Message::state(u)?,
                    false => u.arbitrary()?,
                },
            },
            98 => Self::Abandon { socket },
            99 => Self::Filter { socket },
            _ => Self::Send {
                socket,
                message: u.arbitrary()?,
            },
        })
    }
}

impl Step {
    /// Makes a step from bytes. If they are too few, further bytes are derived from them.
    fn decode(bytes: &[u8]) -> Result<Self> {
        Unstructured::new(&lengthened(bytes)).arbitrary()
    }

    /// The bytes of a random step, and no more than it needs.
    fn random(random: &mut Rng) -> Result<Vec<u8>> {
        let mut bytes = vec![0; ENTROPY];
        random.fill(&mut bytes);
        let mut unstructured = Unstructured::new(&bytes);
        unstructured.arbitrary::<Self>()?;
        let used = bytes.len() - unstructured.len();
        bytes.truncate(used);
        Ok(bytes)
    }
}

fn lengthened(bytes: &[u8]) -> Vec<u8> {
    // FNV-1a, which never changes: a program that was kept must not become another one.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut random = Rng::with_seed(hash);
    let mut bytes = bytes.to_vec();
    let missing = ENTROPY.saturating_sub(bytes.len());
    bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(missing));
    bytes
}

/// The next message that follows from a seed.
pub fn any_message(random: &mut Rng) -> std::result::Result<Message, Failure> {
    let mut bytes = [0; ENTROPY];
    random.fill(&mut bytes);
    Ok(Unstructured::new(&bytes).arbitrary()?)
}

/// The steps of a round.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Program(Vec<Vec<u8>>);

impl Program {
    /// A random program of this many steps.
    pub fn random(random: &mut Rng, steps: usize) -> std::result::Result<Self, Failure> {
        let steps = (0..steps).map(|_| Step::random(random));
        Ok(Self(steps.collect::<Result<_>>()?))
    }

    /// A program that is like this one, or begins like this one and ends like the other one. It has
    /// at most this many steps.
    pub fn changed(
        &self,
        other: &Self,
        random: &mut Rng,
        steps: usize,
    ) -> std::result::Result<Self, Failure> {
        let mut program = self.clone();
        if random.u8(..4) == 0 {
            program.0.truncate(random.usize(..=self.0.len()));
            program
                .0
                .extend_from_slice(&other.0[random.usize(..=other.0.len())..]);
        }
        let mut session = Session::new().seed(random.u64(..));
        let mut mutator = mutators::vec(StepMutator);
        for _ in 0..random.u32(1..=CHANGES) {
            session.mutate_with(&mut mutator, &mut program.0)?;
        }
        program.0.truncate(steps);
        Ok(program)
    }

    /// Its steps.
    pub fn steps(&self) -> impl Iterator<Item = Result<Step>> {
        self.0.iter().map(|bytes| Step::decode(bytes))
    }
}

/// Changes the bytes of a step, one at a time.
struct StepMutator;

impl Mutate<Vec<u8>> for StepMutator {
    fn mutate(
        &mut self,
        candidates: &mut Candidates<'_>,
        step: &mut Vec<u8>,
    ) -> mutatis::Result<()> {
        step.iter_mut()
            .try_for_each(|byte| mutators::u8().mutate(candidates, byte))
    }
}

impl Generate<Vec<u8>> for StepMutator {
    fn generate(&mut self, context: &mut Context) -> mutatis::Result<Vec<u8>> {
        let mut random = Rng::with_seed(context.rng().gen_u64());
        Step::random(&mut random).map_err(|_| mutatis::Error::invalid_range())
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<_> = self.0.iter().map(hex::encode).collect();
        formatter.write_str(&steps.join(SEPARATOR))
    }
}

impl FromStr for Program {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let steps = text.split(SEPARATOR).map(hex::decode);
        Ok(Self(steps.collect::<std::result::Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_program(random: &mut Rng) -> Program {
        Program::random(random, 20).unwrap()
    }

    /// What a program does, as text.
    fn described(program: &Program) -> Vec<String> {
        let steps = program.steps().map(|step| format!("{:?}", step.unwrap()));
        steps.collect()
    }

    #[test]
    fn a_program_can_be_written_down() {
        let mut random = Rng::with_seed(1);
        for _ in 0..100 {
            let program = any_program(&mut random);
            let read: Program = program.to_string().parse().unwrap();
            assert_eq!(read, program);
            assert_eq!(described(&read), described(&program));
        }
        assert!("0g".parse::<Program>().is_err());
        assert!("0-1".parse::<Program>().is_err());
    }

    #[test]
    fn all_bytes_make_a_program() {
        for text in ["", "ff", "00-ffffff", "14-ff-00"] {
            let program: Program = text.parse().unwrap();
            assert_eq!(described(&program).len(), text.split('-').count());
        }
    }

    #[test]
    fn a_step_takes_no_more_than_its_bytes() {
        let mut random = Rng::with_seed(2);
        for _ in 0..1000 {
            let mut bytes = Step::random(&mut random).unwrap();
            assert!(bytes.len() < ENTROPY, "{}", bytes.len());
            let step = format!("{:?}", Step::decode(&bytes).unwrap());
            bytes.push(random.u8(..));
            assert_eq!(format!("{:?}", Step::decode(&bytes).unwrap()), step);
        }
    }

    #[test]
    fn states_are_asked_for_and_left_to_be_read() {
        let program = Program::random(&mut Rng::with_seed(4), 2000).unwrap();
        let (mut posted, mut abandoned, mut filtered) = (0, 0, 0);
        for step in program.steps() {
            match step.unwrap() {
                Step::Post { .. } => posted += 1,
                Step::Abandon { .. } => abandoned += 1,
                Step::Filter { .. } => filtered += 1,
                _ => {}
            }
        }
        let counts = [posted, abandoned, filtered];
        assert!(posted > 80 && abandoned > 8 && filtered > 8, "{counts:?}");
        assert!(counts.iter().sum::<u32>() < 250, "{counts:?}");
    }

    #[test]
    fn a_changed_program_keeps_most_of_its_steps() {
        let mut random = Rng::with_seed(3);
        let (one, other) = (any_program(&mut random), any_program(&mut random));
        let (mut same, mut all) = (0, 0);
        for _ in 0..200 {
            let changed = one.changed(&other, &mut random, 25).unwrap();
            assert!(changed.0.len() <= 25);
            all += changed.0.len();
            let known = |step: &&Vec<u8>| one.0.contains(step) || other.0.contains(step);
            same += changed.0.iter().filter(known).count();
        }
        assert!(same > all / 2, "{same} of {all}");
        assert!(same < all, "{same} of {all}");
    }
}
