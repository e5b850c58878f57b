// SPDX-License-Identifier: GPL-2.0
//! A virtual machine with the agent in it.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, process};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use protocol::{
    BUILD_VARIABLE, BUILT_IN_VARIABLE, Frame, FromGuest, Job, MODULE_VARIABLE, ToGuest,
};

use super::accelerator::Accelerator;
use super::console::{Console, Transcript};
use super::dump::{Dump, Monitor};
use super::files::text;
use super::kernel::{Architecture, Kernel};
use super::settings::Settings;
use super::virtme::{self, AGENT_SOCKET, MONITOR_SOCKET};

/// From QEMU's start to the agent's first message.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// From the start of virtme-ng to QEMU's connection.
const QEMU_START_LIMIT: Duration = Duration::from_secs(60);

/// The agent sends a heartbeat every few seconds, so a silence of this length is a hang. For a
/// kernel that checks itself, the limit is longer.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// A clock that counts instructions is slow when the guest is busy.
const COUNTING_SILENCE_LIMIT: Duration = Duration::from_secs(300);

/// From the end of the command to QEMU's end.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(60);

/// How long a failure's console log is kept.
const LOG_AGE_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a wait checks whether QEMU still runs.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often the progress of a long wait is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// How many virtual machines this process has started.
static MACHINES: AtomicUsize = AtomicUsize::new(0);

/// What went wrong with a virtual machine.
#[derive(Debug)]
pub struct MachineFailure {
    /// In one line: the machine, the reason, and the kernel's first complaint.
    pub summary: String,
    /// The line in which QEMU reported that it aborted, if it did.
    assertion: Option<String>,
    /// The end of the console.
    excerpt: String,
}

impl MachineFailure {
    fn new(summary: String, transcript: &Transcript) -> Self {
        Self {
            summary,
            assertion: transcript.assertion(),
            excerpt: transcript.excerpt(),
        }
    }
}

impl Display for MachineFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}\n{}", self.summary, self.excerpt)
    }
}

impl std::error::Error for MachineFailure {}

/// A running virtual machine. Dropping it kills it.
pub struct Vm {
    name: String,
    /// Holds the pipe that makes the guard kill QEMU when it is closed.
    guard: Child,
    port: UnixStream,
    messages: Receiver<io::Result<FromGuest>>,
    console: Option<Console>,
    monitor: Monitor,
    /// Whether the machine has a keyboard that the kernel reads.
    has_keyboard: bool,
    /// See [`Kernel::time_factor`].
    time_factor: u32,
    last_message: Instant,
    /// See [`SILENCE_LIMIT`].
    silence_limit: Duration,
    /// From the start of virtme-ng to the agent's first message.
    pub boot_time: Duration,
}

impl Vm {
    /// Boots the kernel and waits for the agent.
    ///
    /// If QEMU aborts at one of its assertions before the guest is up, this says nothing about the
    /// kernel. The abort is reported, and QEMU is started once more. (Seen now and then while the
    /// kernel finds its devices, on all kernels: `msix_table_mmio_write: Assertion ... failed`.) This
    /// is not done under KVM: there, an abort is the answer to the probe.
    pub fn boot(
        settings: &Settings,
        kernel: &Kernel,
        accelerator: Accelerator,
        limit: Duration,
    ) -> Result<Self> {
        let first = Self::boot_once(settings, kernel, accelerator, limit);
        if matches!(accelerator, Accelerator::Kvm) {
            return first;
        }
        let failure = first.as_ref().err();
        let failure = failure.and_then(|error| error.downcast_ref::<MachineFailure>());
        let Some(assertion) = failure.and_then(|failure| failure.assertion.as_ref()) else {
            return first;
        };
        eprintln!(
            "{}: QEMU aborted before the guest was up, and is started once more: {assertion}",
            kernel.name
        );
        Self::boot_once(settings, kernel, accelerator, limit)
    }

    fn boot_once(
        settings: &Settings,
        kernel: &Kernel,
        accelerator: Accelerator,
        limit: Duration,
    ) -> Result<Self> {
        let started = Instant::now();
        let sockets = Sockets::new(&kernel.name)?;
        remove_old_logs(&settings.cache);
        let (console, console_writer) = pipe2(OFlag::O_CLOEXEC)?;
        // Each machine has its own log, so that the log of a failure stays while the next one runs.
        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let log = format!("console-{}-{}-{number}.log", kernel.name, process::id());
        let log = settings.cache.join(log);
        // This program itself, even if its file was replaced since it was started.
        let mut guard = Command::new("/proc/self/exe")
            .arg("guard")
            .arg("--")
            .arg(&settings.vng)
            .args(virtme::arguments(
                settings,
                kernel,
                accelerator,
                &sockets.directory,
            )?)
            .current_dir(&kernel.directory)
            .env("PATH", path_with(settings.vng.parent())?)
            .stdin(Stdio::piped())
            .stdout(console_writer.try_clone()?)
            .stderr(console_writer)
            .process_group(0)
            .spawn()
            .context("cannot start the guard of the virtual machine")?;
        let console = Console::follow(File::from(console), log)?;
        let (port, monitor) = match sockets.accept(&mut guard) {
            Ok(both) => both,
            Err(error) => {
                end(&mut guard);
                let summary = format!("{}: {error:#}", kernel.name);
                return Err(MachineFailure::new(summary, &console.end()).into());
            }
        };
        drop(sockets);
        let (sender, messages) = mpsc::channel();
        let reader = port.try_clone()?;
        thread::spawn(move || {
            // Buffered, because frames are small and many.
            let mut reader = io::BufReader::new(reader);
            loop {
                let message = FromGuest::read_from(&mut reader);
                let more = matches!(message, Ok(Some(_)));
                if let Some(message) = message.transpose() {
                    if sender.send(message).is_err() {
                        return;
                    }
                }
                if !more {
                    return;
                }
            }
        });
        let mut vm = Self {
            name: kernel.name.clone(),
            guard,
            port,
            messages,
            console: Some(console),
            monitor: Monitor::new(monitor)?,
            has_keyboard: kernel.architecture == Architecture::X86_64,
            time_factor: kernel.time_factor() * accelerator.time_factor(),
            last_message: Instant::now(),
            silence_limit: kernel.time_factor()
                * match accelerator {
                    Accelerator::Kvm | Accelerator::Tcg => SILENCE_LIMIT,
                    Accelerator::Counting => COUNTING_SILENCE_LIMIT,
                },
            boot_time: Duration::ZERO,
        };
        vm.wait_for_agent(started, limit * kernel.time_factor())?;
        vm.boot_time = started.elapsed();
        Ok(vm)
    }

    fn wait_for_agent(&mut self, started: Instant, limit: Duration) -> Result<()> {
        let mut next_progress = started + PROGRESS_INTERVAL;
        loop {
            match self.messages.recv_timeout(POLL_INTERVAL) {
                Ok(Ok(FromGuest::Hello)) => {
                    self.last_message = Instant::now();
                    return Ok(());
                }
                Ok(Ok(message)) => {
                    return Err(self.failure(format!("its first message was {message:?}")));
                }
                Ok(Err(error)) => return Err(self.failure(error)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.failure("QEMU ended before the guest was up"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if started.elapsed() > limit {
                let limit = limit.as_secs();
                return Err(self.stuck(format!("the guest was not up after {limit} s")));
            }
            if Instant::now() > next_progress {
                next_progress += PROGRESS_INTERVAL;
                let elapsed = started.elapsed().as_secs();
                eprintln!("{}: still booting, {elapsed} s", self.name);
            }
        }
    }

    /// Sends the agent its job.
    pub fn start(&mut self, job: Job) -> Result<()> {
        self.last_message = Instant::now();
        ToGuest::Job(job)
            .write_to(&self.port)
            .map_err(|error| self.failure(error))
    }

    /// A second handle to the port, for the user's input.
    pub fn input(&self) -> Result<UnixStream> {
        Ok(self.port.try_clone()?)
    }

    /// The next message of the agent that is not a heartbeat; `None` if there is none before the
    /// deadline.
    pub fn next_until(&mut self, deadline: Instant) -> Result<Option<FromGuest>> {
        loop {
            match self.messages.recv_timeout(POLL_INTERVAL) {
                Ok(Ok(FromGuest::Heartbeat)) => self.last_message = Instant::now(),
                Ok(Ok(FromGuest::Failed(reason))) => return Err(self.failure(reason)),
                Ok(Ok(message)) => {
                    self.last_message = Instant::now();
                    return Ok(Some(message));
                }
                Ok(Err(error)) => return Err(self.failure(error)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.failure("QEMU ended before the guest's command did"));
                }
                Err(RecvTimeoutError::Timeout)
                    if self.last_message.elapsed() > self.silence_limit =>
                {
                    let limit = self.silence_limit.as_secs();
                    return Err(self.stuck(format!("the guest was silent for {limit} s")));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The next message of the agent. It waits as long as the agent sends heartbeats.
    pub fn next(&mut self) -> Result<FromGuest> {
        loop {
            if let Some(message) = self.next_until(Instant::now() + SILENCE_LIMIT)? {
                return Ok(message);
            }
        }
    }

    /// Waits for the power-off after the agent's last message. A complaint of the kernel is an
    /// error.
    pub fn finish(mut self) -> Result<()> {
        let deadline = Instant::now() + POWER_OFF_LIMIT;
        while self.guard.try_wait()?.is_none() {
            if Instant::now() > deadline {
                let limit = POWER_OFF_LIMIT.as_secs();
                return Err(self.stuck(format!("the guest did not power off in {limit} s")));
            }
            thread::sleep(POLL_INTERVAL / 4);
        }
        let Some(console) = self.console.take() else {
            return Ok(());
        };
        let transcript = console.end();
        match transcript.verdict() {
            None => {
                // The result of a test that hung names the log with its dump.
                if !transcript.has_dump() {
                    transcript.remove_log();
                }
                Ok(())
            }
            Some(verdict) => {
                let summary = format!("{}: {verdict}", self.name);
                Err(MachineFailure::new(summary, &transcript).into())
            }
        }
    }

    /// The path of the console's log, while there is a machine.
    pub fn console_log(&self) -> Option<&Path> {
        self.console.as_ref().map(Console::log)
    }

    /// Ends a machine that hangs. The error has the reason, and says what the machine was doing.
    pub fn stuck(&mut self, reason: impl std::fmt::Display) -> anyhow::Error {
        let (factor, monitor) = (self.time_factor, &mut self.monitor);
        let console = self.console.as_ref();
        let dump = console.map(|console| monitor.dump(console, self.has_keyboard, factor));
        self.end_for(reason, dump)
    }

    /// Ends the machine. The error has the reason and the end of the console.
    pub fn failure(&mut self, reason: impl std::fmt::Display) -> anyhow::Error {
        self.end_for(reason, None)
    }

    fn end_for(&mut self, reason: impl std::fmt::Display, dump: Option<Dump>) -> anyhow::Error {
        end(&mut self.guard);
        let name = &self.name;
        let Some(console) = self.console.take() else {
            // It has already ended, and the reason is the error that was returned then.
            return anyhow!("{reason}");
        };
        let transcript = console.end();
        let mut text = format!("{name}: {reason}");
        if let Some(verdict) = transcript.verdict() {
            text += &format!("; {verdict}");
        }
        if let Some(dump) = dump {
            transcript.add(&dump.text());
            text += &format!("; {}", dump.summary());
        }
        MachineFailure::new(text, &transcript).into()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        end(&mut self.guard);
    }
}

/// Makes the guard kill QEMU, and waits for that.
fn end(guard: &mut Child) {
    drop(guard.stdin.take());
    // The guard's SIGKILL ends the guard, too, so the wait is short. On an error, nothing can be done.
    let _ = guard.wait();
}

/// Removes old console logs, which were kept because of a failure.
fn remove_old_logs(cache: &Path) {
    let is_log = |name: &str| name.starts_with("console-") && name.ends_with(".log");
    // A log that cannot be listed or removed now stays until the next time.
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified
            .ok()
            .and_then(|time| time.elapsed().ok())
            .unwrap_or_default();
        if entry.file_name().to_str().is_some_and(is_log) && age > LOG_AGE_LIMIT {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A job with the environment that commands in the guest expect.
pub fn job(kernel: &Kernel, command: Vec<String>) -> Result<Job> {
    let mut environment = vec![("PATH".to_owned(), path_in_guest(kernel.architecture))];
    for name in ["HOME", "LANG", "TERM", "USER"] {
        if let Ok(value) = env::var(name) {
            environment.push((name.to_owned(), value));
        }
    }
    environment.push((BUILD_VARIABLE.to_owned(), text(&kernel.directory)?));
    if kernel.has_built_in {
        environment.push((BUILT_IN_VARIABLE.to_owned(), "1".to_owned()));
    }
    let module = match &kernel.module {
        Some(module) => {
            let module = text(module)?;
            environment.push((MODULE_VARIABLE.to_owned(), module.clone()));
            Some(module)
        }
        None => None,
    };
    let directory = text(&env::current_dir().context("cannot find the working directory")?)?;
    Ok(Job {
        command,
        directory,
        environment,
        module,
        results: false,
        terminal: None,
    })
}

/// The user's search path, unless the programs in it are for another machine, followed by the
/// directories with the administrator's programs.
fn path_in_guest(architecture: Architecture) -> String {
    let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    match env::var("PATH") {
        Ok(path) if !path.is_empty() && architecture == Architecture::X86_64 => {
            format!("{path}:{system}")
        }
        _ => system.to_owned(),
    }
}

fn path_with(directory: Option<&Path>) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = directory
        .map(PathBuf::from)
        .into_iter()
        .chain(env::split_paths(&path));
    env::join_paths(directories).context("virtme-ng's directory cannot be put into PATH")
}

/// The sockets that QEMU connects the agent's port and its monitor to, in a directory that no
/// other user can enter.
struct Sockets {
    directory: PathBuf,
    agent: UnixListener,
    monitor: UnixListener,
}

impl Sockets {
    /// The sockets for the virtual machine of this name. This process has only one at a time.
    fn new(name: &str) -> Result<Self> {
        let directory = env::temp_dir().join(format!("proc-events-vm.{}.{name}", process::id()));
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        ensure!(
            directory
                .to_str()
                .is_some_and(|path| path.chars().all(plain)),
            "{} has characters that QEMU's options cannot have: set TMPDIR",
            directory.display()
        );
        // A killed process that had the same pid may have left it.
        let _ = fs::remove_dir_all(&directory);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let listen = |name| {
            let path = directory.join(name);
            UnixListener::bind(&path)
                .with_context(|| format!("cannot listen on {}: set TMPDIR", path.display()))
        };
        Ok(Self {
            agent: listen(AGENT_SOCKET)?,
            monitor: listen(MONITOR_SOCKET)?,
            directory,
        })
    }

    /// Waits for QEMU as long as it may still connect. Returns the agent's port and the monitor.
    fn accept(&self, guard: &mut Child) -> Result<(UnixStream, UnixStream)> {
        let deadline = Instant::now() + QEMU_START_LIMIT;
        Ok((
            accept(&self.agent, guard, deadline)?,
            accept(&self.monitor, guard, deadline)?,
        ))
    }
}

fn accept(listener: &UnixListener, guard: &mut Child, deadline: Instant) -> Result<UnixStream> {
    loop {
        let mut descriptors = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let interval = PollTimeout::try_from(POLL_INTERVAL).unwrap_or(PollTimeout::MAX);
        if poll(&mut descriptors, interval)? > 0 {
            return Ok(listener.accept()?.0);
        }
        if let Some(status) = guard.try_wait()? {
            bail!("virtme-ng ended before QEMU was up ({status})");
        }
        if Instant::now() > deadline {
            bail!("QEMU was not up after {} s", QEMU_START_LIMIT.as_secs());
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // QEMU has connected, or never will.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
