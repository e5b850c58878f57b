// SPDX-License-Identifier: GPL-2.0
//! The process that does the operations. It has no listener's socket. A child would inherit each of
//! them, and the cost of that in fork(2), execve(2) and the end is not a cost of events.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};

use anyhow::{Context, Result, anyhow};
use nix::unistd::pipe;
use protocol::bench::Operation;

use super::operations::Operations;
use crate::child;

/// The worker, as the benchmark sees it. It ends when this is dropped.
pub struct Worker {
    requests: File,
    answers: BufReader<File>,
}

impl Worker {
    /// Starts it, before there is a listener.
    pub fn start() -> Result<Self> {
        let (requests, requests_writer) = pipe()?;
        let (answers, answers_writer) = pipe()?;
        let mut ours = Some((requests_writer, answers));
        // The next request fails if the worker has ended, so that waiting for it is not necessary.
        let _ = child::fork(|| {
            drop(ours.take());
            let requests = BufReader::new(File::from(requests));
            match serve(requests, File::from(answers_writer)) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("bench: {error:#}");
                    1
                }
            }
        })?;
        let (requests, answers) = ours.context("only the child takes them")?;
        Ok(Self {
            requests: File::from(requests),
            answers: BufReader::new(File::from(answers)),
        })
    }

    /// Does an operation this many times. Returns the instructions that each took.
    pub fn run(&mut self, operation: Operation, times: u64) -> Result<Vec<u64>> {
        send(&mut self.requests, &(operation, times))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Result<Vec<u64>, String> =
            serde_json::from_str(&line).context("the benchmark's worker has ended")?;
        answer.map_err(|error| anyhow!("{}: {error}", operation.name()))
    }
}

/// Does the operations that are requested, until the benchmark closes the pipe.
fn serve(requests: BufReader<File>, mut answers: File) -> Result<()> {
    let mut operations = Operations::new()?;
    for line in requests.lines() {
        let (operation, times): (_, u64) = serde_json::from_str(&line?)?;
        let answer: Result<Vec<u64>> = (0..times).map(|_| operations.run(operation)).collect();
        send(&mut answers, &answer.map_err(|error| format!("{error:#}")))?;
    }
    Ok(())
}

fn send(pipe: &mut File, message: &impl serde::Serialize) -> Result<()> {
    let line = format!("{}\n", serde_json::to_string(message)?);
    Ok(pipe.write_all(line.as_bytes())?)
}
