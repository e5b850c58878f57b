// SPDX-License-Identifier: GPL-2.0
//! What the kernel logs while a test runs, and lines that are added to its log.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

/// The kernel's log from now on.
pub struct Log(File);

impl Log {
    /// Begins with what is logged next.
    pub fn new() -> io::Result<Self> {
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut log = options.open("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    /// The records that were logged since the last call.
    pub fn records(&mut self) -> io::Result<Vec<String>> {
        let mut records = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    records.push(String::from_utf8_lossy(&record[..length]).into_owned());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(records),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Adds a line to the kernel's log. The console shows it, too.
pub fn say(line: &str) -> io::Result<()> {
    // The limit of a few lines per second is for each open file, so the file is opened anew.
    let mut log = File::options().write(true).open("/dev/kmsg")?;
    log.write_all(format!("<6>{line}\n").as_bytes())
}
