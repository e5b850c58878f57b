// SPDX-License-Identifier: GPL-2.0
//! Messages between the host runner and the agent in the guest.
//!
//! They travel as frames over one virtio-serial port, so that a command's output, its exit status
//! and the agent's heartbeats arrive in the order in which they were sent.
//!
//! A frame is a tag (one byte), the payload's length (four bytes, little endian) and the payload:
//! the bytes themselves for the streams, JSON for everything else.

pub mod bench;
pub mod clock;
pub mod complaints;
pub mod contract;
mod json;
pub mod results;

use std::io::{self, ErrorKind, Read, Write};

use serde::{Deserialize, Serialize};

use contract::Line;
use json::{from_json, json};
use results::Record;

/// Name of the virtio-serial port, as found in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "proc-events.agent";

/// Name of the environment variable with the path of the module, for commands in the guest.
pub const MODULE_VARIABLE: &str = "PROC_EVENTS_MODULE";

/// Name of the environment variable that is set if the kernel has the handler built in instead.
pub const BUILT_IN_VARIABLE: &str = "PROC_EVENTS_BUILT_IN";

/// Name of the environment variable with the kernel's build directory.
pub const BUILD_VARIABLE: &str = "PROC_EVENTS_BUILD";

/// Name of the environment variable with the number of the file descriptor to which a command in
/// the guest writes [`Record`]s. It is not set if no process reads them.
pub const RESULTS_VARIABLE: &str = "PROC_EVENTS_RESULTS";

/// Exit status of the guest program if it ended early because it had to kill a test. What the test
/// changed may still be changed.
pub const TEST_KILLED: u8 = 4;

/// How often the agent sends a heartbeat.
pub const HEARTBEAT_SECONDS: u16 = 5;

/// Limits how much memory a damaged length can make the reader allocate.
const PAYLOAD_LIMIT: usize = 1 << 20;

/// The only job of the agent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Job {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory.
    pub directory: String,
    /// Environment, instead of that of the guest's init.
    pub environment: Vec<(String, String)>,
    /// Kernel module to load first.
    pub module: Option<String>,
    /// Whether the runner wants the command's [`Record`]s.
    pub results: bool,
    /// Size of the command's terminal. Without a size, the command gets pipes and no input.
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A message of the runner.
#[derive(Clone, Debug, PartialEq)]
pub enum ToGuest {
    /// Start this job.
    Job(Job),
    /// The user's input.
    Input(Vec<u8>),
    /// The user's terminal changed its size.
    Resize(TerminalSize),
}

/// A message of the agent.
#[derive(Clone, Debug, PartialEq)]
pub enum FromGuest {
    /// The agent runs and waits for its job.
    Hello,
    /// The module is loaded; `insmod` took this many microseconds of the guest's time.
    ModuleLoaded(u64),
    /// The command wrote this to its standard output.
    Output(Vec<u8>),
    /// The command wrote this to its standard error.
    Errors(Vec<u8>),
    /// The command has a result.
    Record(Record),
    /// The command ended with this status, as a shell reports it (128 + signal if it was killed).
    Exited(i32),
    /// There is nothing else to report, but the guest is alive.
    Heartbeat,
    /// The agent could not do its job, for this reason.
    Failed(String),
}

/// A message that can be sent over the port.
pub trait Frame: Sized {
    /// Tag and payload of this message.
    fn encode(&self) -> (u8, Vec<u8>);

    /// The message with this tag and payload.
    fn decode(tag: u8, payload: Vec<u8>) -> io::Result<Self>;

    /// Sends this message.
    fn write_to(&self, mut port: impl Write) -> io::Result<()> {
        let (tag, payload) = self.encode();
        let mut frame = Vec::with_capacity(5 + payload.len());
        frame.push(tag);
        frame.extend((payload.len() as u32).to_le_bytes());
        frame.extend(payload);
        port.write_all(&frame)?;
        port.flush()
    }

    /// Receives one message; `None` if the other side is gone.
    fn read_from(mut port: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 5];
        match port.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let [tag, length @ ..] = header;
        let length = u32::from_le_bytes(length) as usize;
        if length > PAYLOAD_LIMIT {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        port.read_exact(&mut payload)?;
        Self::decode(tag, payload).map(Some)
    }
}

impl Frame for ToGuest {
    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Job(job) => (b'J', json(job)),
            Self::Input(bytes) => (b'I', bytes.clone()),
            Self::Resize(size) => (b'R', json(size)),
        }
    }

    fn decode(tag: u8, payload: Vec<u8>) -> io::Result<Self> {
        Ok(match tag {
            b'J' => Self::Job(from_json(&payload)?),
            b'I' => Self::Input(payload),
            b'R' => Self::Resize(from_json(&payload)?),
            _ => return Err(invalid(format!("a frame with tag {tag}"))),
        })
    }
}

impl Frame for FromGuest {
    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Hello => (b'h', Vec::new()),
            Self::ModuleLoaded(microseconds) => (b'm', json(microseconds)),
            Self::Output(bytes) => (b'o', bytes.clone()),
            Self::Errors(bytes) => (b'e', bytes.clone()),
            Self::Record(record) => (b'r', json(record)),
            Self::Exited(status) => (b'x', json(status)),
            Self::Heartbeat => (b'b', Vec::new()),
            Self::Failed(reason) => (b'f', json(reason)),
        }
    }

    fn decode(tag: u8, payload: Vec<u8>) -> io::Result<Self> {
        Ok(match tag {
            b'h' => Self::Hello,
            b'm' => Self::ModuleLoaded(from_json(&payload)?),
            b'o' => Self::Output(payload),
            b'e' => Self::Errors(payload),
            b'r' => Self::Record(from_json(&payload)?),
            b'x' => Self::Exited(from_json(&payload)?),
            b'b' => Self::Heartbeat,
            b'f' => Self::Failed(from_json(&payload)?),
            _ => return Err(invalid(format!("a frame with tag {tag}"))),
        })
    }
}

/// What `list --json` prints about one test.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TestDescription {
    /// Module and name, as in `sid::comes_for_the_setsid_program`.
    pub name: String,
    /// The expected result on the unpatched kernel.
    pub stock: StockExpectation,
    /// Time limit in seconds, before the runner's factor for slow machines.
    pub limit_seconds: u64,
    /// The lines of the contract that it proves.
    pub covers: Vec<Line>,
}

/// What the unpatched kernel does in a test: a claim that the stock run checks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StockExpectation {
    /// It behaves the same.
    Passes,
    /// It fails the test, for this reason.
    Fails(String),
    /// The test makes no sense there, for this reason.
    NotApplicable(String),
}

fn invalid(what: String) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the other side sent {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Frame + PartialEq + std::fmt::Debug>(messages: &[T]) {
        let mut port = Vec::new();
        for message in messages {
            message.write_to(&mut port).unwrap();
        }
        let mut port = port.as_slice();
        for message in messages {
            assert_eq!(T::read_from(&mut port).unwrap().as_ref(), Some(message));
        }
        assert_eq!(T::read_from(&mut port).unwrap(), None);
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        round_trip(&[
            FromGuest::Hello,
            FromGuest::ModuleLoaded(1234),
            FromGuest::Output(b"ok 1 a\n".to_vec()),
            FromGuest::Record(Record::Plan(3)),
            FromGuest::Errors(Vec::new()),
            FromGuest::Exited(-1),
            FromGuest::Heartbeat,
            FromGuest::Failed("no \"module\"".into()),
        ]);
        let size = TerminalSize {
            rows: 24,
            columns: 80,
        };
        round_trip(&[
            ToGuest::Job(Job {
                command: vec!["sh".into(), "-c".into(), "echo 'a b'".into()],
                environment: vec![("PATH".into(), "/bin".into())],
                terminal: Some(size),
                ..Job::default()
            }),
            ToGuest::Input(vec![3]),
            ToGuest::Resize(size),
        ]);
    }

    #[test]
    fn a_damaged_frame_is_an_error() {
        assert!(FromGuest::read_from([b'?', 0, 0, 0, 0].as_slice()).is_err());
        assert!(FromGuest::read_from([b'o', 0xff, 0xff, 0xff, 0xff].as_slice()).is_err());
        assert!(FromGuest::read_from([b'o', 4, 0, 0, 0, 1].as_slice()).is_err());
        assert!(FromGuest::read_from([b'x', 1, 0, 0, 0, b'x'].as_slice()).is_err());
    }
}
