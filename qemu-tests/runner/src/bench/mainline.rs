// SPDX-License-Identifier: GPL-2.0
//! The series without its handler, beside the unpatched kernel: its cost if the configuration has no
//! handler.

use protocol::bench::{BESIDE, LISTENER_COUNTS, Operation, SOME_UNREAD, Situation};

use super::figures::Figures;
use super::kernels::BenchKernel;
use super::table::{Section, number};
use super::target::{Limit, Target};
use crate::pages::number::grouped;

/// How many more instructions than on the unpatched kernel an event may take, or reading one.
const MORE: f64 = 2.0;

/// The same for a request and for the end of a listener: the connector looks up the network namespace,
/// and netlink checks whether the protocol's owner has to be notified.
const MORE_FOR_A_REQUEST: f64 = 15.0;

/// A case, and its instructions on both kernels.
struct Case {
    name: String,
    stock: Option<f64>,
    mainline: Option<f64>,
}

impl Case {
    fn new(name: String, value: impl Fn(BenchKernel) -> Option<f64>) -> Self {
        Self {
            name,
            stock: value(BenchKernel::Stock),
            mainline: value(BenchKernel::Mainline),
        }
    }

    fn more(&self) -> Option<f64> {
        Some(self.mainline? - self.stock?)
    }
}

/// What the cheapest tenth of the events took: on both kernels, allocating memory for many messages
/// takes more now and then.
fn events(figures: &Figures) -> Vec<Case> {
    let mut cases = Vec::new();
    for operation in Operation::KINDS.into_iter().chain([Operation::SystemCall]) {
        let name = format!("{}, without listeners", operation.name());
        cases.push(Case::new(name, |kernel| {
            figures.low_alone(kernel, operation)
        }));
    }
    for (situation, listens) in [
        (Situation::Everything, "delivered to"),
        (Situation::Filtered, "not for"),
    ] {
        for count in LISTENER_COUNTS {
            let name = format!("comm, {listens} {count}");
            cases.push(Case::new(name, |kernel| {
                Some(figures.find(kernel, Operation::Comm, situation, count)?.low)
            }));
        }
    }
    cases.push(Case::new("reading an event".to_owned(), |kernel| {
        let reading = figures.reading(kernel, Situation::Everything, SOME_UNREAD)?;
        Some(reading.instructions)
    }));
    cases
}

/// What the cheapest tenth of the requests and of the ends of listeners took.
fn requests(figures: &Figures) -> Vec<Case> {
    let mut cases = Vec::new();
    for operation in Operation::REQUESTS {
        for others in &BESIDE[..2] {
            let name = format!("{} beside {others} others", operation.name());
            cases.push(Case::new(name, |kernel| {
                let figure = figures.find(kernel, operation, Situation::Everything, *others)?;
                Some(figure.low)
            }));
        }
    }
    cases
}

/// The event and the request for which the series costs most.
pub fn targets(figures: &Figures) -> [Target; 2] {
    [
        ("event", events(figures), MORE),
        ("request", requests(figures), MORE_FOR_A_REQUEST),
    ]
    .map(|(what, cases, limit)| {
        let more: Option<Vec<_>> = cases.iter().map(Case::more).collect();
        Target {
            case: format!("the series without its handler, above stock: the most expensive {what}"),
            stock: None,
            ours: more.and_then(|more| more.into_iter().reduce(f64::max)),
            limit: Limit::AtMost(limit),
            digits: 0,
        }
    })
}

/// All cases.
pub fn section(figures: &Figures) -> Section {
    let cases = events(figures).into_iter().chain(requests(figures));
    let rows = cases.map(|case| {
        let more = case.more();
        vec![
            case.name,
            number(case.stock),
            number(case.mainline),
            more.map_or_else(|| "-".to_owned(), |more| grouped(more, 0)),
        ]
    });
    Section {
        title: "The series without its handler",
        about: format!(
            "The patched kernel with cn_proc, which is the default, beside the stock kernel. The \
             figures are instructions of whole operations,\nin the cheapest tenth. An event may \
             take at most {MORE} instructions more, and a request at most {MORE_FOR_A_REQUEST}."
        ),
        head: ["case", "stock", "patched, cn_proc", "more"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::bench::BenchRecord;

    use super::*;
    use crate::bench::figures::tests::{line, reading};

    fn lines(more: f64, more_for_a_request: f64) -> Vec<BenchRecord> {
        let alone = Operation::KINDS.into_iter().chain([Operation::SystemCall]);
        let mut lines: Vec<_> = alone
            .map(|operation| line(operation, Situation::NoListener, 0, 400.0))
            .collect();
        for count in LISTENER_COUNTS {
            for situation in [Situation::Everything, Situation::Filtered] {
                lines.push(line(Operation::Comm, situation, count, 900.0));
            }
        }
        for operation in Operation::REQUESTS {
            for others in &BESIDE[..2] {
                let instructions = 3000.0 + more_for_a_request;
                lines.push(line(
                    operation,
                    Situation::Everything,
                    *others,
                    instructions,
                ));
            }
        }
        lines.push(reading(
            Situation::Everything,
            SOME_UNREAD,
            SOME_UNREAD,
            1100.0 + more,
        ));
        lines
    }

    #[test]
    fn the_most_expensive_cases_count() {
        for (more, more_for_a_request, are_met) in [
            (2.0, 15.0, [Some(true), Some(true)]),
            (3.0, 15.0, [Some(false), Some(true)]),
            (2.0, 16.0, [Some(true), Some(false)]),
        ] {
            let mut all = Figures::default();
            all.add(BenchKernel::Stock, lines(0.0, 0.0));
            assert_eq!(targets(&all).map(|target| target.is_met()), [None; 2]);
            all.add(BenchKernel::Mainline, lines(more, more_for_a_request));
            assert_eq!(targets(&all).map(|target| target.is_met()), are_met);
        }
    }
}
