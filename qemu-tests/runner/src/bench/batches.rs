// SPDX-License-Identifier: GPL-2.0
//! The costs of listeners that get events in batches, beside listeners that get them one by one.

use std::collections::BTreeMap;

use protocol::bench::{LISTENER_COUNTS, MOST_UNREAD, Operation, SOME_UNREAD, Situation, UNREAD};

use super::figures::Figures;
use super::kernels::BenchKernel;
use super::table::{Section, number, with_spread};
use crate::pages::number::grouped;

/// The columns: the kernel, and how its listeners get events.
const COLUMNS: [(&str, BenchKernel, Situation); 4] = [
    ("stock", BenchKernel::Stock, Situation::Everything),
    ("ours", BenchKernel::Ours, Situation::Everything),
    ("ours with BATCH", BenchKernel::Ours, Situation::Batch),
    ("eBPF", BenchKernel::Ours, Situation::Ebpf),
];

/// The table.
pub fn section(figures: &Figures) -> Section {
    let row = |case: String, cell: &dyn Fn(BenchKernel, Situation) -> String| {
        let cells = COLUMNS.map(|(_, kernel, situation)| cell(kernel, situation));
        [case].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut rows = Vec::new();
    for count in LISTENER_COUNTS {
        let case = match count {
            1 => "COMM delivered to 1 listener".to_owned(),
            _ => format!("COMM delivered to {count} listeners"),
        };
        rows.push(row(case, &|kernel, situation| {
            with_spread(figures.in_turn(kernel, Operation::Comm, situation, count))
        }));
    }
    for unread in UNREAD {
        rows.push(row(reading_case(figures, unread), &|kernel, situation| {
            number(read(figures, kernel, situation, unread))
        }));
    }
    let case = "end to end: COMM delivered to 1 listener, and read".to_owned();
    rows.push(row(case, &|kernel, situation| {
        number(figures.end_to_end(kernel, situation))
    }));
    let case = "events of a burst kept in the default buffer".to_owned();
    rows.push(row(case, &|kernel, situation| {
        number(figures.kept(kernel, situation))
    }));
    let heads = COLUMNS.map(|(name, ..)| name.to_owned());
    Section {
        title: "Batches",
        about: format!(
            "With PROC_CN_LISTEN_BATCH, an event shares the datagram of events that are still unread. \
             Delivered: instructions above those of the\nsame operation without listeners. With BATCH, \
             the listeners read after each {MOST_UNREAD} events, and the cost of new datagrams is \
             divided\namong these. Reading: the instructions that read all unread events, until there \
             are no more, divided by their number. End to\nend: both together, with {MOST_UNREAD} \
             unread events ({SOME_UNREAD} with eBPF). Burst: how many events are kept before the first \
             loss, if no listener reads."
        ),
        head: ["case".to_owned()].into_iter().chain(heads).collect(),
        rows,
    }
}

/// The case of reading so many events, and how many of them a datagram has.
fn reading_case(figures: &Figures, unread: u32) -> String {
    let case = format!("reading an event, {unread} unread");
    match figures.reading(BenchKernel::Ours, Situation::Batch, unread) {
        Some(reading) => {
            let each = f64::from(unread) / f64::from(reading.datagrams);
            format!("{case} (with BATCH {} in a datagram)", grouped(each, 1))
        }
        None => case,
    }
}

/// Instructions to read each of so many events. The number of eBPF's records is always the same.
fn read(figures: &Figures, kernel: BenchKernel, situation: Situation, unread: u32) -> Option<f64> {
    match situation {
        Situation::Ebpf if unread == SOME_UNREAD => {
            figures.whole(kernel, Operation::Read, situation, 1)
        }
        _ => Some(figures.reading(kernel, situation, unread)?.instructions),
    }
}

/// A value of each column that has one, by the columns' names.
pub fn by_column(
    value: impl Fn(BenchKernel, Situation) -> Option<f64>,
) -> BTreeMap<&'static str, f64> {
    COLUMNS
        .into_iter()
        .filter_map(|(name, kernel, situation)| Some((name, value(kernel, situation)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::{burst, line, reading, with_cost};

    fn figures() -> Figures {
        let mut figures = Figures::default();
        let comm = Operation::Comm;
        figures.add(
            BenchKernel::Ours,
            vec![
                with_cost(line(comm, Situation::Everything, 8, 5000.0), 4700.0),
                with_cost(line(comm, Situation::Batch, 8, 2000.0), 1600.0),
                with_cost(line(comm, Situation::Batch, 1, 600.0), 200.0),
                with_cost(line(comm, Situation::Ebpf, 1, 825.0), 425.0),
                line(Operation::Read, Situation::Ebpf, 1, 38.0),
                reading(Situation::Batch, MOST_UNREAD, 16, 51.0),
                burst(Situation::Batch, 2352),
            ],
        );
        figures.add(BenchKernel::Stock, vec![burst(Situation::Everything, 221)]);
        figures
    }

    #[test]
    fn each_column_has_its_figures() {
        let Section { head, rows, .. } = section(&figures());
        assert_eq!(head.len(), 1 + COLUMNS.len());
        for expected in [
            ["COMM delivered to 8 listeners", "-", "4,700", "1,600", "-"],
            ["COMM delivered to 256 listeners", "-", "-", "-", "-"],
            ["reading an event, 64 unread", "-", "-", "-", "38"],
            [
                "reading an event, 512 unread (with BATCH 32.0 in a datagram)",
                "-",
                "-",
                "51",
                "-",
            ],
            [
                "end to end: COMM delivered to 1 listener, and read",
                "-",
                "-",
                "251",
                "463",
            ],
            [
                "events of a burst kept in the default buffer",
                "221",
                "-",
                "2,352",
                "-",
            ],
        ] {
            assert!(rows.iter().any(|row| *row == expected), "{rows:?}");
        }
    }

    #[test]
    fn columns_without_a_value_are_left_out() {
        let figures = figures();
        let kept = by_column(|kernel, situation| figures.kept(kernel, situation));
        let expected = BTreeMap::from([("ours with BATCH", 2352.0), ("stock", 221.0)]);
        assert_eq!(kept, expected);
    }
}
