// SPDX-License-Identifier: GPL-2.0
//! What must show, and whether it does.

use protocol::bench::{Operation, Situation};
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
        (1, 850.0, "COMM delivered to 1 listener"),
        (8, 5200.0, "COMM delivered to 8 listeners"),
        (64, 40000.0, "COMM delivered to 64 listeners"),
    ] {
        targets.push(comm(case, Situation::Everything, listeners, at_most));
    }
    targets.push(containers(figures));
    targets
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

fn containers(figures: &Figures) -> Target {
    let cost = |which, count| figures.cost(which, Operation::Comm, Situation::Containers, count);
    let ratio = |which| Some(cost(which, 256)? / cost(which, 1)?);
    Target {
        case: "COMM in one of 256 listening containers, against one of 1".to_owned(),
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
        assert_eq!(verdict(&figures(850.4), delivered), Some(true));
        assert_eq!(verdict(&figures(850.6), delivered), Some(false));
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
        assert_eq!(hook(&figures, Operation::ShortExit), Some(2.0));
        assert_eq!(hook(&figures, Operation::Comm), Some(6.0));
        assert_eq!(verdict(&figures, "no listener"), Some(false));
    }
}
