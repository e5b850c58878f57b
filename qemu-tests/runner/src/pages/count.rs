// SPDX-License-Identifier: GPL-2.0
//! `count`: how many trials passed and failed, counted from the files of their results.

use std::path::{Path, PathBuf};

use anyhow::Context;
use protocol::results::{Count, Entry, Outcome};

/// Prints the count. Returns 1 if anything failed, or nothing passed.
pub fn run(files: &[PathBuf], only_failed: bool) -> u8 {
    let outcomes: Vec<_> = files.iter().flat_map(|file| outcomes(file)).collect();
    let Count { passed, failed, .. } = Count::of(&outcomes);
    if only_failed {
        println!("{failed}");
    } else {
        println!("{passed} passed, {failed} failed");
    }
    if passed == 0 && failed == 0 {
        eprintln!("proc-events-vm: no trial applies, so nothing is shown: choose other tests");
    }
    u8::from(failed > 0 || passed == 0)
}

/// How the trials of a file ended. Results that cannot be read are a failure.
fn outcomes(file: &Path) -> Vec<Outcome> {
    match Entry::read(file).with_context(|| format!("cannot read {}", file.display())) {
        Ok(entries) => entries.into_iter().filter_map(outcome).collect(),
        Err(error) => {
            eprintln!("proc-events-vm: {error:#}");
            vec![Outcome::Failed(error.to_string())]
        }
    }
}

/// What an entry counts as: a run that ended early is a failure.
fn outcome(entry: Entry) -> Option<Outcome> {
    match entry {
        Entry::Trial(trial) => Some(trial.verdict),
        Entry::EndedEarly(reason) => Some(Outcome::Failed(reason)),
        Entry::Provenance(_) | Entry::Machine { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_end_is_a_failure() {
        let ended = Entry::EndedEarly("with status 3".to_owned());
        assert!(matches!(outcome(ended), Some(Outcome::Failed(_))));
        let accelerator = "tcg".to_owned();
        assert_eq!(outcome(Entry::Machine { accelerator }), None);
    }

    #[test]
    fn what_cannot_be_read_is_a_failure() {
        let [failure] = outcomes(Path::new("/nonexistent")).try_into().unwrap();
        assert!(matches!(failure, Outcome::Failed(_)));
        assert_eq!(run(&["/nonexistent".into()], true), 1);
    }
}
