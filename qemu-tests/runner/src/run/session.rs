// SPDX-License-Identifier: GPL-2.0
//! The tests of one kernel, in one virtual machine after the other, or a load, in one.
//!
//! All tests run in the first machine, unless a test crashes it, or has to be killed. What such a
//! test changed may still be changed, so the tests after it get a new machine.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use protocol::complaints::DUMP_BEGINS;
use protocol::results::{Outcome, Record, TestRecord};
use protocol::{FromGuest, Job, TEST_KILLED, TestDescription};

use super::commands::show;
use crate::machine::accelerator::Accelerator;
use crate::machine::kernel::Kernel;
use crate::machine::settings::Settings;
use crate::machine::vm::{self, BOOT_LIMIT, Vm};

/// How much later than the test's own limit a result may come: the guest cleans up after a timeout.
/// It is multiplied on slow machines, like the limit.
const RESULT_GRACE: Duration = Duration::from_secs(30);

/// How many virtual machines the tests of a kernel may use. If the machine failed in every test, the
/// run would take hours, and show nothing new.
const MACHINES: usize = 4;

/// [`TEST_KILLED`], as the agent reports it.
const KILLED: i32 = TEST_KILLED as i32;

/// Why there is no result of a test.
pub enum NoResult {
    /// The virtual machine, or the test program, failed in this test.
    Failure(String),
    /// Too many failed before.
    TooLate,
}

/// What the guest program runs.
#[derive(Clone)]
pub enum Work {
    /// The tests with these names.
    Tests(Vec<String>),
    /// A load and its options. Its output is shown.
    Load(Vec<String>),
}

impl Work {
    /// The guest program's arguments for this test and all tests after it, and how many results there
    /// will be.
    fn arguments(&self, first: &str) -> Result<(Vec<String>, usize)> {
        match self {
            Self::Load(arguments) => Ok((arguments.clone(), 1)),
            Self::Tests(names) => {
                let index = names.iter().position(|known| known == first);
                let names = &names
                    [index.with_context(|| format!("{first} is not among the tests to run"))?..];
                let test = ["test".to_owned()].into_iter();
                Ok((test.chain(names.iter().cloned()).collect(), names.len()))
            }
        }
    }
}

/// The tests of one kernel, or a load. Their results come in the order of their names.
pub struct Session {
    settings: Settings,
    kernel: Kernel,
    accelerator: Accelerator,
    /// The factor for the guest's limits.
    factor: u32,
    work: Work,
    /// `None` after a failure, and after the end.
    machine: Option<Machine>,
    /// How many machines were booted.
    machines: usize,
    /// The first failure of a machine before this one.
    wrong: Option<anyhow::Error>,
}

impl Session {
    /// A session without a machine, which is booted when the first result is wanted.
    pub fn new(settings: &Settings, kernel: &Kernel, accelerator: Accelerator, work: Work) -> Self {
        Self {
            settings: settings.clone(),
            kernel: kernel.clone(),
            accelerator,
            factor: accelerator.time_factor() * kernel.time_factor(),
            work,
            machine: None,
            machines: 0,
            wrong: None,
        }
    }

    /// Boots a machine for the tests from this one on.
    pub fn boot_for(&mut self, name: &str) -> Result<()> {
        let (arguments, results) = self.work.arguments(name)?;
        self.machines += 1;
        if self.machines > 1 {
            // The test's name is on this line already.
            eprintln!();
        }
        let what = match &self.work {
            Work::Tests(_) => format!("{results} tests"),
            Work::Load(_) => name.to_owned(),
        };
        eprintln!(
            "{}: booting {} for {what}",
            self.kernel.name,
            self.kernel.directory.display()
        );
        let mut vm = Vm::boot(&self.settings, &self.kernel, self.accelerator, BOOT_LIMIT)?;
        let mut command = vec![self.settings.guest.to_string_lossy().into_owned()];
        command.extend(["--time-factor".into(), self.factor.to_string()]);
        command.push("--kernel-time-factor".into());
        command.push(self.kernel.time_factor().to_string());
        command.extend(arguments);
        vm.start(Job {
            results: true,
            ..vm::job(&self.kernel, command)?
        })?;
        self.machine = Some(Machine::new(vm, matches!(self.work, Work::Load(_))));
        Ok(())
    }

    /// Waits for the next result, which has to be that of this test, or of the load.
    pub fn result_of(
        &mut self,
        test: &TestDescription,
    ) -> std::result::Result<TestRecord, NoResult> {
        let (name, limit) = (test.name.as_str(), Duration::from_secs(test.limit_seconds));
        loop {
            let Some(machine) = &mut self.machine else {
                if self.machines == MACHINES {
                    return Err(NoResult::TooLate);
                }
                if let Err(error) = self.boot_for(name) {
                    return Err(self.give_up(&error));
                }
                continue;
            };
            let deadline = Instant::now() + (limit + RESULT_GRACE) * self.factor;
            match machine.next_result(deadline) {
                Ok(Some(result)) if result.name == name => return Ok(machine.with_dump(result)),
                Ok(Some(result)) => {
                    let other = result.name;
                    return Err(self.give_up(&anyhow!("the guest reported {other} instead")));
                }
                Ok(None) => self.end_after_kill(),
                Err(error) => return Err(self.give_up(&error)),
            }
        }
    }

    /// Ends the machine in which a test was killed.
    fn end_after_kill(&mut self) {
        if let Some(Err(error)) = self.machine.take().map(|machine| machine.vm.finish()) {
            self.wrong.get_or_insert(error);
        }
    }

    /// Ends the machine after something that makes further results worthless.
    fn give_up(&mut self, reason: &anyhow::Error) -> NoResult {
        self.wrong
            .get_or_insert_with(|| anyhow!("a virtual machine failed in a test before"));
        NoResult::Failure(match self.machine.take() {
            Some(machine) => machine.failure(reason),
            None => format!("{reason:#}"),
        })
    }

    /// Waits for the end of the guest. The outcome is a failure if any machine failed.
    pub fn finish(&mut self) -> Outcome {
        let end = self.machine.take().map_or(Ok(()), Machine::finish);
        match self.wrong.take().map_or(end, Err) {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        }
    }
}

/// A virtual machine in which the test program runs.
struct Machine {
    vm: Vm,
    /// How many results are to come.
    planned: Option<usize>,
    /// How many have come.
    came: usize,
    /// The output of the test program itself, unless it is shown immediately.
    output: String,
    is_shown: bool,
    status: Option<i32>,
}

impl Machine {
    fn new(vm: Vm, is_shown: bool) -> Self {
        Self {
            vm,
            planned: None,
            came: 0,
            output: String::new(),
            is_shown,
            status: None,
        }
    }

    /// The next result; none if the test program ended because it killed a test.
    fn next_result(&mut self, deadline: Instant) -> Result<Option<TestRecord>> {
        loop {
            match self.status {
                None => {
                    if let Some(record) = self.receive(deadline)? {
                        return Ok(Some(record));
                    }
                }
                Some(KILLED) => return Ok(None),
                Some(status) => {
                    bail!("the test program ended with status {status} and without this result")
                }
            }
        }
    }

    /// Receives a message of the guest. Returns a test's result, if it is one.
    fn receive(&mut self, deadline: Instant) -> Result<Option<TestRecord>> {
        match self.vm.next_until(deadline)? {
            Some(FromGuest::Output(bytes)) if self.is_shown => show(io::stdout(), &bytes)?,
            Some(FromGuest::Errors(bytes)) if self.is_shown => show(io::stderr(), &bytes)?,
            Some(FromGuest::Output(bytes) | FromGuest::Errors(bytes)) => {
                self.output += &String::from_utf8_lossy(&bytes);
            }
            Some(FromGuest::Record(Record::Plan(tests))) => self.planned = Some(tests),
            Some(FromGuest::Record(Record::Test(record))) => {
                self.came += 1;
                return Ok(Some(record));
            }
            Some(FromGuest::Exited(status)) => self.status = Some(status),
            Some(FromGuest::ModuleLoaded(_)) => {}
            Some(message) => bail!("the agent sent {message:?}"),
            None => bail!(self.vm.stuck("no result came in time")),
        }
        Ok(None)
    }

    /// Adds where the dump is, if the kernel was asked for one.
    fn with_dump(&self, mut record: TestRecord) -> TestRecord {
        if let (true, Some(log)) = (record.dumped, self.vm.console_log()) {
            record.kernel.push(format!(
                "what all tasks and CPUs were doing is in {}, from '{DUMP_BEGINS}' on",
                log.display()
            ));
        }
        record
    }

    /// Why it failed, as far as that is known.
    fn failure(mut self, reason: &anyhow::Error) -> String {
        format!("{}{}", self.vm.failure(format!("{reason:#}")), self.output)
    }

    /// Waits for the end of the tests and of the guest.
    fn finish(mut self) -> Result<()> {
        let deadline = Instant::now() + RESULT_GRACE;
        while self.status.is_none() {
            if let Err(error) = self.receive(deadline) {
                bail!(self.failure(&error));
            }
        }
        self.vm.finish()?;
        ensure!(self.planned == Some(self.came), "results are missing");
        ensure!(
            matches!(self.status, Some(0 | 1 | KILLED)),
            "the test program printed: {}",
            self.output
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_machine_runs_what_is_left() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let tests = Work::Tests(words(&["a::a", "a::b", "a::c"]));
        let expected = (words(&["test", "a::b", "a::c"]), 2);
        assert_eq!(tests.arguments("a::b").unwrap(), expected);
        assert!(tests.arguments("a::d").is_err());
        let options: Vec<String> = words(&["storm", "--seconds", "5"]);
        let load = Work::Load(options.clone());
        assert_eq!(load.arguments("storm").unwrap(), (options, 1));
    }
}
