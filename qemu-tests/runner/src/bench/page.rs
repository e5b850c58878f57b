// SPDX-License-Identifier: GPL-2.0
//! The results of a run: tables, a page, JSON.

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
        met(targets),
        without_listeners(figures),
        by_listener_count(
            figures,
            "Delivered",
            "Instructions above those of the same operation without listeners. Both are measured in \
             turn, three times. Each listener gets all\nevents and loses none. ± is the largest \
             distance of one of the three from the median. It is shown if it is more than 2\n\
             instructions and a twentieth of the cost. eBPF: a program that writes a record of the \
             same content into a ring buffer and wakes\nno process.",
            Situation::Everything,
        ),
        by_listener_count(
            figures,
            "Filtered out",
            "The same with listeners that asked for another kind of event: for SID, or for UID if the \
             operation is setsid.",
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

fn met(targets: &[Target]) -> Section {
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
        title: "Targets",
        about: "Instructions above those of the same operation without listeners, unless the case \
                says otherwise."
            .to_owned(),
        head: heads(&["case", "stock", "ours", "ours/stock", "target", "verdict"]),
        rows: rows.collect(),
    }
}

fn without_listeners(figures: &Figures) -> Section {
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
        title: "Without listeners",
        about: format!(
            "Instructions of whole operations. Here and below, fork, exec, coredump and exit are \
             those of a task that shares its parent's\nmemory, so that no memory is copied or freed. \
             Their figures are what the cheapest tenth took. The floor is the kernel with\n\
             CONFIG_PROC_EVENTS=n. In the cheapest tenth, a hook may cost {HOOK} instructions more. \
             Some operations pass several hooks: setsid and exit\nhave one that takes the ids before \
             they are lost, exit has one for the end of a session, and uid, gid and exec compare\nboth \
             user and group ids."
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

/// Operations on processes, as programs perform them.
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
        about: "The same for processes with memory of their own, as fork(2) makes them. The first \
                three columns are whole operations. Their\ncheapest tenth varies by thousands from \
                boot to boot, with or without hooks. The other columns are what one listener adds \
                that\ngets all events, or that asked for another kind."
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
        "Instructions above those of the same operation without listeners, or of the whole \
                     operation. For a request, the instructions\nof its sender."
            .to_owned();
    for (kernel, situation, reason) in figures.missing() {
        about += &format!(
            "\nNot measured on {}: {} ({reason}).",
            kernel.name(),
            situation.name()
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
            "One listener with the default buffer, on two CPUs ({}). The times are those of the host, \
             so that only ratios can be compared.\nEvents a second: one CPU raises events as fast as \
             it can, until the first loss or for 2 s. Each pause of the reading CPU ends a\nround, so \
             that this ratio varies. Nanoseconds: one event at a time, from its time stamp until it was \
             read. If one thread\nemulates both CPUs (QEMU before 8.1), the buffer overruns in each \
             turn of the CPU that raises events.",
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
                "milliseconds until the process that has them has ended",
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
         A figure is the median of 15 batches or more, in three rounds, or what the cheapest tenth took; see \
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
    let enumerations: Vec<_> = figures
        .enumerations()
        .map(|(kernel, enumeration)| json!({ "kernel": kernel.name(), "enumeration": enumeration }))
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
        "enumerations": enumerations,
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
            (Situation::NoListener, 0, 400.0),
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
            text.contains("Not measured on stock: listeners in containers (refused)."),
            "{text}"
        );
        assert!(!text.contains("A flood"), "{text}");
    }
}
