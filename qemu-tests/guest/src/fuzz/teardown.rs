// SPDX-License-Identifier: GPL-2.0
//! Requests from namespaces that are being torn down.
//!
//! Processes in a container send requests and check the answers without a pause, each in network
//! namespaces that it makes and leaves, until the container is killed. One of the container's sockets
//! stays open outside. Kinds of namespaces that the kernel lacks are left out, except for pid
//! namespaces: without one, nothing ends all of the container's processes.

use std::time::Duration;

use fastrand::Rng;
use nix::sched::unshare;

use super::checked_socket::CheckedSocket;
use super::environment::Environment;
use super::message::{Listen, Message, ROOT};
use super::program::any_message;
use super::tally::Tally;
use crate::child::{self, Gate};
use crate::harness::{Failure, TestResult, expect};
use crate::support::container::{self, ALL, Container, Handover, NET, PID, USER, available};
use crate::support::process::{pause_for_ever, status};
use crate::wire::{CGROUP, LISTEN, mask, proc_listen_in};

const SENDERS: usize = 2;

/// Sockets of a sender.
const SOCKETS: usize = 2;

/// Messages between two reports of a sender.
const MESSAGES: i32 = 16;

/// How many reports come before the end at most.
const REPORTS: u32 = 24;

/// Messages through the socket that stays.
const AFTERWARDS: usize = 16;

/// What a sender that failed reports instead of the number of its messages.
const FAILED: i32 = -1;

/// Runs a round.
pub fn run(mut random: Rng, environment: &Environment, tally: &mut Tally) -> TestResult {
    let (reports, handover) = (Gate::new()?, Handover::new()?);
    let kinds = available(match environment.has_initial_ids()? && random.bool() {
        true => ALL,
        false => PID | NET,
    });
    let flags = random.u32(..) & environment.cgroups.flags();
    let listen = Listen {
        mask: mask::COMM,
        flags,
        cgroup_id: match flags & CGROUP {
            0 => 0,
            _ => *random
                .choice(&[ROOT, environment.cgroups.made()])
                .unwrap_or(&ROOT),
        },
    };
    let senders: Vec<Rng> = (0..SENDERS).map(|_| random.fork()).collect();
    let container = Container::start(kinds, || {
        let stays = container::open()?;
        let Listen {
            mask,
            flags,
            cgroup_id,
        } = listen;
        stays.request(&proc_listen_in(LISTEN, mask, flags, cgroup_id))?;
        handover.send(&stays)?;
        for random in senders {
            child::fork(|| {
                status(|| {
                    let sent = send(random, environment, &reports);
                    reports.open(FAILED)?;
                    sent
                })
            })?
            .into_pid();
        }
        pause_for_ever()
    })?;
    for _ in 0..random.u32(1..=REPORTS) {
        count(reports.pass()?, tally)?;
    }
    let stays = handover.receive_from(&container)?;
    container.kill()?;
    // What the senders reported since then is there already.
    while let Ok(sent) = reports.pass_within(Duration::ZERO) {
        count(sent, tally)?;
    }
    let mut stays = CheckedSocket::adopt(stays, listen, kinds.contains(USER))?;
    for _ in 0..AFTERWARDS {
        stays.send(&any_message(&mut random)?, environment, tally)?;
    }
    stays.send(&Message::request(&[LISTEN], 1, 1), environment, tally)
}

fn count(sent: i32, tally: &mut Tally) -> TestResult {
    expect(sent != FAILED, "senders to succeed, see above")?;
    tally.messages += u64::try_from(sent)?;
    Ok(())
}

/// Sends until the process is killed.
fn send(mut random: Rng, environment: &Environment, reports: &Gate) -> Result<(), Failure> {
    let environment = &environment.of_this_process()?;
    let mut tally = Tally::default();
    let own = available(NET);
    loop {
        let mut sockets = Vec::new();
        for _ in 0..SOCKETS {
            sockets.push(CheckedSocket::new(container::open()?, true));
        }
        for _ in 0..random.usize(1..=4) {
            for _ in 0..MESSAGES {
                let index = random.usize(..SOCKETS);
                sockets[index].send(&any_message(&mut random)?, environment, &mut tally)?;
            }
            reports.open(MESSAGES)?;
        }
        // The namespace that the process leaves is freed with its last socket.
        unshare(own)?;
    }
}
