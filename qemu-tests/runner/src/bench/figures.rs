// SPDX-License-Identifier: GPL-2.0
//! All figures of a run, and what is computed from them.

use std::collections::BTreeMap;

use protocol::bench::{
    BenchRecord, Burst, Cost, Enumeration, Flood, Latency, MOST_UNREAD, Many, Measurement,
    Operation, Reading, Situation,
};

use super::kernels::BenchKernel;

type Key = (BenchKernel, Operation, Situation, u32);

/// The figures.
#[derive(Debug, Default)]
pub struct Figures {
    figures: BTreeMap<Key, Measurement>,
    missing: BTreeMap<(BenchKernel, Situation), String>,
    readings: BTreeMap<(BenchKernel, Situation, u32), Reading>,
    bursts: BTreeMap<(BenchKernel, Situation), Burst>,
    floods: BTreeMap<(BenchKernel, Situation), Vec<Flood>>,
    latencies: BTreeMap<BenchKernel, Vec<Latency>>,
    many: BTreeMap<BenchKernel, Vec<Many>>,
    enumerations: BTreeMap<(BenchKernel, Situation, u32), Enumeration>,
}

impl Figures {
    /// Adds what the benchmark reported on one kernel.
    pub fn add(&mut self, kernel: BenchKernel, lines: Vec<BenchRecord>) {
        for line in lines {
            match line {
                BenchRecord::Total(_) => {}
                BenchRecord::Measurement(figure) => {
                    let key = (kernel, figure.operation, figure.situation, figure.listeners);
                    self.figures.insert(key, figure);
                }
                BenchRecord::Missing {
                    situation, reason, ..
                } => _ = self.missing.insert((kernel, situation), reason),
                BenchRecord::Reading(reading) => {
                    let key = (kernel, reading.situation, reading.unread);
                    self.readings.insert(key, reading);
                }
                BenchRecord::Burst(burst) => {
                    _ = self.bursts.insert((kernel, burst.situation), burst)
                }
                BenchRecord::Flood(flood) => {
                    let key = (kernel, flood.situation);
                    self.floods.entry(key).or_default().push(flood);
                }
                BenchRecord::Latency(latency) => {
                    self.latencies.entry(kernel).or_default().push(latency)
                }
                BenchRecord::Many(many) => self.many.entry(kernel).or_default().push(many),
                BenchRecord::Enumeration(enumeration) => {
                    let key = (kernel, enumeration.situation, enumeration.processes);
                    self.enumerations.insert(key, enumeration);
                }
            }
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (BenchKernel, &Measurement)> {
        self.figures
            .iter()
            .map(|((kernel, ..), figure)| (*kernel, figure))
    }

    /// Why there are no figures of a situation, for each kernel.
    pub fn missing(&self) -> impl Iterator<Item = (BenchKernel, Situation, &str)> {
        let entries = self.missing.iter();
        entries.map(|((kernel, situation), reason)| (*kernel, *situation, reason.as_str()))
    }

    /// An operation with so many listeners, if it was measured.
    pub fn find(
        &self,
        kernel: BenchKernel,
        operation: Operation,
        situation: Situation,
        listeners: u32,
    ) -> Option<&Measurement> {
        self.figures.get(&(kernel, operation, situation, listeners))
    }

    /// All instructions of an operation: the median, or what the cheapest tenth took if the operation
    /// is one on processes.
    pub fn whole(
        &self,
        kernel: BenchKernel,
        operation: Operation,
        situation: Situation,
        listeners: u32,
    ) -> Option<f64> {
        let figure = self.find(kernel, operation, situation, listeners)?;
        Some(if operation.is_of_processes() {
            figure.low
        } else {
            figure.instructions
        })
    }

    /// Instructions of an operation without listeners.
    pub fn alone(&self, kernel: BenchKernel, operation: Operation) -> Option<f64> {
        self.whole(kernel, operation, Situation::NoListener, 0)
    }

    /// What the cheapest tenth took without listeners.
    pub fn low_alone(&self, kernel: BenchKernel, operation: Operation) -> Option<f64> {
        Some(self.find(kernel, operation, Situation::NoListener, 0)?.low)
    }

    /// Instructions above those of the same operation without listeners: those that were measured in
    /// turn, if there are any.
    pub fn cost(
        &self,
        kernel: BenchKernel,
        operation: Operation,
        situation: Situation,
        listeners: u32,
    ) -> Option<f64> {
        if let Some(cost) = self.in_turn(kernel, operation, situation, listeners) {
            return Some(cost.instructions);
        }
        let whole = self.whole(kernel, operation, situation, listeners)?;
        let alone = match situation {
            Situation::Containers => self.whole(kernel, operation, situation, 0)?,
            _ => self.alone(kernel, operation)?,
        };
        Some(whole - alone)
    }

    /// The same, with the spread of the rounds; `None` if it was not measured in rounds.
    pub fn in_turn(
        &self,
        kernel: BenchKernel,
        operation: Operation,
        situation: Situation,
        listeners: u32,
    ) -> Option<Cost> {
        self.find(kernel, operation, situation, listeners)?.cost
    }

    /// Instructions above those of the same operation with listeners that do not ask for IDENTITY,
    /// measured in turn.
    pub fn added(
        &self,
        kernel: BenchKernel,
        operation: Operation,
        situation: Situation,
        listeners: u32,
    ) -> Option<Cost> {
        self.find(kernel, operation, situation, listeners)?.added
    }

    /// What it takes to read so many unread events.
    pub fn reading(
        &self,
        kernel: BenchKernel,
        situation: Situation,
        unread: u32,
    ) -> Option<&Reading> {
        self.readings.get(&(kernel, situation, unread))
    }

    /// All readings.
    pub fn readings(&self) -> impl Iterator<Item = (BenchKernel, &Reading)> {
        let entries = self.readings.iter();
        entries.map(|((kernel, ..), reading)| (*kernel, reading))
    }

    /// Instructions for each of so many processes, to learn which there are.
    pub fn enumeration(
        &self,
        kernel: BenchKernel,
        situation: Situation,
        processes: u32,
    ) -> Option<f64> {
        Some(
            self.enumerations
                .get(&(kernel, situation, processes))?
                .instructions,
        )
    }

    /// All enumerations.
    pub fn enumerations(&self) -> impl Iterator<Item = (BenchKernel, &Enumeration)> {
        let entries = self.enumerations.iter();
        entries.map(|((kernel, ..), enumeration)| (*kernel, enumeration))
    }

    /// Instructions of a COMM event: those of the process that raises it, above those without
    /// listeners, and those of its only reader, which reads when many are unread.
    pub fn end_to_end(&self, kernel: BenchKernel, situation: Situation) -> Option<f64> {
        let raised = self.cost(kernel, Operation::Comm, situation, 1)?;
        let read = match situation {
            Situation::Ebpf => self.whole(kernel, Operation::Read, situation, 1)?,
            _ => self.reading(kernel, situation, MOST_UNREAD)?.instructions,
        };
        Some(raised + read)
    }

    /// Events of a burst that the default buffer keeps.
    pub fn kept(&self, kernel: BenchKernel, situation: Situation) -> Option<f64> {
        Some(self.bursts.get(&(kernel, situation))?.kept as f64)
    }

    /// Events a second until the first loss, all rounds together, and how many of them had a loss.
    pub fn flood(&self, kernel: BenchKernel, situation: Situation) -> Option<(f64, usize, usize)> {
        let floods = self.floods.get(&(kernel, situation))?;
        let events: u64 = floods.iter().map(|flood| flood.events).sum();
        let seconds: f64 = floods.iter().map(|flood| flood.seconds).sum();
        let lost = floods.iter().filter(|flood| flood.lost).count();
        Some((events as f64 / seconds, lost, floods.len()))
    }

    /// Nanoseconds from an event until a waiting listener has read it: the median of the rounds.
    pub fn latency(&self, kernel: BenchKernel) -> Option<f64> {
        let latencies = self.latencies.get(&kernel)?.iter();
        median(latencies.map(|latency| latency.nanoseconds))
    }

    /// Seconds until many listeners have sent LISTEN, and until the process that has them has ended:
    /// the medians of the rounds.
    pub fn many(&self, kernel: BenchKernel) -> Option<Many> {
        let many = self.many.get(&kernel)?.iter();
        Some(Many {
            listen: median(many.clone().map(|many| many.listen))?,
            exit: median(many.map(|many| many.exit))?,
        })
    }
}

/// The middle one of the values, or the larger one of the two in the middle.
pub(super) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A figure as the guest reports it.
    pub fn line(
        operation: Operation,
        situation: Situation,
        listeners: u32,
        instructions: f64,
    ) -> BenchRecord {
        BenchRecord::Measurement(Measurement {
            operation,
            situation,
            listeners,
            instructions,
            spread: 0.0,
            low: instructions,
            cost: None,
            added: None,
        })
    }

    /// The same figure, measured in turn with no listeners.
    pub fn with_cost(line: BenchRecord, instructions: f64) -> BenchRecord {
        changed(line, |figure| figure.cost = Some(cost(instructions, 2.0)))
    }

    /// The same figure, measured in turn with listeners that ask for less.
    pub fn with_added(line: BenchRecord, instructions: f64) -> BenchRecord {
        changed(line, |figure| figure.added = Some(cost(instructions, 1.0)))
    }

    fn changed(line: BenchRecord, change: impl FnOnce(&mut Measurement)) -> BenchRecord {
        let BenchRecord::Measurement(mut figure) = line else {
            panic!("{line:?} is no figure");
        };
        change(&mut figure);
        BenchRecord::Measurement(figure)
    }

    fn cost(instructions: f64, spread: f64) -> Cost {
        Cost {
            instructions,
            spread,
        }
    }

    /// Events of a burst that were kept.
    pub fn burst(situation: Situation, kept: u64) -> BenchRecord {
        BenchRecord::Burst(Burst { situation, kept })
    }

    /// Events that are read, in so many datagrams.
    pub fn reading(
        situation: Situation,
        unread: u32,
        datagrams: u32,
        instructions: f64,
    ) -> BenchRecord {
        BenchRecord::Reading(Reading {
            situation,
            unread,
            datagrams,
            instructions,
            spread: 0.0,
        })
    }

    /// A process's share of the instructions that it takes to learn which of so many there are.
    pub fn enumeration(situation: Situation, processes: u32, instructions: f64) -> BenchRecord {
        BenchRecord::Enumeration(Enumeration {
            situation,
            processes,
            instructions,
            spread: 0.0,
        })
    }

    #[test]
    fn raising_and_reading_are_added() {
        let mut figures = Figures::default();
        let lines = vec![
            line(Operation::Comm, Situation::NoListener, 0, 400.0),
            line(Operation::Comm, Situation::Everything, 1, 1200.0),
            line(Operation::Comm, Situation::Batch, 1, 650.0),
            line(Operation::Comm, Situation::Batch, 8, 1650.0),
            line(Operation::Comm, Situation::Ebpf, 1, 825.0),
            line(Operation::Read, Situation::Ebpf, 1, 38.0),
            reading(Situation::Everything, MOST_UNREAD, MOST_UNREAD, 1100.0),
            reading(Situation::Batch, 1, 1, 1400.0),
            reading(Situation::Batch, MOST_UNREAD, 12, 50.0),
        ];
        figures.add(BenchKernel::Ours, lines);
        let sum = |situation| figures.end_to_end(BenchKernel::Ours, situation);
        assert_eq!(sum(Situation::Everything), Some(1900.0));
        assert_eq!(sum(Situation::Batch), Some(300.0));
        assert_eq!(sum(Situation::Ebpf), Some(463.0));
        let stock = figures.end_to_end(BenchKernel::Stock, Situation::Everything);
        assert_eq!(stock, None);
    }

    #[test]
    fn costs_are_above_the_same_operation_alone() {
        let mut figures = Figures::default();
        let comm = Operation::Comm;
        figures.add(
            BenchKernel::Ours,
            vec![
                line(comm, Situation::NoListener, 0, 400.0),
                line(comm, Situation::Everything, 8, 1400.0),
                line(comm, Situation::Containers, 0, 410.0),
                line(comm, Situation::Containers, 8, 1010.0),
            ],
        );
        let cost = |situation| figures.cost(BenchKernel::Ours, comm, situation, 8);
        assert_eq!(cost(Situation::Everything), Some(1000.0));
        assert_eq!(cost(Situation::Containers), Some(600.0));
        assert_eq!(cost(Situation::Dead), None);
        assert_eq!(
            figures.cost(BenchKernel::Stock, comm, Situation::Everything, 8),
            None
        );
    }

    #[test]
    fn costs_measured_in_turn_count() {
        let mut figures = Figures::default();
        let with = line(Operation::ShortFork, Situation::Filtered, 1, 20_600.0);
        let with = with_cost(with, 1.0);
        let alone = line(Operation::ShortFork, Situation::NoListener, 0, 20_000.0);
        figures.add(BenchKernel::Ours, vec![alone, with]);
        let cost = figures.cost(
            BenchKernel::Ours,
            Operation::ShortFork,
            Situation::Filtered,
            1,
        );
        assert_eq!(cost, Some(1.0));
    }

    #[test]
    fn all_floods_count() {
        let mut figures = Figures::default();
        let flood = |events, lost| {
            BenchRecord::Flood(Flood {
                situation: Situation::Everything,
                events,
                seconds: 2.0,
                lost,
            })
        };
        figures.add(
            BenchKernel::Ours,
            vec![flood(80, false), flood(2, true), flood(38, true)],
        );
        let flood = |kernel, situation| figures.flood(kernel, situation);
        assert_eq!(
            flood(BenchKernel::Ours, Situation::Everything),
            Some((20.0, 2, 3))
        );
        assert_eq!(flood(BenchKernel::Ours, Situation::Batch), None);
        assert_eq!(flood(BenchKernel::Stock, Situation::Everything), None);
    }

    #[test]
    fn the_median_latency_counts() {
        let mut figures = Figures::default();
        let lines =
            [3.0, 100.0, 1.0].map(|nanoseconds| BenchRecord::Latency(Latency { nanoseconds }));
        figures.add(BenchKernel::Ours, lines.to_vec());
        assert_eq!(figures.latency(BenchKernel::Ours), Some(3.0));
        assert_eq!(figures.latency(BenchKernel::Stock), None);
    }
}
