// SPDX-License-Identifier: GPL-2.0
//! Events in words.

use nix::sys::signal::Signal;

use crate::wire::{Event, Left, Task};

/// A sentence about an event.
pub fn sentence(event: &Event) -> String {
    match *event {
        Event::Ack { err: 0 } => "request acknowledged".to_owned(),
        Event::Ack { err } => format!("request refused with errno {err}"),
        Event::Fork { parent, child } if child.pid != child.tgid => {
            let process = child.tgid;
            format!(
                "{process} has a new thread {} (parent {})",
                child.pid, parent.tgid
            )
        }
        Event::Fork { parent, child } => format!("{} is a new child of {}", child.pid, parent.tgid),
        Event::Exec { task } => format!("{} runs another program", name(task)),
        Event::Uid {
            task,
            real,
            effective,
        } => {
            format!(
                "{} has real uid {real} and effective uid {effective}",
                name(task)
            )
        }
        Event::Gid {
            task,
            real,
            effective,
        } => {
            format!(
                "{} has real gid {real} and effective gid {effective}",
                name(task)
            )
        }
        Event::Sid { task, left } if left == Left::default() => {
            format!("{} became a session leader", name(task))
        }
        Event::Sid { task, left } => format!(
            "{} became a session leader (parent {}, left session {} and process group {})",
            name(task),
            left.parent_tgid,
            left.session,
            left.process_group
        ),
        Event::Ptrace {
            task,
            tracer: Task::NONE,
        } => {
            format!("{} is no longer traced", name(task))
        }
        Event::Ptrace { task, tracer } => format!("{} is traced by {}", name(task), name(tracer)),
        Event::Comm { task, comm } => {
            let text = String::from_utf8_lossy(comm.name());
            format!("{} is called \"{}\"", name(task), text.escape_debug())
        }
        Event::Coredump { task, parent } => {
            format!("{} dumps core (parent {})", name(task), parent.tgid)
        }
        Event::Exit {
            task, code, parent, ..
        } => {
            format!("{} {} (parent {})", name(task), ending(code), parent.tgid)
        }
        Event::SessionEnd { task, code, .. } => {
            format!("session leader {} {}", name(task), ending(code))
        }
        Event::Process {
            task,
            parent,
            session,
            process_group,
        } => format!(
            "{} is there (parent {}, session {session}, process group {process_group})",
            name(task),
            parent.tgid
        ),
    }
}

fn name(task: Task) -> String {
    if task.pid == task.tgid {
        task.pid.to_string()
    } else {
        format!("thread {} of {}", task.pid, task.tgid)
    }
}

/// The meaning of a status of wait(2).
pub fn ending(code: u32) -> String {
    match code & 0x7f {
        0 => format!("ended with status {}", code >> 8 & 0xff),
        number => {
            let signal = Signal::try_from(number as i32);
            signal.map_or(format!("was killed by signal {number}"), |signal| {
                format!("was killed by {signal}")
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::scenario::comm;

    #[test]
    fn sentences_name_the_tasks() {
        let parent = Task::leader(1);
        let task = Task::leader(20);
        let thread = Task { pid: 21, tgid: 20 };
        let left = Left::default();
        assert_eq!(
            sentence(&Event::Sid { task, left }),
            "20 became a session leader"
        );
        assert_eq!(
            sentence(&Event::Fork {
                parent,
                child: thread
            }),
            "20 has a new thread 21 (parent 1)"
        );
        let exit = |code| {
            sentence(&Event::Exit {
                task,
                code,
                signal: 17,
                parent,
            })
        };
        assert_eq!(exit(7 << 8), "20 ended with status 7 (parent 1)");
        assert_eq!(exit(0x86), "20 was killed by SIGABRT (parent 1)");
        let ended = Event::SessionEnd {
            task,
            code: 9,
            signal: 17,
        };
        assert_eq!(sentence(&ended), "session leader 20 was killed by SIGKILL");
        let there = Event::Process {
            task,
            parent,
            session: 3,
            process_group: 4,
        };
        assert_eq!(
            sentence(&there),
            "20 is there (parent 1, session 3, process group 4)"
        );
        assert_eq!(
            sentence(&Event::Comm {
                task: thread,
                comm: comm("a\"b")
            }),
            "thread 21 of 20 is called \"a\\\"b\""
        );
    }
}
