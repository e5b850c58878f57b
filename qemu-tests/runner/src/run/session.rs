// SPDX-License-Identifier: GPL-2.0
//! The tests of one kernel, in one virtual machine after the other.
//!
//! All of them run in the first, unless a test crashes it, or has to be killed: then what that test
//! changed may still be changed, and the tests after it get a new one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use protocol::complaints::DUMP_BEGINS;
use protocol::results::{Record, TestRecord};
use protocol::{FromGuest, Job, TEST_KILLED};

use crate::machine::accelerator::Accelerator;
use crate::machine::kernel::Kernel;
use crate::machine::settings::Settings;
use crate::machine::vm::{self, BOOT_LIMIT, Vm};

/// What a result may come later than the test's own limit: the guest's clean-up after a time-out.
/// Multiplied on slow machines, as the limit is.
const RESULT_GRACE: Duration = Duration::from_secs(30);

/// How many virtual machines the tests of a kernel may take. One that fails in every test would
/// take hours, and tell nothing new.
const MACHINES: usize = 4;

/// [`TEST_KILLED`], as the agent tells it.
const KILLED: i32 = TEST_KILLED as i32;

/// Why there is no result of a test.
pub enum NoResult {
    /// The virtual machine, or the test program, failed in this test.
    Failure(String),
    /// Too many failed before.
    TooLate,
}

/// The tests of one kernel. Their results come in the order of their names.
pub struct Session {
    settings: Settings,
    kernel: Kernel,
    accelerator: Accelerator,
    /// What the guest's limits are multiplied with.
    factor: u32,
    names: Vec<String>,
    /// Gone after a failure, and after the end.
    machine: Option<Machine>,
    /// How many were booted.
    machines: usize,
    /// The first thing that was wrong with a machine before this one.
    wrong: Option<anyhow::Error>,
}

impl Session {
    /// Boots the kernel and starts these tests.
    pub fn start(
        settings: &Settings,
        kernel: &Kernel,
        accelerator: Accelerator,
        factor: u32,
        names: Vec<String>,
    ) -> Result<Self> {
        let mut session = Self {
            settings: settings.clone(),
            kernel: kernel.clone(),
            accelerator,
            factor,
            names,
            machine: None,
            machines: 0,
            wrong: None,
        };
        let first = session.names.first().context("no test is to be run")?;
        session.boot_for(&first.clone())?;
        Ok(session)
    }

    /// Boots a machine for the tests from this one on.
    fn boot_for(&mut self, name: &str) -> Result<()> {
        let first = self.names.iter().position(|known| known == name);
        let names = &self.names[first.with_context(|| format!("{name} was not to be run"))?..];
        self.machines += 1;
        if self.machines > 1 {
            // The line has begun with the test's name.
            eprintln!();
        }
        eprintln!(
            "{}: booting {} for {} tests",
            self.kernel.name,
            self.kernel.directory.display(),
            names.len()
        );
        let mut vm = Vm::boot(&self.settings, &self.kernel, self.accelerator, BOOT_LIMIT)?;
        let mut command = vec![self.settings.guest.to_string_lossy().into_owned()];
        command.extend(["test".into(), "--time-factor".into()]);
        command.extend([self.factor.to_string(), "--kernel-time-factor".into()]);
        command.push(self.kernel.time_factor().to_string());
        command.extend_from_slice(names);
        vm.start(Job {
            results: true,
            ..vm::job(&self.kernel, command)?
        })?;
        self.machine = Some(Machine::new(vm));
        Ok(())
    }

    /// Waits for the next result, which has to be that of this test, with this limit.
    pub fn result_of(
        &mut self,
        name: &str,
        limit: Duration,
    ) -> std::result::Result<TestRecord, NoResult> {
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
            let deadline = Instant::now() + limit + RESULT_GRACE * self.factor;
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

    /// Waits for the end of the guest; an error when anything is or was wrong with one.
    pub fn finish(&mut self) -> Result<()> {
        let end = self.machine.take().map_or(Ok(()), Machine::finish);
        self.wrong.take().map_or(end, Err)
    }
}

/// A virtual machine in which the test program runs.
struct Machine {
    vm: Vm,
    /// How many results are to come.
    planned: Option<usize>,
    /// How many came.
    came: usize,
    /// What the test program itself wrote.
    said: String,
    status: Option<i32>,
}

impl Machine {
    fn new(vm: Vm) -> Self {
        Self {
            vm,
            planned: None,
            came: 0,
            said: String::new(),
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

    /// Takes a message of the guest; a test's end, if it is one.
    fn receive(&mut self, deadline: Instant) -> Result<Option<TestRecord>> {
        match self.vm.next_until(deadline)? {
            Some(FromGuest::Output(bytes) | FromGuest::Errors(bytes)) => {
                self.said += &String::from_utf8_lossy(&bytes);
            }
            Some(FromGuest::Record(Record::Plan(tests))) => self.planned = Some(tests),
            Some(FromGuest::Record(Record::Test(record))) => {
                self.came += 1;
                return Ok(Some(record));
            }
            Some(FromGuest::Exited(status)) => self.status = Some(status),
            Some(FromGuest::ModuleLoaded(_)) => {}
            Some(message) => bail!("the agent said {message:?}"),
            None => bail!(self.vm.stuck("no result came in time")),
        }
        Ok(None)
    }

    /// Says where the dump is, if the kernel was asked for one.
    fn with_dump(&self, mut record: TestRecord) -> TestRecord {
        if let (true, Some(log)) = (record.dumped, self.vm.console_log()) {
            record.kernel.push(format!(
                "what all tasks and CPUs did then is in {}, from '{DUMP_BEGINS}' on",
                log.display()
            ));
        }
        record
    }

    /// Why it failed, as far as anybody knows.
    fn failure(mut self, reason: &anyhow::Error) -> String {
        format!("{}{}", self.vm.failure(format!("{reason:#}")), self.said)
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
            "the test program said: {}",
            self.said
        );
        Ok(())
    }
}
