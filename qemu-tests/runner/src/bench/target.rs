// SPDX-License-Identifier: GPL-2.0
//! A target: a limit for a figure of our kernel.

use protocol::results::Outcome;
use serde::Serialize;

/// The limit for our kernel's figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

/// A figure, and the limit that it has to meet.
#[derive(Debug, Serialize)]
pub struct Target {
    /// What is measured.
    pub case: String,
    /// On the unpatched kernel.
    pub stock: Option<f64>,
    /// On ours.
    pub ours: Option<f64>,
    /// The limit for our kernel's figure.
    #[serde(flatten)]
    pub limit: Limit,
    /// Digits after the decimal point that count.
    pub digits: usize,
}

impl Target {
    /// Whether our figure meets the limit, rounded to these digits; `None` if it is not known.
    pub fn is_met(&self) -> Option<bool> {
        let unit = 10f64.powi(self.digits as i32);
        let round = |value: f64| (value * unit).round();
        let ours = round(self.ours?);
        Some(match self.limit {
            Limit::AtMost(most) => ours <= round(most),
            Limit::AtLeast(least) => ours >= round(least),
        })
    }

    /// The same as the outcome of a trial: a target that was not measured is missed.
    pub fn outcome(&self) -> Outcome {
        match self.is_met() {
            Some(true) => Outcome::Passed,
            Some(false) => Outcome::Failed("missed".to_owned()),
            None => Outcome::Failed("not measured".to_owned()),
        }
    }
}
