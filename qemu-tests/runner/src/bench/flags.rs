// SPDX-License-Identifier: GPL-2.0
//! The costs of the flags that only our kernel has, except BATCH: IDENTITY, CGROUP and PROCESSES.

use protocol::bench::{Operation, Situation, WITH_FLAGS};

use super::figures::Figures;
use super::kernels::BenchKernel;
use super::table::{Section, with_spread};
use crate::pages::number::grouped;

/// How listeners that ask for IDENTITY get events.
const FORMS: [Situation; 2] = [Situation::Identity, Situation::IdentityBatch];

/// The table.
pub fn section(figures: &Figures) -> Section {
    let (comm, ours) = (Operation::Comm, BenchKernel::Ours);
    let mut rows = Vec::new();
    let mut add = |case: String, single: String, batch: String| {
        rows.push(vec![case, "-".to_owned(), single, batch]);
    };
    for count in WITH_FLAGS {
        let case = format!("COMM delivered to {} with IDENTITY", listeners(count));
        let [single, batch] =
            FORMS.map(|form| with_spread(figures.in_turn(ours, comm, form, count)));
        add(case, single, batch);
    }
    for count in WITH_FLAGS {
        let case = format!("what IDENTITY adds to COMM, {}", listeners(count));
        let [single, batch] = FORMS.map(|form| with_spread(figures.added(ours, comm, form, count)));
        add(case, single, batch);
    }
    let parts = FORMS.map(|form| parts(figures, form));
    for (case, part) in [
        ("of that, for the event", 0),
        ("of that, for each listener", 1),
    ] {
        let [single, batch] = parts.map(|parts| match parts {
            Some(parts) => grouped(parts[part], 1),
            None => "-".to_owned(),
        });
        add(case.to_owned(), single, batch);
    }
    let alone = |operation, situation, count| {
        with_spread(figures.in_turn(ours, operation, situation, count))
    };
    for count in WITH_FLAGS {
        let single = alone(comm, Situation::OtherCgroup, count);
        add(outside(count), single, "-".to_owned());
    }
    for operation in Operation::THREADS {
        let case = format!("{}, 1 listener with PROCESSES", operation.name());
        let single = alone(operation, Situation::Processes, 1);
        add(case, single, "-".to_owned());
    }
    let [first, last] = ends();
    Section {
        title: "Identity, cgroups and processes",
        about: format!(
            "The flags PROC_CN_LISTEN_IDENTITY, _CGROUP and _PROCESSES, which the stock kernel does \
             not have. Instructions above those of the same\noperation without listeners. What IDENTITY \
             adds is measured against as many listeners without it, in turn, and with as many unread\n\
             events. What it adds for each listener is the slope between {first} and {last} listeners, and \
             the rest is for the event. No process is in the cgroup.\nA thread's fork and exit are what \
             the cheapest tenth took, as above."
        ),
        head: ["case", "stock", "ours", "ours with BATCH"]
            .map(str::to_owned)
            .to_vec(),
        rows,
    }
}

/// The number of listeners, in words.
pub fn listeners(count: u32) -> String {
    match count {
        1 => "1 listener".to_owned(),
        _ => format!("{count} listeners"),
    }
}

/// An event that the filter by cgroup leaves out.
pub fn outside(count: u32) -> String {
    format!("COMM outside of the cgroup of {}", listeners(count))
}

/// What IDENTITY adds for the event itself, and for each listener.
fn parts(figures: &Figures, form: Situation) -> Option<[f64; 2]> {
    let added = |count| {
        let added = figures.added(BenchKernel::Ours, Operation::Comm, form, count)?;
        Some(added.instructions)
    };
    let [first, last] = ends();
    let each = (added(last)? - added(first)?) / f64::from(last - first);
    Some([added(first)? - f64::from(first) * each, each])
}

/// The smallest and the largest number of listeners.
fn ends() -> [u32; 2] {
    [WITH_FLAGS[0], WITH_FLAGS[WITH_FLAGS.len() - 1]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::{line, with_added, with_cost};

    #[test]
    fn each_flag_has_its_figures() {
        let comm = Operation::Comm;
        let identity = |form, count, cost, added| {
            let line = line(comm, form, count, 400.0 + cost);
            with_added(with_cost(line, cost), added)
        };
        let with = |operation, situation, count, cost| {
            with_cost(line(operation, situation, count, 400.0 + cost), cost)
        };
        let mut figures = Figures::default();
        let lines = vec![
            identity(Situation::Identity, 1, 760.0, 45.0),
            identity(Situation::Identity, 64, 38_500.0, 675.0),
            identity(Situation::IdentityBatch, 1, 420.0, 38.0),
            with(comm, Situation::OtherCgroup, 8, 305.0),
            with(Operation::ThreadExit, Situation::Processes, 1, 190.0),
        ];
        figures.add(BenchKernel::Ours, lines);
        let Section { head, rows, .. } = section(&figures);
        for expected in [
            [
                "COMM delivered to 1 listener with IDENTITY",
                "-",
                "760",
                "420",
            ],
            ["COMM delivered to 2 listeners with IDENTITY", "-", "-", "-"],
            ["what IDENTITY adds to COMM, 64 listeners", "-", "675", "-"],
            ["of that, for the event", "-", "35.0", "-"],
            ["of that, for each listener", "-", "10.0", "-"],
            ["COMM outside of the cgroup of 8 listeners", "-", "305", "-"],
            [
                "a thread's exit, 1 listener with PROCESSES",
                "-",
                "190",
                "-",
            ],
        ] {
            assert!(rows.iter().any(|row| *row == expected), "{rows:?}");
        }
        assert!(rows.iter().all(|row| row.len() == head.len()));
    }
}
