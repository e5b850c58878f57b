// SPDX-License-Identifier: GPL-2.0
//! The series without its handler, beside the unpatched kernel: what it costs a kernel in which nobody
//! chose the handler.

use protocol::bench::{BESIDE, LISTENER_COUNTS, Operation, SOME_UNREAD, Situation};

use super::figures::Figures;
use super::kernels::BenchKernel;
use super::table::{Section, number};
use super::targets::{Limit, Target};
use crate::pages::number::grouped;

/// How many instructions more than on the unpatched kernel any case may take.
const MORE: f64 = 2.0;

/// A case, and what it takes on both kernels.
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

fn cases(figures: &Figures) -> Vec<Case> {
    let mut cases = Vec::new();
    for operation in Operation::KINDS.into_iter().chain([Operation::SystemCall]) {
        let name = format!("{}, nobody listens", operation.name());
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
                figures.cost(kernel, Operation::Comm, situation, count)
            }));
        }
    }
    for operation in Operation::REQUESTS {
        for others in &BESIDE[..2] {
            let name = format!("{} beside {others} others", operation.name());
            cases.push(Case::new(name, |kernel| {
                figures.whole(kernel, operation, Situation::Everything, *others)
            }));
        }
    }
    cases.push(Case::new("reading an event".to_owned(), |kernel| {
        let reading = figures.reading(kernel, Situation::Everything, SOME_UNREAD)?;
        Some(reading.instructions)
    }));
    cases
}

/// The case in which the series costs most.
pub fn target(figures: &Figures) -> Target {
    let more: Option<Vec<_>> = cases(figures).iter().map(Case::more).collect();
    Target {
        case: "the series without its handler, above stock: the dearest case".to_owned(),
        stock: None,
        ours: more.and_then(|more| more.into_iter().reduce(f64::max)),
        limit: Limit::AtMost(MORE),
        digits: 0,
    }
}

/// All cases.
pub fn section(figures: &Figures) -> Section {
    let rows = cases(figures).into_iter().map(|case| {
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
            "The patched kernel with cn_proc, as in a configuration in which nobody chose the \
             handler, beside the stock kernel.\nNo case may take {MORE} instructions more."
        ),
        head: ["case", "stock", "patched, cn_proc", "more"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::bench::Line;

    use super::*;
    use crate::bench::figures::tests::{line, reading};

    fn lines(more: f64) -> Vec<Line> {
        let alone = Operation::KINDS.into_iter().chain([Operation::SystemCall]);
        let mut lines: Vec<_> = alone
            .map(|operation| line(operation, Situation::Nobody, 0, 400.0))
            .collect();
        for count in LISTENER_COUNTS {
            for situation in [Situation::Everything, Situation::Filtered] {
                lines.push(line(Operation::Comm, situation, count, 900.0));
            }
        }
        for operation in Operation::REQUESTS {
            for others in &BESIDE[..2] {
                lines.push(line(operation, Situation::Everything, *others, 3000.0));
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
    fn the_dearest_case_counts() {
        for (more, is_met) in [(2.0, Some(true)), (3.0, Some(false))] {
            let mut all = Figures::default();
            all.add(BenchKernel::Stock, lines(0.0));
            assert_eq!(target(&all).is_met(), None);
            all.add(BenchKernel::Mainline, lines(more));
            assert_eq!(target(&all).is_met(), is_met);
        }
    }
}
