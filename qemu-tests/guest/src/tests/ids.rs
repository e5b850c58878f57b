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
    test!(uid_comes_for_the_real_id).covers(&[Line::C9]),
    test!(uid_comes_for_the_effective_id).covers(&[Line::C9]),
    test!(uid_comes_for_the_saved_id).covers(&[Line::C9]),
    test!(uid_comes_for_the_file_system_id).covers(&[Line::C9]),
    test!(uid_comes_once_for_all_ids_together).covers(&[Line::C9]),
    test!(uid_does_not_come_when_nothing_changes).covers(&[Line::C9]),
    test!(gid_comes_for_the_real_id).covers(&[Line::C10]),
    test!(gid_comes_for_the_effective_id).covers(&[Line::C10]),
    test!(gid_comes_for_the_saved_id).covers(&[Line::C10]),
    test!(gid_comes_for_the_file_system_id).covers(&[Line::C10]),
    test!(gid_comes_once_for_all_ids_together).covers(&[Line::C10]),
    test!(gid_does_not_come_when_nothing_changes).covers(&[Line::C10]),
    test!(uid_and_gid_both_come_when_both_change).covers(&[Line::C9, Line::C10]),
];

const SAME: u32 = u32::MAX;
const OTHER: u32 = 4242;
const THIRD: u32 = 4243;

fn set_uids(real: u32, effective: u32, saved: u32) -> Result<i32, Failure> {
    setresuid(
        Uid::from_raw(real),
        Uid::from_raw(effective),
        Uid::from_raw(saved),
    )?;
    Ok(0)
}

fn set_gids(real: u32, effective: u32, saved: u32) -> Result<i32, Failure> {
    setresgid(
        Gid::from_raw(real),
        Gid::from_raw(effective),
        Gid::from_raw(saved),
    )?;
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
    let uids: Vec<_> = uids
        .iter()
        .map(|(real, effective)| (task, *real, *effective))
        .collect();
    let gids: Vec<_> = gids
        .iter()
        .map(|(real, effective)| (task, *real, *effective))
        .collect();
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
    expect_eq("UID events (task, real, effective)", got(mask::UID), uids)?;
    expect_eq("GID events (task, real, effective)", got(mask::GID), gids)
}

fn uid_comes_for_the_real_id() -> TestResult {
    expect_ids(|| set_uids(OTHER, SAME, SAME), &[(OTHER, 0)], &[])
}

fn uid_comes_for_the_effective_id() -> TestResult {
    expect_ids(|| set_uids(SAME, OTHER, SAME), &[(0, OTHER)], &[])
}

fn uid_comes_for_the_saved_id() -> TestResult {
    expect_ids(|| set_uids(SAME, SAME, OTHER), &[(0, 0)], &[])
}

fn uid_comes_for_the_file_system_id() -> TestResult {
    let change = || {
        setfsuid(Uid::from_raw(OTHER));
        Ok(0)
    };
    expect_ids(change, &[(0, 0)], &[])
}

fn uid_comes_once_for_all_ids_together() -> TestResult {
    expect_ids(|| set_uids(OTHER, THIRD, OTHER), &[(OTHER, THIRD)], &[])
}

fn uid_does_not_come_when_nothing_changes() -> TestResult {
    expect_ids(|| set_uids(0, 0, 0), &[], &[])
}

fn gid_comes_for_the_real_id() -> TestResult {
    expect_ids(|| set_gids(OTHER, SAME, SAME), &[], &[(OTHER, 0)])
}

fn gid_comes_for_the_effective_id() -> TestResult {
    expect_ids(|| set_gids(SAME, OTHER, SAME), &[], &[(0, OTHER)])
}

fn gid_comes_for_the_saved_id() -> TestResult {
    expect_ids(|| set_gids(SAME, SAME, OTHER), &[], &[(0, 0)])
}

fn gid_comes_for_the_file_system_id() -> TestResult {
    let change = || {
        setfsgid(Gid::from_raw(OTHER));
        Ok(0)
    };
    expect_ids(change, &[], &[(0, 0)])
}

fn gid_comes_once_for_all_ids_together() -> TestResult {
    expect_ids(|| set_gids(OTHER, THIRD, OTHER), &[], &[(OTHER, THIRD)])
}

fn gid_does_not_come_when_nothing_changes() -> TestResult {
    expect_ids(|| set_gids(0, 0, 0), &[], &[])
}

fn uid_and_gid_both_come_when_both_change() -> TestResult {
    let change = || {
        set_gids(THIRD, THIRD, THIRD)?;
        set_uids(OTHER, OTHER, OTHER)
    };
    expect_ids(change, &[(OTHER, OTHER)], &[(THIRD, THIRD)])
}
