// SPDX-License-Identifier: GPL-2.0
//! What must show, and whether it does.

use protocol::bench::{BESIDE, MANY, Many, Operation, Situation, THOUSANDS};
use serde::Serialize;

use crate::bench::figures::{Figures, Which};

/// What a hook that nobody uses may cost.
pub const HOOK: f64 = 2.0;

/// What an event in one of many listening containers may cost, as a multiple of one in a single one.
const CONTAINERS: f64 = 1.05;

/// One line of what must show.
#[derive(Debug, Serialize)]
pub struct Target {
    /// What is measured.
    pub case: String,
    /// On the unpatched kernel.
    pub stock: Option<f64>,
    /// On ours.
    pub ours: Option<f64>,
    /// What ours may be at most.
    pub at_most: f64,
    /// Digits behind the point that count.
    pub digits: usize,
}

impl Target {
    /// Whether ours is small enough, as far as the digits tell; `None` if it is not known.
    pub fn is_met(&self) -> Option<bool> {
        let unit = 10f64.powi(self.digits as i32);
        self.ours
            .map(|ours| (ours * unit).round() / unit <= self.at_most)
    }
}

/// All lines.
pub fn all(figures: &Figures) -> Vec<Target> {
    let comm = |case: &str, situation, listeners, at_most| {
        let cost = |which| figures.cost(which, Operation::Comm, situation, listeners);
        Target {
            case: case.to_owned(),
            stock: cost(Which::Stock),
            ours: cost(Which::Ours),
            at_most,
            digits: 0,
        }
    };
    let mut targets = vec![no_listener(figures)];
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
    ] {
        targets.push(comm(case, Situation::Everything, listeners, at_most));
    }
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
    targets
}

/// A request, its sender's own instructions.
fn request(figures: &Figures, operation: Operation, others: u32, at_most: f64) -> Target {
    let whole = |which| figures.whole(which, operation, Situation::Everything, others);
    Target {
        case: format!("{} beside {others} others", operation.name()),
        stock: whole(Which::Stock),
        ours: whole(Which::Ours),
        at_most,
        digits: 0,
    }
}

/// The end of a listener, as a multiple of one beside nobody.
fn close(figures: &Figures, others: u32) -> Target {
    let ratio = |which| {
        let whole = |others| figures.whole(which, Operation::Close, Situation::Everything, others);
        Some(whole(others)? / whole(0)?)
    };
    Target {
        case: format!("closing a listener beside {others} others, against beside 0"),
        stock: ratio(Which::Stock),
        ours: ratio(Which::Ours),
        at_most: 1.1,
        digits: 2,
    }
}

/// What takes time, as multiples of the unpatched kernel's.
fn many(figures: &Figures) -> [Target; 2] {
    let (stock, ours) = (figures.many(Which::Stock), figures.many(Which::Ours));
    let target = |case, time: fn(Many) -> f64, at_most| Target {
        case,
        stock: stock.map(|_| 1.0),
        ours: stock
            .zip(ours)
            .map(|(stock, ours)| time(ours) / time(stock)),
        at_most,
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

/// The hook that costs most, of all kinds of events.
fn no_listener(figures: &Figures) -> Target {
    let costs: Option<Vec<f64>> = Operation::KINDS
        .into_iter()
        .map(|operation| hook(figures, operation))
        .collect();
    Target {
        case: "no listener, against CONFIG_PROC_EVENTS=n: the dearest hook".to_owned(),
        stock: None,
        ours: costs.and_then(|costs| costs.into_iter().reduce(f64::max)),
        at_most: HOOK,
        // An operation passes several hooks, and what all of them cost is known exactly.
        digits: 1,
    }
}

/// What each hook of an operation costs on our kernel when nobody listens. The cheapest tenths are
/// compared: a hook is passed each time, and what else differs between two times is left out.
pub fn hook(figures: &Figures, operation: Operation) -> Option<f64> {
    let ours = figures.low_alone(Which::Ours, operation)?;
    let floor = figures.low_alone(Which::Floor, operation)?;
    Some((ours - floor) / f64::from(operation.hooks()))
}

fn containers(figures: &Figures, count: u32) -> Target {
    let cost = |which, count| figures.cost(which, Operation::Comm, Situation::Containers, count);
    let ratio = |which| Some(cost(which, count)? / cost(which, 1)?);
    Target {
        case: format!("COMM in one of {count} listening containers, against one of 1"),
        stock: ratio(Which::Stock),
        ours: ratio(Which::Ours),
        at_most: CONTAINERS,
        digits: 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::tests::line;

    fn figures(ours: f64) -> Figures {
        let mut figures = Figures::default();
        let comm = Operation::Comm;
        figures.add(
            Which::Ours,
            vec![
                line(comm, Situation::Nobody, 0, 400.0),
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
    fn the_worst_hook_counts() {
        let mut figures = Figures::default();
        for (which, extra) in [(Which::Floor, 0.0), (Which::Ours, 6.0)] {
            let lines = Operation::KINDS
                .map(|operation| line(operation, Situation::Nobody, 0, 400.0 + extra));
            figures.add(which, lines.to_vec());
        }
        assert_eq!(hook(&figures, Operation::ShortExit), Some(1.5));
        assert_eq!(hook(&figures, Operation::Comm), Some(6.0));
        assert_eq!(verdict(&figures, "no listener"), Some(false));
    }
}
