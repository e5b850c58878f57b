// SPDX-License-Identifier: GPL-2.0
//! The agent: runs one job for the runner on the host and streams its output.
//!
//! The guest's root is the host's file system without udev, so the port is looked up in sysfs. A
//! command writes into pipes (or a terminal) that the agent copies to the port, because a
//! virtio-serial port can be opened only once, and `/dev/stderr` has to work for the command.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe};
use protocol::results::RecordReader;
use protocol::{
    Frame, FromGuest, HEARTBEAT_SECONDS, Job, PORT_NAME, RESULTS_VARIABLE, TerminalSize, ToGuest,
};

nix::ioctl_write_ptr_bad!(set_window_size, nix::libc::TIOCSWINSZ, Winsize);

/// Runs the one job that the runner sends.
pub fn run() -> Result<()> {
    let port = open_port()?;
    let sender = Sender(Arc::new(Mutex::new(port.try_clone()?)));
    sender.send(&FromGuest::Hello)?;
    let Some(ToGuest::Job(job)) = ToGuest::read_from(&port)? else {
        bail!("the runner on the host sent no job");
    };
    let heartbeat = sender.clone();
    thread::spawn(move || {
        // The loop ends with the guest. The other senders report a port that is gone.
        while heartbeat.send(&FromGuest::Heartbeat).is_ok() {
            thread::sleep(Duration::from_secs(HEARTBEAT_SECONDS.into()));
        }
    });
    let outcome = execute(&job, port, &sender);
    sender.send(&match outcome {
        Ok(status) => FromGuest::Exited(shell_status(status)),
        Err(error) => FromGuest::Failed(format!("{error:#}")),
    })
}

/// The port's sending side, which all senders share.
#[derive(Clone)]
struct Sender(Arc<Mutex<File>>);

impl Sender {
    fn send(&self, message: &FromGuest) -> Result<()> {
        let port = self
            .0
            .lock()
            .expect("no sender panics while it holds the port");
        message
            .write_to(&*port)
            .context("cannot write to the host's port")
    }
}

fn open_port() -> Result<File> {
    let ports = "/sys/class/virtio-ports";
    for entry in fs::read_dir(ports).with_context(|| format!("{ports}: no virtio-serial ports"))? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            let device = PathBuf::from("/dev").join(entry.file_name());
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("cannot open {}", device.display()));
        }
    }
    bail!("{ports}: no port is named {PORT_NAME}");
}

fn execute(job: &Job, port: File, sender: &Sender) -> Result<ExitStatus> {
    if let Some(module) = &job.module {
        let started = Instant::now();
        load_module(module)?;
        sender.send(&FromGuest::ModuleLoaded(
            started.elapsed().as_micros() as u64
        ))?;
    }
    match job.terminal {
        Some(size) => execute_on_terminal(job, size, port, sender),
        None => execute_on_pipes(job, port, sender),
    }
}

/// Loads a kernel module, as insmod(8) does.
pub fn load_module(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open the module {path}"))?;
    finit_module(&file, &CString::default(), ModuleInitFlags::empty())
        .with_context(|| format!("cannot load {path} (the kernel's log says more)"))
}

fn command(job: &Job, words: &[String]) -> Result<Command> {
    let [program, arguments @ ..] = words else {
        bail!("the runner on the host sent an empty command");
    };
    let directory = &job.directory;
    ensure!(
        Path::new(directory).is_dir(),
        "the guest has no directory {directory}"
    );
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .envs(job.environment.iter().map(|(name, value)| (name, value)));
    Ok(command)
}

fn spawn(mut command: Command) -> Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .with_context(|| format!("cannot start {program}"))
}

fn execute_on_pipes(job: &Job, port: File, sender: &Sender) -> Result<ExitStatus> {
    let mut command = command(job, &job.command)?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let results = if job.results {
        // The command inherits the writing end, with the same descriptor number.
        let (reader, writer) = pipe()?;
        fcntl(&reader, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        command.env(RESULTS_VARIABLE, writer.as_raw_fd().to_string());
        Some((reader, writer))
    } else {
        None
    };
    let mut child = spawn(command)?;
    let results = results.map(|(reader, _)| File::from(reader));
    let output = File::from(OwnedFd::from(child.stdout.take().expect("it was piped")));
    let errors = File::from(OwnedFd::from(child.stderr.take().expect("it was piped")));
    follow_runner(port, child.id(), |_| Ok(()));
    let mut streams = vec![
        Stream::new(output, Content::Output),
        Stream::new(errors, Content::Errors),
    ];
    streams
        .extend(results.map(|file| Stream::new(file, Content::Results(RecordReader::default()))));
    relay(child, streams, sender)
}

fn execute_on_terminal(
    job: &Job,
    size: TerminalSize,
    port: File,
    sender: &Sender,
) -> Result<ExitStatus> {
    let terminal = openpty(&window_size(size), None).context("cannot make a terminal")?;
    // setsid(1) makes the terminal the controlling one, without which a shell has no job control.
    let words = [&["setsid".into(), "--ctty".into()], job.command.as_slice()].concat();
    let mut command = command(job, &words)?;
    command
        .stdin(terminal.slave.try_clone()?)
        .stdout(terminal.slave.try_clone()?)
        .stderr(terminal.slave);
    let child = spawn(command)?;
    let master = File::from(terminal.master);
    let mut keyboard = master.try_clone()?;
    follow_runner(port, child.id(), move |message| {
        match message {
            ToGuest::Input(bytes) => keyboard.write_all(&bytes)?,
            ToGuest::Resize(size) => {
                // SAFETY: The descriptor is the terminal's, and the structure outlives the call.
                unsafe { set_window_size(keyboard.as_raw_fd(), &window_size(size)) }?;
            }
            ToGuest::Job(_) => bail!("the runner on the host sent a second job"),
        }
        Ok(())
    });
    relay(child, vec![Stream::new(master, Content::Output)], sender)
}

fn window_size(size: TerminalSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Handles the runner's messages while the command runs. The command dies with the runner.
fn follow_runner(
    port: File,
    child: u32,
    mut handle: impl FnMut(ToGuest) -> Result<()> + Send + 'static,
) {
    thread::spawn(move || {
        while let Ok(Some(message)) = ToGuest::read_from(&port) {
            if handle(message).is_err() {
                break;
            }
        }
        // If this fails, the command is gone already.
        let _ = killpg(Pid::from_raw(child as i32), Signal::SIGKILL);
    });
}

/// One of the command's streams.
struct Stream {
    file: File,
    content: Content,
}

/// The content of a stream.
enum Content {
    Output,
    Errors,
    Results(RecordReader),
}

impl Content {
    /// Sends bytes of the stream.
    fn send(&mut self, bytes: &[u8], sender: &Sender) -> Result<()> {
        match self {
            Self::Output => sender.send(&FromGuest::Output(bytes.to_vec())),
            Self::Errors => sender.send(&FromGuest::Errors(bytes.to_vec())),
            Self::Results(lines) => {
                lines.add(bytes);
                for record in lines {
                    sender.send(&FromGuest::Record(record?))?;
                }
                Ok(())
            }
        }
    }
}

/// Copies the command's streams to the host until the command ends, and then the rest of them.
///
/// A process that the command leaves behind may keep a stream open forever, so the end of the
/// command counts and not the end of its streams.
fn relay(mut child: Child, mut streams: Vec<Stream>, sender: &Sender) -> Result<ExitStatus> {
    let (ended, end) = pipe()?;
    let waiter = thread::spawn(move || {
        let status = child.wait();
        drop(end);
        status
    });
    let mut has_ended = false;
    while !has_ended {
        let wanted = PollFlags::POLLIN;
        let mut descriptors = vec![PollFd::new(ended.as_fd(), wanted)];
        descriptors.extend(
            streams
                .iter()
                .map(|stream| PollFd::new(stream.file.as_fd(), wanted)),
        );
        poll(&mut descriptors, PollTimeout::NONE)?;
        has_ended = descriptors[0].any().unwrap_or(false);
        let mut open = Vec::new();
        for mut stream in streams {
            if stream.drain(sender)? {
                open.push(stream);
            }
        }
        streams = open;
    }
    waiter
        .join()
        .expect("waiting does not panic")
        .context("cannot wait for the command")
}

impl Stream {
    fn new(file: File, content: Content) -> Self {
        Self { file, content }
    }

    /// Sends the bytes that are in the stream now. Returns false at its end.
    fn drain(&mut self, sender: &Sender) -> Result<bool> {
        let mut buffer = vec![0; 16384];
        // This is more than a pipe can hold. Without a limit, a busy writer would keep the loop
        // running.
        for _ in 0..64 {
            let mut descriptor = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            if poll(&mut descriptor, PollTimeout::ZERO)? == 0 {
                break;
            }
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => self.content.send(&buffer[..length], sender)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A read from a terminal fails with EIO when its last user is gone.
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn shell_status(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
