// SPDX-License-Identifier: GPL-2.0
//! The contract: what the kernel, the module and this project promise, line by line.
//!
//! Tests name the lines that they prove. A test that names an unknown line does not compile.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

/// Defines the lines, in their order. The commands after `by` show a line outside of the tests in
/// the VM, in part or as a whole.
macro_rules! lines {
    ($($line:ident $promise:literal $(by $($command:literal),+)?;)+) => {
        /// A line of the contract.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
        pub enum Line {
            $(#[doc = $promise] $line,)+
        }

        impl Line {
            /// All of them, in their order.
            pub const ALL: &[Self] = &[$(Self::$line),+];

            /// The promise.
            pub const fn promise(self) -> &'static str {
                match self {
                    $(Self::$line => $promise,)+
                }
            }

            /// The commands that show it outside of the tests in the VM. Most lines have none.
            pub const fn shown_by(self) -> &'static [&'static str] {
                match self {
                    $(Self::$line => &[$($($command),+)?],)+
                }
            }
        }
    };
}

lines! {
    C1 "Each event is one datagram of 76 bytes, in today's layout.";
    C2 "The sender's address has port id 0 and the group of process events.";
    C3 "An event has its CPU, its CLOCK_MONOTONIC time, and 0 in bytes that it does not define.";
    C4 "An event's acknowledgement number is 0.";
    C5 "Sequence numbers count for each listener and CPU; each loss is a gap, each gap is a loss.";
    C6 "A loss sets ENOBUFS on the listener's socket, unless the listener set NETLINK_NO_ENOBUFS.";
    C7 "FORK reports every fork, vfork, clone and new thread.";
    C8 "EXEC reports every program that is executed.";
    C9 "UID reports a change of any of the four user ids.";
    C10 "GID reports a change of any of the four group ids.";
    C11 "SID reports each successful setsid() exactly once, with what the leader left.";
    C12 "PTRACE reports attaching and detaching.";
    C13 "COMM reports each change of a name.";
    C14 "COREDUMP reports each core dump.";
    C15 "EXIT reports code, signal and parent, also for a child that is reaped immediately.";
    C16 "NONZERO_EXIT filters exits.";
    C17 "The end of a session is reported to listeners that ask for it.";
    C18 "LISTEN and IGNORE work in both forms; another LISTEN changes the mask and loses nothing.";
    C19 "Each request has exactly one answer, which only the requester gets, and which no check \
         takes for a gap.";
    C20 "An invalid request changes nothing; answers contain a word of features.";
    C21 "Each id that a listener gets is from its own namespaces; the number of a process that it \
         cannot see is 0.";
    C22 "A listener gets an event only if its pid namespace sees the subject.";
    C23 "LISTEN works in any pid, user and network namespace, unless C46 refuses it.";
    C24 "A socket that never sent LISTEN gets nothing.";
    C25 "A namespace goes away cleanly, no matter whether its processes, its listeners or the \
         module go first.";
    C26 "/proc/net/connector lists cn_proc in every network namespace.";
    C27 "The count is the number of listening sockets, however they started or stopped listening.";
    C28 "A hook for events that no listener asked for is a branch that is patched out; setsid() and \
         exit also store a pointer and look at it."
        by "make bench";
    C29 "The cost of an event grows with the number of listeners that get it."
        by "make bench";
    C30 "Root sees each listener, its mask, its namespaces, and its delivered and lost events.";
    C31 "A parameter decides whether users may listen; a limit applies to the listeners of a user.";
    C32 "The module can be loaded and unloaded under load, and stays while there is a listener.";
    C33 "LISTEN without a handler loads the module, and is answered in any case.";
    C34 "Everything works with PREEMPT_RT, and without SMP, namespaces or jump labels."
        by "make test-all";
    C40 "The series applies to an unmodified tree, builds and boots after each patch, and passes \
         checkpatch."
        by "make check", "scripts/patches bisect";
    C41 "Only the kernel's abstractions have unsafe code, and they have their own tests."
        by "make check";
    C42 "Formatters and lints are silent; C builds with W=1 and sparse without a new message."
        by "make check";
    C43 "Logic that needs no kernel is separate, and its tests run on the host."
        by "make check";
    C44 "The series has no Signed-off-by: the person who submits it adds one."
        by "make check";
    C45 "Each pid that a FORK reported has exactly one EXIT, when it stops naming a task; no EXIT \
         names a process that continues.";
    C46 "LISTEN is refused unless the sender's user namespace, or the owner of its socket's \
         network namespace, owns its pid namespace or is an ancestor of the owner.";
    C47 "When FORK is reported, the child has all that it starts with, including its cgroup.";
    C48 "A message's credentials are pid 0 and the ids of root in the listener's user namespace.";
    C49 "Where no order between events is promised, the interface document says so.";
    C50 "A request may have flags, and may become longer; bytes that the kernel does not know have \
         to be 0.";
    C51 "If the listener asks for it, forks and exits are those of processes: each has one EXIT, \
         when it can be waited for, with the status that wait(2) returns.";
    C52 "If the listener asks for it, an identity follows each event: the numbers of pidfds, which \
         are never reused, the cgroup, and the start time.";
    C53 "If the listener asks for it, it gets only the events of one cgroup and of those below it.";
    C54 "If the listener asks for it, unread events share a datagram: none is delayed, read twice \
         or truncated."
        by "make bench";
    C55 "A listener that asks for the state gets all existing processes, at its own pace; state \
         and events together miss no process.";
    C56 "A request and the end of a listener cost about the same beside any number of others."
        by "make bench";
    C57 "No LISTEN, close(2), exit or exec waits for an RCU grace period; ending a listener cannot \
         fail.";
    C58 "A listener's memory is charged to its creator's cgroup, and a listener counts for its creator \
         along the user namespaces.";
    C60 "Without the new handler, process events are those of the stock kernel, at its costs."
        by "make test-all", "make bench";
    C61 "The last patch adds the module to the kernel's source; it works the same when it is built in."
        by "make test-all", "make check";
    C62 "Everything works on arm64 as on x86-64."
        by "make test-all";
    C63 "Everything works with a distribution's configuration, within what its security modules \
         allow, and for 32-bit programs."
        by "make test-all";
    C64 "Clients of other projects work unchanged, on the host and in a container.";
    C65 "Every line of the contract has a test that declares it, or a command that shows it."
        by "make check";
    C66 "Each page of results names the commit and the command that made it, and the kernels."
        by "make test-all", "make bench";
}

impl Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_travel_as_they_are_written() {
        assert_eq!(serde_json::to_string(&Line::C45).unwrap(), "\"C45\"");
        assert_eq!(serde_json::from_str::<Line>("\"C45\"").unwrap(), Line::C45);
        assert!(serde_json::from_str::<Line>("\"C99\"").is_err());
    }

    #[test]
    fn each_promise_is_a_sentence_of_its_own() {
        for line in Line::ALL {
            let promise = line.promise();
            assert!(promise.ends_with('.') && !promise.contains("  "), "{line}");
            let same = Line::ALL.iter().filter(|one| one.promise() == promise);
            assert_eq!(same.count(), 1, "{line}");
        }
    }

    /// A target of the Makefile, or a script.
    fn exists(command: &str) -> bool {
        // This reads the variable when the test runs, because clones of the project share builds.
        let package = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        let project = Path::new(&package).join("../..");
        match command.split_once(' ') {
            Some(("make", target)) => std::fs::read_to_string(project.join("Makefile"))
                .unwrap()
                .lines()
                .filter_map(|line| line.strip_prefix(".PHONY:"))
                .any(|targets| targets.split(' ').any(|known| known == target)),
            Some((script, _)) => project.join(script).is_file(),
            None => false,
        }
    }

    #[test]
    fn commands_that_show_lines_exist() {
        for line in Line::ALL {
            for command in line.shown_by() {
                assert!(exists(command), "{line}: {command}");
            }
        }
        assert!(!exists("make nothing") && !exists("scripts/nothing at all"));
    }
}
