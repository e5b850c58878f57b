// SPDX-License-Identifier: GPL-2.0
//! The contract: what the kernel, the module and this project promise, line by line.
//!
//! Tests name the lines that they prove, so that a line is known by the compiler or not at all.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

/// Makes the lines, in their order. After `by` stand the commands that show a line outside of the
/// tests in the VM, in part or as a whole.
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

            /// What is promised.
            pub const fn promise(self) -> &'static str {
                match self {
                    $(Self::$line => $promise,)+
                }
            }

            /// The commands that show it outside of the tests in the VM; none for most.
            pub const fn shown_by(self) -> &'static [&'static str] {
                match self {
                    $(Self::$line => &[$($($command),+)?],)+
                }
            }
        }
    };
}

lines! {
    C1 "One event a datagram of 76 bytes, in the layout of today.";
    C2 "The sender's address has port id 0 and the group of process events.";
    C3 "CPU, CLOCK_MONOTONIC time, and zero in every byte that the event does not define.";
    C4 "An event's acknowledgement number is 0.";
    C5 "Numbers count for each listener and CPU; every loss is a gap and every gap a loss.";
    C6 "A loss sets ENOBUFS on that listener, unless it asked for NETLINK_NO_ENOBUFS.";
    C7 "FORK for every fork, vfork, clone and thread.";
    C8 "EXEC for every program that is executed.";
    C9 "UID when one of the four user ids changes.";
    C10 "GID when one of the four group ids changes.";
    C11 "SID exactly once for each successful setsid(), with what the leader left.";
    C12 "PTRACE for attaching and detaching.";
    C13 "COMM when a name changes.";
    C14 "COREDUMP when a core is dumped.";
    C15 "EXIT with code, signal and parent, also of a child that was reaped at once.";
    C16 "NONZERO_EXIT filters exits.";
    C17 "The end of a session, for those who ask.";
    C18 "LISTEN and IGNORE in both forms; LISTEN again changes the mask and loses nothing.";
    C19 "Each request has exactly one answer, to the requester alone, that breaks no gap check.";
    C20 "A request that makes no sense changes nothing; answers carry a feature word.";
    C21 "Every id that a listener gets is its own namespaces'; what it cannot see is 0.";
    C22 "A listener gets an event only if its pid namespace sees the subject.";
    C23 "LISTEN works from any pid, user and network namespace, but for C46.";
    C24 "A socket that never sent LISTEN gets nothing.";
    C25 "A namespace goes away cleanly, whatever goes first.";
    C26 "/proc/net/connector lists cn_proc in every network namespace.";
    C27 "The count is the number of sockets that listen, however they came to or ceased to.";
    C28 "A hook that nobody asked for is a branch that is patched out."
        by "make bench";
    C29 "An event's cost grows with the listeners that get it."
        by "make bench";
    C30 "Root sees each listener, its mask, its namespaces, and its delivered and lost events.";
    C31 "A parameter decides whether users may listen, and a limit how many listeners one may have.";
    C32 "The module loads and unloads under load, and stays while somebody listens.";
    C33 "LISTEN without a handler loads the module, and is answered in any case.";
    C34 "Works with PREEMPT_RT, and without SMP, namespaces or jump labels."
        by "make test-all";
    C40 "The series applies to an unmodified tree, builds and boots after each patch, and passes \
         checkpatch."
        by "make check", "scripts/patches bisect";
    C41 "Unsafe code is in the kernel's abstractions alone, which have tests of their own."
        by "make check";
    C42 "Formatters and lints are silent; C builds with W=1 and sparse without a new message."
        by "make check";
    C43 "Logic that needs no kernel is separate, and its tests run on the host."
        by "make check";
    C44 "The series has no Signed-off-by: whoever submits it signs it off."
        by "make check";
    C45 "Each number that a FORK announced has exactly one EXIT, told when it stops naming a task, \
         and none names a process that goes on.";
    C46 "LISTEN is refused unless the sender's user namespace, or the owner of its socket's network \
         namespace, owns its pid namespace or lies above the owner.";
    C47 "When FORK is told, the child has all that it starts with, its cgroup included.";
    C48 "A message's credentials are pid 0 and the ids of root in the listener's user namespace.";
    C49 "Where no order between events is promised, the interface document says so.";
    C50 "A request may have flags, and become longer; what the kernel does not know of it has to be 0.";
    C51 "Forks and exits are those of processes, if the listener asks for it: EXIT comes once for each, \
         when it can be waited for, and has the status that wait(2) gives.";
    C52 "An identity follows each event, if the listener asks for it: numbers that are never used again, \
         as pidfds have them, the cgroup, and the start time.";
    C53 "Only events of one cgroup and of those below it come, if the listener asks for it.";
    C54 "Unread events share a datagram, if the listener asks for it: nothing is delayed, read twice or \
         cut."
        by "make bench";
    C55 "The state: a listener that asks for it is told which processes there are, at its own pace, and \
         state and events together lack nobody.";
    C56 "A request and the end of a listener cost what is their own, beside however many others."
        by "make bench";
    C57 "No LISTEN, close(2), exit or exec waits for an RCU grace period; an end cannot fail.";
    C58 "What a listener takes is charged to its creator, along the user namespaces.";
    C63 "A distribution's configuration, with what its security modules decide, and 32-bit programs, \
         too."
        by "make test-all";
    C64 "Clients that nobody here wrote work unchanged, on the host and in a container.";
    C65 "Every line of the contract has a test that declares it, or a command that shows it."
        by "make check";
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
        // As it is when the test runs: clones of the project share what is built.
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
