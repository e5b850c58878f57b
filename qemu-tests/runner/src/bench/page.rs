// SPDX-License-Identifier: GPL-2.0
//! What a run found: tables, a page, JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use protocol::bench::{
    BESIDE, Cost, LISTENER_COUNTS, MANY, Operation, SOME_UNREAD, Situation, THOUSANDS,
};
use serde_json::json;

use super::batches;
use super::figures::Figures;
use super::flags;
use super::kernels::BenchKernel;
use super::mainline;
use super::provenance::Provenance;
use super::state;
use super::table::{Section, markdown, number, origin, ratio, with_spread};
use super::target::{Limit, Target};
use super::targets::{HOOK, hook};
use crate::machine::accelerator::Accelerator;
use crate::pages::number::grouped;

/// The page's file.
pub const PAGE: &str = "benchmark.md";

/// The chart's file.
pub const CHART: &str = "benchmark.svg";

/// All tables.
pub fn sections(figures: &Figures, targets: &[Target], parallel: Accelerator) -> Vec<Section> {
    let mut sections = vec![
        must_show(targets),
        nobody(figures),
        by_listener_count(
            figures,
            "Delivered",
            "Instructions above the same with nobody listening, both measured in turn, three times; \
             each listener gets everything\nand loses nothing. ±: no time was further from the \
             median of the three than that, where it is more than 2 and a twentieth.\neBPF: a program that writes a record of the same content into a \
             ring buffer and wakes nobody.",
            Situation::Everything,
        ),
        by_listener_count(
            figures,
            "Filtered out",
            "The same with listeners that asked for another kind of event: SID, or UID beside \
             setsid.",
            Situation::Filtered,
        ),
        processes(figures),
        batches::section(figures),
        flags::section(figures),
        state::section(figures),
        others(figures),
        mainline::section(figures),
    ];
    sections.extend(in_parallel(figures, parallel));
    sections
}

fn heads(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn must_show(targets: &[Target]) -> Section {
    let rows = targets.iter().map(|target| {
        let value = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| grouped(value, target.digits))
        };
        let limit = match target.limit {
            Limit::AtMost(most) => format!("at most {}", grouped(most, target.digits)),
            Limit::AtLeast(least) => format!("at least {}", grouped(least, target.digits)),
        };
        let verdict = match target.is_met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        vec![
            target.case.clone(),
            value(target.stock),
            value(target.ours),
            ratio(target.ours, target.stock),
            limit,
            verdict.to_owned(),
        ]
    });
    Section {
        title: "What must show",
        about: "Instructions above the same operation with nobody listening, or what the case \
                says."
            .to_owned(),
        head: heads(&[
            "case",
            "stock",
            "ours",
            "ours/stock",
            "ours has to be",
            "verdict",
        ]),
        rows: rows.collect(),
    }
}

fn nobody(figures: &Figures) -> Section {
    let rows = Operation::KINDS
        .into_iter()
        .chain([Operation::SystemCall])
        .map(|operation| {
            let alone = |kernel| number(figures.alone(kernel, operation));
            let hooks = operation.hooks();
            let each = match hooks {
                0 => None,
                _ => hook(figures, operation),
            };
            vec![
                operation.name().to_owned(),
                alone(BenchKernel::Floor),
                alone(BenchKernel::Stock),
                alone(BenchKernel::Ours),
                hooks.to_string(),
                each.map_or_else(|| "-".to_owned(), |each| grouped(each, 1)),
            ]
        });
    Section {
        title: "Nobody listens",
        about: format!(
            "Whole operations, in instructions. Here and below, fork, exec, coredump and exit are \
             those of a task that shares its\nparent's memory, so that nothing is copied or freed, \
             and what the cheapest tenth of them took. The floor has\nCONFIG_PROC_EVENTS=n; a hook \
             may cost {HOOK} above it, by the cheapest tenth. setsid and exit take ids in a hook of \
             its own\nbefore they are lost; an exit tells the end of a session, too; user and group \
             ids are compared for each other's sake,\nand by an exec."
        ),
        head: heads(&[
            "operation",
            "floor",
            "stock",
            "ours",
            "hooks",
            "ours a hook",
        ]),
        rows: rows.collect(),
    }
}

fn by_listener_count(
    figures: &Figures,
    title: &'static str,
    about: &str,
    situation: Situation,
) -> Section {
    let mut head = heads(&["event"]);
    for count in LISTENER_COUNTS {
        for column in ["stock", "ours", "ratio"] {
            head.push(format!("{count}: {column}"));
        }
    }
    let is_delivered = situation == Situation::Everything;
    if is_delivered {
        head.push("eBPF".to_owned());
    }
    let rows = Operation::KINDS.into_iter().map(|operation| {
        let mut row = vec![operation.name().to_owned()];
        for count in LISTENER_COUNTS {
            let cost = |kernel| figures.in_turn(kernel, operation, situation, count);
            let (stock, ours) = (cost(BenchKernel::Stock), cost(BenchKernel::Ours));
            let only = |cost: Option<Cost>| cost.map(|cost| cost.instructions);
            row.extend([
                with_spread(stock),
                with_spread(ours),
                ratio(only(ours), only(stock)),
            ]);
        }
        if is_delivered {
            let cost = figures.in_turn(BenchKernel::Ours, operation, Situation::Ebpf, 1);
            row.push(with_spread(cost));
        }
        row
    });
    Section {
        title,
        about: about.to_owned(),
        head,
        rows: rows.collect(),
    }
}

/// What is done to processes as programs do it.
fn processes(figures: &Figures) -> Section {
    let rows = Operation::WHOLE.into_iter().map(|operation| {
        let alone = |kernel| number(figures.alone(kernel, operation));
        let cost =
            |kernel, situation| with_spread(figures.in_turn(kernel, operation, situation, 1));
        vec![
            operation.name().to_owned(),
            alone(BenchKernel::Floor),
            alone(BenchKernel::Stock),
            alone(BenchKernel::Ours),
            cost(BenchKernel::Stock, Situation::Everything),
            cost(BenchKernel::Ours, Situation::Everything),
            cost(BenchKernel::Stock, Situation::Filtered),
            cost(BenchKernel::Ours, Situation::Filtered),
            cost(BenchKernel::Ours, Situation::Ebpf),
        ]
    });
    Section {
        title: "Whole processes",
        about: "The same of processes with memory of their own, as fork(2) makes them: whole \
                operations, of which the cheapest tenth\nvaries by thousands from boot to boot, \
                hooks or not; and what one listener adds, which gets everything or asked for\n\
                another kind."
            .to_owned(),
        head: heads(&[
            "operation",
            "floor",
            "stock",
            "ours",
            "delivered: stock",
            "delivered: ours",
            "filtered: stock",
            "filtered: ours",
            "eBPF",
        ]),
        rows: rows.collect(),
    }
}

fn others(figures: &Figures) -> Section {
    let above = |operation, situation, listeners| {
        move |kernel| figures.cost(kernel, operation, situation, listeners)
    };
    let whole = |operation, situation, listeners| {
        move |kernel| figures.whole(kernel, operation, situation, listeners)
    };
    let mut rows = Vec::new();
    let mut add = |case: String, value: &dyn Fn(BenchKernel) -> Option<f64>| {
        let (stock, ours) = (value(BenchKernel::Stock), value(BenchKernel::Ours));
        rows.push(vec![case, number(stock), number(ours), ratio(ours, stock)]);
    };
    for operation in [
        Operation::Comm,
        Operation::ShortFork,
        Operation::ShortExec,
        Operation::ShortExit,
    ] {
        let case = format!(
            "{}: a listener for SID was closed without IGNORE",
            operation.name()
        );
        add(case, &above(operation, Situation::Dead, 1));
    }
    for count in [1, 64] {
        let case = format!("comm: {count} bound sockets that never sent LISTEN");
        add(
            case,
            &above(Operation::Comm, Situation::NeverListened, count),
        );
    }
    let case = "comm: a listener that never reads, after it overran".to_owned();
    add(case, &above(Operation::Comm, Situation::NeverReads, 1));
    for count in LISTENER_COUNTS.into_iter().chain([THOUSANDS]) {
        let case = format!("comm in one of {count} containers, each with a listener");
        add(case, &above(Operation::Comm, Situation::Containers, count));
    }
    for others in BESIDE {
        for operation in Operation::REQUESTS {
            let case = format!("{}, {others} others listening: whole", operation.name());
            add(case, &whole(operation, Situation::Everything, others));
        }
    }
    add("reading an event: whole".to_owned(), &|kernel| {
        let reading = figures.reading(kernel, Situation::Everything, SOME_UNREAD)?;
        Some(reading.instructions)
    });
    let case = format!("{}: whole", Operation::Read.name());
    add(case, &whole(Operation::Read, Situation::Ebpf, 1));
    let case = "any system call while eBPF records setsid".to_owned();
    add(case, &above(Operation::SystemCall, Situation::Ebpf, 1));
    let mut about =
        "Instructions above the same with nobody listening, or of the whole operation. \
                     Of a request, what its sender\nitself executes."
            .to_owned();
    for (kernel, situation, reason) in figures.missing() {
        about += &format!(
            "\nNot measured on {}: {situation:?} ({reason}).",
            kernel.name()
        );
    }
    Section {
        title: "Other cases",
        about,
        head: heads(&["case", "stock", "ours", "ours/stock"]),
        rows,
    }
}

fn in_parallel(figures: &Figures, parallel: Accelerator) -> Option<Section> {
    let [stock, ours] = [BenchKernel::Stock, BenchKernel::Ours];
    let single = Situation::Everything;
    let (stock_flood, our_flood) = (figures.flood(stock, single)?, figures.flood(ours, single)?);
    let batch_flood = figures.flood(ours, Situation::Batch);
    let losses = |(_, lost, rounds): (f64, usize, usize)| format!("{lost} of {rounds}");
    let row = |what: &str, stock, ours| {
        vec![
            what.to_owned(),
            number(stock),
            number(ours),
            ratio(ours, stock),
            "-".to_owned(),
        ]
    };
    let many = |kernel| figures.many(kernel);
    Some(Section {
        title: "Two CPUs: COMM, one raising and one reading; and many listeners",
        about: format!(
            "One listener with the default buffer, two CPUs ({}), in this machine's time: only the \
             ratios say something,\nand that of the events little, since each pause of the reading \
             CPU ends a round. As fast as the one can raise them:\nevents a second until the first \
             loss or for 2 s, all rounds together. One by one: from the event's time stamp until\nit \
             was read. Where one thread emulates both CPUs (QEMU before 8.1), each turn of the \
             raising one overruns the buffer.",
            parallel.name()
        ),
        head: heads(&["", "stock", "ours", "ours/stock", "ours with BATCH"]),
        rows: vec![
            vec![
                "events a second".to_owned(),
                number(Some(stock_flood.0)),
                number(Some(our_flood.0)),
                ratio(Some(our_flood.0), Some(stock_flood.0)),
                number(batch_flood.map(|flood| flood.0)),
            ],
            vec![
                "rounds with a loss".to_owned(),
                losses(stock_flood),
                losses(our_flood),
                "-".to_owned(),
                batch_flood.map_or_else(|| "-".to_owned(), losses),
            ],
            row(
                "nanoseconds until it was read",
                figures.latency(stock),
                figures.latency(ours),
            ),
            row(
                &format!("milliseconds until {MANY} listeners have sent LISTEN"),
                many(stock).map(|many| 1000.0 * many.listen),
                many(ours).map(|many| 1000.0 * many.listen),
            ),
            row(
                "milliseconds until a process has ended that has them",
                many(stock).map(|many| 1000.0 * many.exit),
                many(ours).map(|many| 1000.0 * many.exit),
            ),
        ],
    })
}

/// Writes the page, which shows the chart.
pub fn write_page(directory: &Path, provenance: &Provenance, sections: &[Section]) -> Result<()> {
    let text = format!(
        "# What events cost\n\nWritten by a run of the benchmark (`make bench`).\n{}\n\n\
         A figure is the median of 15 batches, in three rounds, or what the cheapest tenth took; see \
         `qemu-tests/guest/src/bench/measure.rs`.\n\n![Instructions of a COMM event]({CHART})\n{}",
        origin(provenance),
        markdown(sections)
    );
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(directory.join(PAGE), text))
        .with_context(|| format!("cannot write into {}", directory.display()))
}

/// Writes all figures for programs.
pub fn write_json(
    file: &Path,
    provenance: &Provenance,
    figures: &Figures,
    targets: &[Target],
) -> Result<()> {
    let all: Vec<_> = figures
        .all()
        .map(|(kernel, figure)| json!({ "kernel": kernel.name(), "figure": figure }))
        .collect();
    let readings: Vec<_> = figures
        .readings()
        .map(|(kernel, reading)| json!({ "kernel": kernel.name(), "reading": reading }))
        .collect();
    let pictures: Vec<_> = figures
        .pictures()
        .map(|(kernel, picture)| json!({ "kernel": kernel.name(), "picture": picture }))
        .collect();
    let targets: Vec<_> = targets
        .iter()
        .map(|target| json!({ "target": target, "met": target.is_met() }))
        .collect();
    let of_both = |figure: &dyn Fn(BenchKernel) -> Option<f64>| -> BTreeMap<_, _> {
        [BenchKernel::Stock, BenchKernel::Ours]
            .into_iter()
            .filter_map(|kernel| Some((kernel.name(), figure(kernel)?)))
            .collect()
    };
    let report = json!({
        "made": provenance,
        "targets": targets,
        "figures": all,
        "readings": readings,
        "pictures": pictures,
        "end_to_end_instructions": batches::by_column(|kernel, situation| {
            figures.end_to_end(kernel, situation)
        }),
        "burst_events_kept": batches::by_column(|kernel, situation| figures.kept(kernel, situation)),
        "flood_events_a_second": batches::by_column(|kernel, situation| {
            Some(figures.flood(kernel, situation)?.0)
        }),
        "latency_nanoseconds": of_both(&|kernel| figures.latency(kernel)),
        "many_listen_seconds": of_both(&|kernel| Some(figures.many(kernel)?.listen)),
        "many_exit_seconds": of_both(&|kernel| Some(figures.many(kernel)?.exit)),
    });
    fs::write(file, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::line;
    use crate::bench::targets;
    use protocol::bench::BenchRecord;

    #[test]
    fn verdicts_and_reasons_are_shown() {
        let mut figures = Figures::default();
        let comm = Operation::Comm;
        let lines = [
            (Situation::Nobody, 0, 400.0),
            (Situation::Everything, 1, 2400.0),
        ]
        .map(|(situation, count, value)| line(comm, situation, count, value));
        figures.add(BenchKernel::Ours, lines.to_vec());
        let missing = BenchRecord::Missing {
            figures: 4,
            situation: Situation::Containers,
            reason: "refused".to_owned(),
        };
        figures.add(BenchKernel::Stock, vec![missing]);
        let targets = targets::all(&figures);
        let sections = sections(&figures, &targets, Accelerator::Tcg);
        let text = markdown(&sections);
        assert!(
            text.contains(
                "| COMM delivered to 1 listener | - | 2,000 | - | at most 797 | MISSED |"
            ),
            "{text}"
        );
        assert!(
            text.contains("Not measured on stock: Containers (refused)."),
            "{text}"
        );
        assert!(!text.contains("A flood"), "{text}");
    }
}
