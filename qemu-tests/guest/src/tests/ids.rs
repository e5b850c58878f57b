// SPDX-License-Identifier: GPL-2.0
//! UID and GID: one of the four ids of a kind changes (C9, C10).
//!
//! The events carry the real and the effective id, and they come for the saved and the file
//! system id as well.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setresgid, setresuid};

use crate::harness::{Failure, Line, Test, TestResult, expect_eq};
use crate::listener::Listener;
use crate::support::scenario::in_child;
use crate::test;
use crate::wire::{Event, mask};

pub const TESTS: &[Test] = &[
    test!(uid_follows[real_id](REAL_ID)).covers(UID),
    test!(uid_follows[effective_id](EFFECTIVE_ID)).covers(UID),
    test!(uid_follows[saved_id](SAVED_ID)).covers(UID),
    test!(uid_follows[all_ids](ALL_IDS)).covers(UID),
    test!(uid_follows[no_change](NO_CHANGE)).covers(UID),
    test!(uid_comes_for_the_file_system_id).covers(UID),
    test!(gid_follows[real_id](REAL_ID)).covers(GID),
    test!(gid_follows[effective_id](EFFECTIVE_ID)).covers(GID),
    test!(gid_follows[saved_id](SAVED_ID)).covers(GID),
    test!(gid_follows[all_ids](ALL_IDS)).covers(GID),
    test!(gid_follows[no_change](NO_CHANGE)).covers(GID),
    test!(gid_comes_for_the_file_system_id).covers(GID),
    test!(uid_and_gid_both_come_when_both_change).covers(&[Line::C9, Line::C10]),
];

const UID: &[Line] = &[Line::C9];
const GID: &[Line] = &[Line::C10];

const SAME: u32 = u32::MAX;
const OTHER: u32 = 4242;
const THIRD: u32 = 4243;

/// The real, effective and saved id that are set, and the events that come, each with the real and
/// the effective id.
type Change = ([u32; 3], &'static [(u32, u32)]);

const REAL_ID: Change = ([OTHER, SAME, SAME], &[(OTHER, 0)]);
const EFFECTIVE_ID: Change = ([SAME, OTHER, SAME], &[(0, OTHER)]);
const SAVED_ID: Change = ([SAME, SAME, OTHER], &[(0, 0)]);
const ALL_IDS: Change = ([OTHER, THIRD, OTHER], &[(OTHER, THIRD)]);
const NO_CHANGE: Change = ([0, 0, 0], &[]);

fn set_uids(ids: [u32; 3]) -> Result<i32, Failure> {
    let [real, effective, saved] = ids.map(Uid::from_raw);
    setresuid(real, effective, saved)?;
    Ok(0)
}

fn set_gids(ids: [u32; 3]) -> Result<i32, Failure> {
    let [real, effective, saved] = ids.map(Gid::from_raw);
    setresgid(real, effective, saved)?;
    Ok(0)
}

/// Expects the events of user ids (real and effective) and of group ids that a change raises.
#[track_caller]
fn expect_ids(
    change: impl FnOnce() -> Result<i32, Failure>,
    uids: &[(u32, u32)],
    gids: &[(u32, u32)],
) -> TestResult {
    let mut listener = Listener::listen_all()?;
    let scene = in_child(&mut listener, change)?;
    let task = scene.child;
    let of_child = |ids: &[(u32, u32)]| -> Vec<_> {
        let ids = ids
            .iter()
            .map(|(real, effective)| (task, *real, *effective));
        ids.collect()
    };
    let got = |bit| -> Vec<_> {
        let ids = scene
            .events(bit)
            .into_iter()
            .filter_map(|event| match event {
                Event::Uid {
                    task,
                    real,
                    effective,
                }
                | Event::Gid {
                    task,
                    real,
                    effective,
                } => Some((task, real, effective)),
                _ => None,
            });
        ids.collect()
    };
    expect_eq(
        "UID events (task, real, effective)",
        got(mask::UID),
        of_child(uids),
    )?;
    expect_eq(
        "GID events (task, real, effective)",
        got(mask::GID),
        of_child(gids),
    )
}

fn uid_follows((ids, events): Change) -> TestResult {
    expect_ids(|| set_uids(ids), events, &[])
}

fn gid_follows((ids, events): Change) -> TestResult {
    expect_ids(|| set_gids(ids), &[], events)
}

fn uid_comes_for_the_file_system_id() -> TestResult {
    let change = || {
        setfsuid(Uid::from_raw(OTHER));
        Ok(0)
    };
    expect_ids(change, &[(0, 0)], &[])
}

fn gid_comes_for_the_file_system_id() -> TestResult {
    let change = || {
        setfsgid(Gid::from_raw(OTHER));
        Ok(0)
    };
    expect_ids(change, &[], &[(0, 0)])
}

fn uid_and_gid_both_come_when_both_change() -> TestResult {
    let change = || {
        set_gids([THIRD; 3])?;
        set_uids([OTHER; 3])
    };
    expect_ids(change, &[(OTHER, OTHER)], &[(THIRD, THIRD)])
}
