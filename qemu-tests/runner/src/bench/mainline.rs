// SPDX-License-Identifier: GPL-2.0
//! The series without its handler, beside the unpatched kernel: its cost if the configuration has no
//! handler.

use protocol::bench::{BESIDE, LISTENER_COUNTS, Operation, SOME_UNREAD, Situation};

use super::figures::{Figures, median};
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

/// One case, or the same operation with several numbers of listeners.
type Group = Vec<Case>;

/// How many more instructions a group takes: the median of its cases. memcpy() chooses its direction by
/// the addresses, so that now and then a single case takes 4 more or less on either kernel. A cost that
/// an event has is in each case, and a cost for each listener is in the median as often as that case has
/// listeners.
fn more(group: &Group) -> Option<f64> {
    let more: Option<Vec<_>> = group.iter().map(Case::more).collect();
    median(more?.into_iter())
}

/// What the cheapest tenth of the events took: on both kernels, allocating memory for many messages
/// takes more now and then.
fn events(figures: &Figures) -> Vec<Group> {
    let mut groups = Vec::new();
    for operation in Operation::KINDS.into_iter().chain([Operation::SystemCall]) {
        let name = format!("{}, without listeners", operation.name());
        groups.push(vec![Case::new(name, |kernel| {
            figures.low_alone(kernel, operation)
        })]);
    }
    for (situation, listens) in [
        (Situation::Everything, "delivered to"),
        (Situation::Filtered, "not for"),
    ] {
        let cases = LISTENER_COUNTS.map(|count| {
            Case::new(format!("comm, {listens} {count}"), |kernel| {
                Some(figures.find(kernel, Operation::Comm, situation, count)?.low)
            })
        });
        groups.push(cases.into());
    }
    groups.push(vec![Case::new("reading an event".to_owned(), |kernel| {
        let reading = figures.reading(kernel, Situation::Everything, SOME_UNREAD)?;
        Some(reading.instructions)
    })]);
    groups
}

/// What the cheapest tenth of the requests and of the ends of listeners took.
fn requests(figures: &Figures) -> Vec<Group> {
    let mut groups = Vec::new();
    for operation in Operation::REQUESTS {
        for others in &BESIDE[..2] {
            let name = format!("{} beside {others} others", operation.name());
            groups.push(vec![Case::new(name, |kernel| {
                let figure = figures.find(kernel, operation, Situation::Everything, *others)?;
                Some(figure.low)
            })]);
        }
    }
    groups
}

/// The event and the request for which the series costs most.
pub fn targets(figures: &Figures) -> [Target; 2] {
    [
        ("event", events(figures), MORE),
        ("request", requests(figures), MORE_FOR_A_REQUEST),
    ]
    .map(|(what, groups, limit)| {
        let more: Option<Vec<_>> = groups.iter().map(more).collect();
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
    let groups = events(figures).into_iter().chain(requests(figures));
    let rows = groups.flatten().map(|case| {
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
             take at most {MORE} instructions more, and a request at most {MORE_FOR_A_REQUEST}. \
             For a comm event, the\nmedian over the numbers of listeners counts."
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

    /// Figures with so many instructions more for reading an event, for a request, and for an event
    /// with a number of listeners.
    fn lines(
        more: f64,
        more_for_a_request: f64,
        more_with_listeners: impl Fn(u32) -> f64,
    ) -> Vec<BenchRecord> {
        let alone = Operation::KINDS.into_iter().chain([Operation::SystemCall]);
        let mut lines: Vec<_> = alone
            .map(|operation| line(operation, Situation::NoListener, 0, 400.0))
            .collect();
        for count in LISTENER_COUNTS {
            for situation in [Situation::Everything, Situation::Filtered] {
                let instructions = 900.0 + more_with_listeners(count);
                lines.push(line(Operation::Comm, situation, count, instructions));
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

    /// Whether the targets for events and for requests are met with these lines.
    fn are_met(mainline: Vec<BenchRecord>) -> [Option<bool>; 2] {
        let mut all = Figures::default();
        all.add(BenchKernel::Stock, lines(0.0, 0.0, |_| 0.0));
        assert_eq!(targets(&all).map(|target| target.is_met()), [None; 2]);
        all.add(BenchKernel::Mainline, mainline);
        targets(&all).map(|target| target.is_met())
    }

    #[test]
    fn the_most_expensive_cases_count() {
        for (more, more_for_a_request, expected) in [
            (2.0, 15.0, [Some(true), Some(true)]),
            (3.0, 15.0, [Some(false), Some(true)]),
            (2.0, 16.0, [Some(true), Some(false)]),
        ] {
            let mainline = lines(more, more_for_a_request, |_| 0.0);
            assert_eq!(are_met(mainline), expected);
        }
    }

    #[test]
    fn the_median_of_the_numbers_of_listeners_counts() {
        let one_case = |count| if count == 64 { 4.0 } else { 0.0 };
        let each_event = |_| 3.0;
        let each_listener = f64::from;
        assert_eq!(are_met(lines(0.0, 0.0, one_case))[0], Some(true));
        assert_eq!(are_met(lines(0.0, 0.0, each_event))[0], Some(false));
        assert_eq!(are_met(lines(0.0, 0.0, each_listener))[0], Some(false));
    }
}
