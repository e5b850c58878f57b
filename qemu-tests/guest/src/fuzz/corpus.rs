// SPDX-License-Identifier: GPL-2.0
//! Programs that ran through code of ours as none before them, of which others are made.

use fastrand::Rng;

use super::coverage::Coverage;
use super::program::Program;
use crate::harness::Failure;

/// Steps of a program.
const STEPS: usize = 40;

/// One in so many programs owes nothing to others.
const FRESH: u8 = 4;

/// Where a worker's programs come from, on a kernel that tells what they ran through.
pub struct Corpus<'a> {
    /// What they ran through.
    pub coverage: Coverage<'a>,
    programs: Vec<Program>,
}

impl<'a> Corpus<'a> {
    /// Nothing yet.
    pub fn new(coverage: Coverage<'a>) -> Self {
        Self {
            coverage,
            programs: Vec::new(),
        }
    }

    /// The next program to try.
    pub fn next(&self, random: &mut Rng) -> Result<Program, Failure> {
        match (random.choice(&self.programs), random.choice(&self.programs)) {
            (Some(program), Some(other)) if random.u8(..FRESH) > 0 => {
                program.changed(other, random, STEPS)
            }
            _ => Program::random(random, STEPS),
        }
    }

    /// Keeps a program.
    pub fn keep(&mut self, program: Program) {
        self.programs.push(program);
    }
}
