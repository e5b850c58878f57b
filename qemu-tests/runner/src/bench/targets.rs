// SPDX-License-Identifier: GPL-2.0
//! The targets, and how far each is met.

use protocol::bench::{
    BESIDE, MANY, MOST_UNREAD, Many, Operation, POPULATIONS, Reading, Situation, THOUSANDS,
    WITH_FLAGS,
};

use super::figures::Figures;
use super::flags::{listeners, outside};
use super::kernels::BenchKernel;
use super::mainline;
use super::target::{Limit, Target};
use crate::pages::number::grouped;

/// How much a hook may cost if no listener asked for its events.
pub const HOOK: f64 = 2.0;

/// How much an event in one of many listening containers may cost, as a multiple of one in the only
/// listening container.
const CONTAINERS: f64 = 1.05;

/// How much a process may cost in the state, as a multiple of its cost in /proc.
const STATE: f64 = 0.1;

/// How much a process may cost if there are many, as a multiple of its cost if there are fewer.
const POPULATION: f64 = 1.1;

/// How many events a datagram is to have when many are unread.
const IN_A_DATAGRAM: f64 = 40.0;

/// All targets.
pub fn all(figures: &Figures) -> Vec<Target> {
    let comm = |case: &str, situation, listeners, at_most| {
        let cost = |kernel| figures.cost(kernel, Operation::Comm, situation, listeners);
        Target {
            case: case.to_owned(),
            stock: cost(BenchKernel::Stock),
            ours: cost(BenchKernel::Ours),
            limit: Limit::AtMost(at_most),
            digits: 0,
        }
    };
    let mut targets = vec![no_listener(figures)];
    targets.extend(mainline::targets(figures));
    for (listeners, case) in [
        (1, "COMM with 1 SID-only listener"),
        (8, "COMM with 8 SID-only listeners"),
        (64, "COMM with 64 SID-only listeners"),
        (256, "COMM with 256 SID-only listeners"),
    ] {
        targets.push(comm(case, Situation::Filtered, listeners, HOOK));
    }
    let dead = "COMM after a listener died without IGNORE";
    targets.push(comm(dead, Situation::Dead, 1, 0.0));
    for (listeners, at_most, case) in [
        (1, 797.0, "COMM delivered to 1 listener"),
        (8, 4725.0, "COMM delivered to 8 listeners"),
        (64, 38600.0, "COMM delivered to 64 listeners"),
        (256, 153000.0, "COMM delivered to 256 listeners"),
    ] {
        targets.push(comm(case, Situation::Everything, listeners, at_most));
    }
    targets.extend(batches(figures));
    targets.extend(identity(figures));
    targets.extend(other_cgroup(figures));
    for count in [256, THOUSANDS] {
        targets.push(containers(figures, count));
    }
    for operation in [Operation::Listen, Operation::Ignore] {
        for (others, at_most) in BESIDE.into_iter().zip([6000.0, 6300.0, 6600.0]) {
            targets.push(request(figures, operation, others, at_most));
        }
    }
    targets.extend(BESIDE[1..].iter().map(|others| close(figures, *others)));
    targets.extend(many(figures));
    targets.extend(POPULATIONS.map(|processes| state(figures, processes)));
    targets.push(populations(figures));
    targets
}

/// The cost of a process in the state, as a multiple of its cost in stock's /proc.
fn state(figures: &Figures, processes: u32) -> Target {
    let proc = figures.enumeration(BenchKernel::Stock, Situation::NoListener, processes);
    let state = figures.enumeration(BenchKernel::Ours, Situation::State, processes);
    let many = grouped(processes.into(), 0);
    Target {
        case: format!("learning of each of {many} processes by STATE, against stock's /proc"),
        stock: proc.map(|_| 1.0),
        ours: proc.zip(state).map(|(proc, state)| state / proc),
        limit: Limit::AtMost(STATE),
        digits: 2,
    }
}

/// The cost of a process in the state of many, as a multiple of one in the state of fewer. For stock,
/// the same in /proc.
fn populations(figures: &Figures) -> Target {
    let [few, many] = POPULATIONS;
    let ratio = |kernel, situation| {
        let enumeration = |processes| figures.enumeration(kernel, situation, processes);
        Some(enumeration(many)? / enumeration(few)?)
    };
    let [few, many] = [few, many].map(|processes| grouped(processes.into(), 0));
    Target {
        case: format!("learning of each of {many} processes by STATE, against each of {few}"),
        stock: ratio(BenchKernel::Stock, Situation::NoListener),
        ours: ratio(BenchKernel::Ours, Situation::State),
        limit: Limit::AtMost(POPULATION),
        digits: 2,
    }
}

/// Events for listeners that get them in batches. Stock sends single events.
fn batches(figures: &Figures) -> Vec<Target> {
    let (single, batch) = (Situation::Everything, Situation::Batch);
    let mut targets = Vec::new();
    for (listeners, at_most, case) in [
        (1, 400.0, "COMM delivered to 1 listener, with BATCH"),
        (8, 1700.0, "COMM delivered to 8 listeners, with BATCH"),
        (64, 12500.0, "COMM delivered to 64 listeners, with BATCH"),
        (256, 50000.0, "COMM delivered to 256 listeners, with BATCH"),
    ] {
        let cost = |kernel, situation| figures.cost(kernel, Operation::Comm, situation, listeners);
        targets.push(Target {
            case: case.to_owned(),
            stock: cost(BenchKernel::Stock, single),
            ours: cost(BenchKernel::Ours, batch),
            limit: Limit::AtMost(at_most),
            digits: 0,
        });
    }
    let reading = |kernel, situation| figures.reading(kernel, situation, MOST_UNREAD);
    targets.push(Target {
        case: format!("events in a datagram, with BATCH, {MOST_UNREAD} unread"),
        stock: reading(BenchKernel::Stock, single).map(in_a_datagram),
        ours: reading(BenchKernel::Ours, batch).map(in_a_datagram),
        limit: Limit::AtLeast(IN_A_DATAGRAM),
        digits: 1,
    });
    targets.push(Target {
        case: format!("reading an event, with BATCH, {MOST_UNREAD} unread"),
        stock: reading(BenchKernel::Stock, single).map(|reading| reading.instructions),
        ours: reading(BenchKernel::Ours, batch).map(|reading| reading.instructions),
        limit: Limit::AtMost(55.0),
        digits: 0,
    });
    let ebpf = figures.end_to_end(BenchKernel::Ours, Situation::Ebpf);
    let against_ebpf = |kernel, situation| Some(figures.end_to_end(kernel, situation)? / ebpf?);
    targets.push(Target {
        case: "COMM delivered to 1 listener and read, with BATCH, against eBPF".to_owned(),
        stock: against_ebpf(BenchKernel::Stock, single),
        ours: against_ebpf(BenchKernel::Ours, batch),
        limit: Limit::AtMost(1.0),
        digits: 2,
    });
    targets.push(Target {
        case: "events of a burst kept in the default buffer, with BATCH".to_owned(),
        stock: figures.kept(BenchKernel::Stock, single),
        ours: figures.kept(BenchKernel::Ours, batch),
        limit: Limit::AtLeast(2300.0),
        digits: 0,
    });
    targets
}

/// Events in a datagram.
fn in_a_datagram(reading: &Reading) -> f64 {
    f64::from(reading.unread) / f64::from(reading.datagrams)
}

/// What IDENTITY adds to the cost of an event, with a part for each listener. Stock has no such flag.
fn identity(figures: &Figures) -> Vec<Target> {
    const EVENT: f64 = 40.0;
    const LISTENER: f64 = 15.0;
    // memcpy() takes 17 instructions for 40 bytes more, and new datagrams are needed more often: see
    // Documentation/costs.md.
    const LISTENER_BATCH: f64 = 21.0;
    let mut targets = Vec::new();
    for (situation, form, listener) in [
        (Situation::Identity, "", LISTENER),
        (Situation::IdentityBatch, ", with BATCH", LISTENER_BATCH),
    ] {
        targets.extend(WITH_FLAGS.map(|count| {
            let added = |kernel| figures.added(kernel, Operation::Comm, situation, count);
            let instructions = |kernel| Some(added(kernel)?.instructions);
            Target {
                case: format!("what IDENTITY adds to COMM, {}{form}", listeners(count)),
                stock: instructions(BenchKernel::Stock),
                ours: instructions(BenchKernel::Ours),
                limit: Limit::AtMost(EVENT + listener * f64::from(count)),
                digits: 0,
            }
        }));
    }
    targets
}

/// What an event outside of the listeners' cgroup costs. Stock has no such flag.
fn other_cgroup(figures: &Figures) -> [Target; WITH_FLAGS.len()] {
    const FIRST: f64 = 230.0;
    const FURTHER: f64 = 15.0;
    WITH_FLAGS.map(|count| {
        let situation = Situation::OtherCgroup;
        let cost = |kernel| figures.cost(kernel, Operation::Comm, situation, count);
        Target {
            case: outside(count),
            stock: cost(BenchKernel::Stock),
            ours: cost(BenchKernel::Ours),
            limit: Limit::AtMost(FIRST + FURTHER * f64::from(count - 1)),
            digits: 0,
        }
    })
}

/// The sender's instructions of a request.
fn request(figures: &Figures, operation: Operation, others: u32, at_most: f64) -> Target {
    let whole = |kernel| figures.whole(kernel, operation, Situation::Everything, others);
    Target {
        case: format!("{} beside {others} others", operation.name()),
        stock: whole(BenchKernel::Stock),
        ours: whole(BenchKernel::Ours),
        limit: Limit::AtMost(at_most),
        digits: 0,
    }
}

/// The end of a listener, as a multiple of the end of the only listener.
fn close(figures: &Figures, others: u32) -> Target {
    let ratio = |kernel| {
        let whole = |others| figures.whole(kernel, Operation::Close, Situation::Everything, others);
        Some(whole(others)? / whole(0)?)
    };
    Target {
        case: format!("closing a listener beside {others} others, against beside 0"),
        stock: ratio(BenchKernel::Stock),
        ours: ratio(BenchKernel::Ours),
        limit: Limit::AtMost(1.1),
        digits: 2,
    }
}

/// Times, as multiples of those of the unpatched kernel.
fn many(figures: &Figures) -> [Target; 2] {
    let (stock, ours) = (
        figures.many(BenchKernel::Stock),
        figures.many(BenchKernel::Ours),
    );
    let target = |case, time: fn(Many) -> f64, at_most| Target {
        case,
        stock: stock.map(|_| 1.0),
        ours: stock
            .zip(ours)
            .map(|(stock, ours)| time(ours) / time(stock)),
        limit: Limit::AtMost(at_most),
        digits: 1,
    };
    [
        target(
            format!("{MANY} LISTENs in a row, time against stock's"),
            |many| many.listen,
            1.2,
        ),
        target(
            format!("exit of a process with {MANY} listeners, time against stock's"),
            |many| many.exit,
            2.0,
        ),
    ]
}

/// The most expensive hook of all kinds of events.
fn no_listener(figures: &Figures) -> Target {
    let costs: Option<Vec<f64>> = Operation::KINDS
        .into_iter()
        .map(|operation| hook(figures, operation))
        .collect();
    Target {
        case: "no listener, against CONFIG_PROC_EVENTS=n: the most expensive hook".to_owned(),
        stock: None,
        ours: costs.and_then(|costs| costs.into_iter().reduce(f64::max)),
        limit: Limit::AtMost(HOOK),
        // An operation passes several hooks, and what all of them cost is known exactly.
        digits: 1,
    }
}

/// What each hook of an operation costs on our kernel without listeners. The cheapest tenths are
/// compared: a hook is passed each time, and all other differences between two times are left out.
pub fn hook(figures: &Figures, operation: Operation) -> Option<f64> {
    let ours = figures.low_alone(BenchKernel::Ours, operation)?;
    let floor = figures.low_alone(BenchKernel::Floor, operation)?;
    Some((ours - floor) / f64::from(operation.hooks()))
}

fn containers(figures: &Figures, count: u32) -> Target {
    let cost = |kernel, count| figures.cost(kernel, Operation::Comm, Situation::Containers, count);
    let ratio = |kernel| Some(cost(kernel, count)? / cost(kernel, 1)?);
    Target {
        case: format!("COMM in one of {count} listening containers, against one of 1"),
        stock: ratio(BenchKernel::Stock),
        ours: ratio(BenchKernel::Ours),
        limit: Limit::AtMost(CONTAINERS),
        digits: 2,
    }
}

#[cfg(test)]
mod tests {
    use protocol::results::{Count, Outcome};

    use super::*;
    use crate::bench::figures::tests::{burst, enumeration, line, reading, with_added, with_cost};

    fn figures(ours: f64) -> Figures {
        let mut figures = Figures::default();
        let comm = Operation::Comm;
        figures.add(
            BenchKernel::Ours,
            vec![
                line(comm, Situation::NoListener, 0, 400.0),
                line(comm, Situation::Everything, 1, 400.0 + ours),
                line(comm, Situation::Containers, 0, 400.0),
                line(comm, Situation::Containers, 1, 1400.0),
                line(comm, Situation::Containers, 256, 1460.0),
            ],
        );
        figures
    }

    fn verdict(figures: &Figures, case: &str) -> Option<bool> {
        let targets = all(figures);
        let target = targets.iter().find(|target| target.case.starts_with(case));
        target.expect("the target is there").is_met()
    }

    #[test]
    fn a_target_is_met_or_missed_or_unknown() {
        let delivered = "COMM delivered to 1 listener";
        assert_eq!(verdict(&figures(797.4), delivered), Some(true));
        assert_eq!(verdict(&figures(797.6), delivered), Some(false));
        assert_eq!(verdict(&figures(1.0), "COMM delivered to 8"), None);
        assert_eq!(verdict(&figures(1.0), "COMM in one of 256"), Some(false));
        assert_eq!(verdict(&figures(1.0), "no listener"), None);
    }

    #[test]
    fn flags_may_cost_an_event_and_each_listener_something() {
        for (situation, case) in [
            (
                Situation::Identity,
                "what IDENTITY adds to COMM, 64 listeners",
            ),
            (
                Situation::IdentityBatch,
                "what IDENTITY adds to COMM, 64 listeners, with BATCH",
            ),
            (
                Situation::OtherCgroup,
                "COMM outside of the cgroup of 64 listeners",
            ),
        ] {
            let most = match situation {
                Situation::OtherCgroup => 1175.0,
                Situation::IdentityBatch => 1384.0,
                _ => 1000.0,
            };
            for (value, is_met) in [(most, true), (most + 1.0, false)] {
                let mut figures = Figures::default();
                let line = line(Operation::Comm, situation, 64, 9000.0);
                let line = match situation {
                    Situation::OtherCgroup => with_cost(line, value),
                    _ => with_added(with_cost(line, 8600.0), value),
                };
                figures.add(BenchKernel::Ours, vec![line]);
                let targets = all(&figures);
                let target = targets.iter().find(|target| target.case == case);
                assert_eq!(target.unwrap().is_met(), Some(is_met), "{case}");
            }
        }
    }

    #[test]
    fn a_burst_is_to_be_kept() {
        for (kept, is_met) in [(2299, false), (2300, true)] {
            let mut figures = Figures::default();
            figures.add(BenchKernel::Ours, vec![burst(Situation::Batch, kept)]);
            assert_eq!(verdict(&figures, "events of a burst"), Some(is_met));
        }
    }

    #[test]
    fn datagrams_are_to_be_full_and_cheap_to_read() {
        for (datagrams, instructions, are_met) in [
            (12, 55.0, [true, true]),
            (12, 56.0, [true, false]),
            (13, 55.0, [false, true]),
        ] {
            let mut figures = Figures::default();
            let line = reading(Situation::Batch, MOST_UNREAD, datagrams, instructions);
            figures.add(BenchKernel::Ours, vec![line]);
            let cases = ["events in a datagram", "reading an event"];
            let found = cases.map(|case| verdict(&figures, case));
            assert_eq!(found, are_met.map(Some));
        }
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        let targets = all(&Figures::default());
        for target in &targets {
            let not_measured = Outcome::Failed("not measured".to_owned());
            assert_eq!(target.outcome(), not_measured, "{}", target.case);
        }
        let outcomes: Vec<_> = targets.iter().map(Target::outcome).collect();
        assert_eq!(Count::of(&outcomes).failed, targets.len());
    }

    #[test]
    fn ebpf_of_the_same_run_is_the_limit() {
        let case = "COMM delivered to 1 listener and read";
        for (read, is_met) in [(65.0, false), (62.4, true)] {
            let mut figures = figures(795.0);
            assert_eq!(verdict(&figures, case), None);
            let lines = vec![
                line(Operation::Comm, Situation::Batch, 1, 800.0),
                reading(Situation::Batch, MOST_UNREAD, 12, read),
                line(Operation::Comm, Situation::Ebpf, 1, 824.0),
                line(Operation::Read, Situation::Ebpf, 1, 38.2),
            ];
            figures.add(BenchKernel::Ours, lines);
            assert_eq!(verdict(&figures, case), Some(is_met));
        }
    }

    #[test]
    fn limits_are_written_by_name() {
        let mut figures = Figures::default();
        figures.add(BenchKernel::Ours, vec![burst(Situation::Batch, 1)]);
        let targets = serde_json::to_string(&all(&figures)).unwrap();
        for limit in [r#""at_most":400.0"#, r#""at_least":2300.0"#] {
            assert!(targets.contains(limit), "{targets}");
        }
    }

    #[test]
    fn the_state_is_to_cost_less_than_proc_for_few_and_many_processes() {
        let [few, many] = POPULATIONS;
        for (of_few, of_many, verdicts) in [
            (700.0, 770.0, [Some(true), Some(true), Some(true)]),
            (700.0, 790.0, [Some(true), Some(true), Some(false)]),
            (1_100.0, 1_000.0, [Some(false), Some(true), Some(true)]),
        ] {
            let mut figures = Figures::default();
            let read =
                POPULATIONS.map(|processes| enumeration(Situation::NoListener, processes, 1e4));
            figures.add(BenchKernel::Stock, read.to_vec());
            let cases = [
                "1,000 processes",
                "10,000 processes by STATE, against stock",
            ];
            let cases = cases.map(|case| format!("learning of each of {case}"));
            assert_eq!(verdict(&figures, &cases[0]), None);
            let state = [(few, of_few), (many, of_many)];
            let state =
                state.map(|(processes, each)| enumeration(Situation::State, processes, each));
            figures.add(BenchKernel::Ours, state.to_vec());
            let growth = "learning of each of 10,000 processes by STATE, against each";
            let found = [&cases[0], &cases[1], growth].map(|case| verdict(&figures, case));
            assert_eq!(found, verdicts);
        }
    }

    #[test]
    fn the_worst_hook_counts() {
        let mut figures = Figures::default();
        for (kernel, extra) in [(BenchKernel::Floor, 0.0), (BenchKernel::Ours, 6.0)] {
            let lines = Operation::KINDS
                .map(|operation| line(operation, Situation::NoListener, 0, 400.0 + extra));
            figures.add(kernel, lines.to_vec());
        }
        assert_eq!(hook(&figures, Operation::ShortExit), Some(1.5));
        assert_eq!(hook(&figures, Operation::Comm), Some(6.0));
        assert_eq!(verdict(&figures, "no listener"), Some(false));
    }
}
