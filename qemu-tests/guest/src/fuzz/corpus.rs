// SPDX-License-Identifier: GPL-2.0
//! Programs that covered the code under test as no program before them did. New programs are made
//! from them.

use fastrand::Rng;

use super::coverage::Coverage;
use super::program::Program;
use crate::harness::Failure;

/// Steps of a program.
const STEPS: usize = 40;

/// One in this many programs is not made from others.
const FRESH: u8 = 4;

/// The source of a worker's programs, on a kernel that reports which code they covered.
pub struct Corpus<'a> {
    /// The code that they covered.
    pub coverage: Coverage<'a>,
    programs: Vec<Program>,
}

impl<'a> Corpus<'a> {
    /// An empty corpus.
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
