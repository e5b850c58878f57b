// SPDX-License-Identifier: GPL-2.0
//! The module's list of its listeners, in debugfs.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::{env, io};

use protocol::{BUILT_IN_VARIABLE, MODULE_VARIABLE};

/// Where the module shows its listeners.
const FILE: &str = "/sys/kernel/debug/proc_events/listeners";

/// A line of the list: a listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ListenerLine {
    /// The socket's port id.
    pub port_id: u32,
    /// The process that listened, by its pid in the initial pid namespace.
    pub pid: i32,
    /// The user against whose limit it counts, by the uid in the reader's user namespace.
    pub uid: u32,
    /// Inode of the pid namespace that it listened from.
    pub pid_ns: u64,
    /// Inode of its user namespace.
    pub user_ns: u64,
    /// Inode of the socket's network namespace.
    pub net_ns: u64,
    /// How many events were sent to it.
    pub delivered: u64,
    /// How many events it lost.
    pub lost: u64,
    /// The mask of the events that it listens for.
    pub mask: u32,
    /// The flags of its request, `PROC_CN_LISTEN_*`.
    pub flags: u32,
    /// The id of the cgroup that it asked for, 0 for none.
    pub cgroup: u64,
}

/// All listeners.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listing {
    /// The total that the kernel reports.
    pub count: usize,
    /// A line for each listener.
    pub lines: Vec<ListenerLine>,
}

impl Listing {
    /// Reads the list.
    pub fn read() -> io::Result<Self> {
        Self::parse(&text()?)
    }

    /// Reads the list from a file that [`open`] opened, perhaps in another process. A process that
    /// is no longer root could not open it.
    pub fn read_from(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; LONGEST];
        let length = file.read_at(&mut bytes, 0)?;
        Self::parse(&String::from_utf8_lossy(&bytes[..length]))
    }

    fn parse(text: &str) -> io::Result<Self> {
        let malformed =
            |line: &str| Error::new(ErrorKind::InvalidData, format!("{FILE}: a line {line:?}"));
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let count = first
            .strip_prefix("listeners: ")
            .and_then(|count| count.parse().ok())
            .ok_or_else(|| malformed(first))?;
        let head = lines.next().unwrap_or_default();
        let columns: Vec<_> = head.split_whitespace().collect();
        if columns != COLUMNS {
            return Err(malformed(head));
        }
        let lines = lines
            .map(|line| ListenerLine::parse(line).ok_or_else(|| malformed(line)))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self { count, lines })
    }

    /// The line of the socket with this port id.
    pub fn of(port_id: u32) -> io::Result<ListenerLine> {
        let listing = Self::read()?;
        let line = listing.lines.iter().find(|line| line.port_id == port_id);
        line.copied().ok_or_else(|| {
            let lines = &listing.lines;
            Error::new(
                ErrorKind::NotFound,
                format!("{FILE}: no port id {port_id} in {lines:?}"),
            )
        })
    }
}

/// More bytes than a listing has in any test.
const LONGEST: usize = 1 << 21;

const COLUMNS: [&str; 11] = [
    "port_id",
    "pid",
    "uid",
    "pid_ns",
    "user_ns",
    "net_ns",
    "delivered",
    "lost",
    "mask",
    "flags",
    "cgroup",
];

impl ListenerLine {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        let [
            port_id,
            pid,
            uid,
            pid_ns,
            user_ns,
            net_ns,
            delivered,
            lost,
            mask,
            flags,
            cgroup,
        ] = words.as_slice()
        else {
            return None;
        };
        Some(Self {
            port_id: port_id.parse().ok()?,
            pid: pid.parse().ok()?,
            uid: uid.parse().ok()?,
            pid_ns: pid_ns.parse().ok()?,
            user_ns: user_ns.parse().ok()?,
            net_ns: net_ns.parse().ok()?,
            delivered: delivered.parse().ok()?,
            lost: lost.parse().ok()?,
            mask: bits(mask)?,
            flags: bits(flags)?,
            cgroup: cgroup.parse().ok()?,
        })
    }
}

fn bits(word: &str) -> Option<u32> {
    u32::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// Opens the list.
pub fn open() -> io::Result<File> {
    File::open(FILE).map_err(|error| Error::new(error.kind(), format!("{FILE}: {error}")))
}

fn text() -> io::Result<String> {
    io::read_to_string(open()?)
}

/// Whether the kernel under test has the handler, and so the listing. The stock kernel does not.
pub fn is_there() -> bool {
    env::var_os(MODULE_VARIABLE).is_some() || is_built_in()
}

/// Whether the handler is built into the kernel.
pub fn is_built_in() -> bool {
    env::var_os(BUILT_IN_VARIABLE).is_some()
}

/// A check for listeners that are left although their processes are gone. Each call reports only
/// new ones, so that a leak is a failure of the test that caused it.
pub fn leak_check() -> impl FnMut() -> Result<(), String> {
    let mut known = 0;
    move || {
        if !is_there() {
            return Ok(());
        }
        let text = text().map_err(|error| error.to_string())?;
        let listing = Listing::parse(&text).map_err(|error| error.to_string())?;
        let count = listing.count.max(listing.lines.len());
        let is_leak = count > known;
        known = count;
        if is_leak {
            Err(format!("listeners are left without a process:\n{text}"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "   port_id        pid        uid     pid_ns    user_ns     net_ns    delivered         lost       mask      flags     cgroup";

    #[test]
    fn each_column_has_its_place() {
        let text = format!("listeners: 1\n{HEAD}\n 7 6 8 5 4 3 2 1 0xe00003c7 0x00000004 9\n");
        let line = ListenerLine {
            port_id: 7,
            pid: 6,
            uid: 8,
            pid_ns: 5,
            user_ns: 4,
            net_ns: 3,
            delivered: 2,
            lost: 1,
            mask: 0xe000_03c7,
            flags: 4,
            cgroup: 9,
        };
        let listing = Listing {
            count: 1,
            lines: vec![line],
        };
        assert_eq!(Listing::parse(&text).unwrap(), listing);
    }

    #[test]
    fn other_listings_are_refused() {
        for text in ["", "listeners: x\n", "listeners: 0\nport_id\n"] {
            assert!(Listing::parse(text).is_err(), "{text}");
        }
        let short = format!("listeners: 1\n{HEAD}\n 7 6 5\n");
        assert!(Listing::parse(&short).is_err());
    }
}
