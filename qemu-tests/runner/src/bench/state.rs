// SPDX-License-Identifier: GPL-2.0
//! What it takes to learn which processes there are.

use protocol::bench::{POPULATIONS, Situation};

use super::figures::Figures;
use super::kernels::BenchKernel;
use super::table::{Section, number, ratio};
use crate::pages::number::grouped;

/// The kernel, and the source on it.
const COLUMNS: [(&str, BenchKernel, Situation); 4] = [
    ("stock: /proc", BenchKernel::Stock, Situation::NoListener),
    ("ours: /proc", BenchKernel::Ours, Situation::NoListener),
    ("ours: STATE", BenchKernel::Ours, Situation::State),
    (
        "ours: STATE with IDENTITY",
        BenchKernel::Ours,
        Situation::IdentityState,
    ),
];

/// How many ids are looked at in one RCU read-side critical section at most.
const IDS_AT_ONCE: u32 = 64;

/// The table.
pub fn section(figures: &Figures) -> Section {
    let mut rows = Vec::new();
    for processes in POPULATIONS {
        let many = grouped(processes.into(), 0);
        let instructions =
            COLUMNS.map(|(_, kernel, situation)| figures.enumeration(kernel, situation, processes));
        let [proc, .., state, _] = instructions;
        let mut row = vec![format!("a process of {many}")];
        row.extend(instructions.map(number));
        row.push(ratio(state, proc));
        rows.push(row);
        let sections = COLUMNS.map(|(_, kernel, situation)| match situation {
            Situation::NoListener => None,
            _ => figures.enumeration(kernel, situation, processes),
        });
        let mut row = vec![format!("{IDS_AT_ONCE} of {many}: more than an RCU section")];
        row.extend(sections.map(|each| number(each.map(|each| f64::from(IDS_AT_ONCE) * each))));
        row.push("-".to_owned());
        rows.push(row);
    }
    let heads = COLUMNS.map(|(name, ..)| name.to_owned());
    let ends = ["case".to_owned(), "STATE/stock's /proc".to_owned()];
    let [first, last] = ends;
    Section {
        title: "Which processes there are",
        about: format!(
            "Instructions for each process, of the kernel and of the reader together, to learn all \
             processes of a pid namespace. STATE: from the\nrequest PROC_CN_MCAST_STATE to its answer. \
             /proc: opendir(3), then open, read and close of each /proc/PID/stat, all of which had \
             been\nread before. The kernel looks at no more than {IDS_AT_ONCE} ids in one RCU read-side \
             critical section. The second line of each pair is an upper\nbound for that section, since \
             it includes the reader."
        ),
        head: [first].into_iter().chain(heads).chain([last]).collect(),
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::enumeration;

    #[test]
    fn each_way_to_learn_it_has_its_column() {
        let mut figures = Figures::default();
        figures.add(
            BenchKernel::Stock,
            vec![enumeration(Situation::NoListener, 1_000, 12_000.0)],
        );
        figures.add(
            BenchKernel::Ours,
            vec![
                enumeration(Situation::NoListener, 1_000, 12_100.0),
                enumeration(Situation::State, 1_000, 600.0),
                enumeration(Situation::IdentityState, 1_000, 700.0),
            ],
        );
        let Section { head, rows, .. } = section(&figures);
        for expected in [
            [
                "a process of 1,000",
                "12,000",
                "12,100",
                "600",
                "700",
                "0.05",
            ],
            [
                "64 of 1,000: more than an RCU section",
                "-",
                "-",
                "38,400",
                "44,800",
                "-",
            ],
            ["a process of 10,000", "-", "-", "-", "-", "-"],
        ] {
            assert!(rows.iter().any(|row| *row == expected), "{rows:?}");
        }
        assert!(rows.iter().all(|row| row.len() == head.len()));
    }
}
