// SPDX-License-Identifier: GPL-2.0
//! Finds out what a machine was doing when it hung.
//!
//! The agent may be stuck like all other processes, so QEMU is asked. It returns the registers of
//! the CPUs, which needs no help from the guest. It also presses keys, and the kernel then dumps what
//! its tasks wait for. For this, the kernel needs one CPU that takes interrupts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::console::Console;

/// How long QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long the kernel may take to answer a key, on a fast machine. The kernel itself waits ten
/// seconds for CPUs that don't answer.
const KEY_LIMIT: Duration = Duration::from_secs(15);

/// What the kernel writes for a key that it does not know. It never knows [`LAST_KEY`].
const HELP: &str = "sysrq: HELP";

/// Keys to press with Alt and SysRq, and the first line that the kernel writes for each: blocked
/// tasks, the locks that are held, the backtraces of all CPUs.
const KEYS: [(char, &str); 3] = [
    ('w', "sysrq: Show Blocked State"),
    ('d', "sysrq: Show Locks Held"),
    ('l', "sysrq: Show backtrace of all active CPUs"),
];

/// The last key to press. The help that the kernel writes for it shows that the dump is over.
const LAST_KEY: char = 'h';

/// QEMU's monitor, which speaks JSON.
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// The monitor of a QEMU that has connected.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let stream = BufReader::new(stream);
        Ok(Self { stream })
    }

    /// Finds out what the machine does, as far as possible. The machine is of no use afterwards.
    ///
    /// The kernel's limits are multiplied by `factor`.
    pub fn dump(&mut self, console: &Console, has_keyboard: bool, factor: u32) -> Dump {
        let registers = self.registers();
        let keys = match &registers {
            Ok(_) if has_keyboard => self.press_keys(console, KEY_LIMIT * factor),
            Ok(_) => Err(anyhow::anyhow!("this machine has no keyboard")),
            Err(_) => Err(anyhow::anyhow!("no key was pressed")),
        };
        Dump { registers, keys }
    }

    fn registers(&mut self) -> Result<String> {
        // QEMU answers no other command before this one.
        self.execute("qmp_capabilities", json!({}))?;
        let arguments = json!({"command-line": "info registers -a"});
        let text = self.execute("human-monitor-command", arguments)?;
        let text = text.as_str().context("QEMU returned no registers")?;
        Ok(text.replace('\r', ""))
    }

    fn press_keys(&mut self, console: &Console, limit: Duration) -> Result<()> {
        console.dump_begins();
        for (key, header) in KEYS {
            self.press(key)?;
            // The keyboard keeps no more than two or three keys. Without lockdep, there is no key
            // for locks.
            let came = |line: &str| line.contains(header) || line.contains(HELP);
            if !console.dump_has(|lines| lines.iter().any(|line| came(line)), limit) {
                bail!("the kernel did not answer the key {key}");
            }
        }
        self.press(LAST_KEY)?;
        let (_, last) = KEYS[KEYS.len() - 1];
        let is_over = |lines: &[String]| {
            let mut lines = lines.iter();
            lines.any(|line| line.contains(last)) && lines.any(|line| line.contains(HELP))
        };
        if !console.dump_has(is_over, limit) {
            bail!("the kernel's dump did not end");
        }
        Ok(())
    }

    fn press(&mut self, key: char) -> Result<()> {
        let keys = ["alt".to_owned(), "sysrq".to_owned(), key.to_string()];
        let keys = keys.map(|key| json!({"type": "qcode", "data": key}));
        self.execute("send-key", json!({"keys": keys})).map(|_| ())
    }

    /// Makes QEMU execute a command, and returns the result.
    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({"execute": command, "arguments": arguments}).to_string();
        request.push('\n');
        self.stream.get_mut().write_all(request.as_bytes())?;
        loop {
            let mut line = String::new();
            let length = self.stream.read_line(&mut line);
            if length.context("QEMU's monitor does not answer")? == 0 {
                bail!("QEMU's monitor is gone");
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU did not execute {command}: {error}");
            }
            // Greetings and events come in between.
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }
}

/// What was found out about a machine.
pub struct Dump {
    registers: Result<String>,
    keys: Result<()>,
}

impl Dump {
    /// The text to add to the console's log.
    pub fn text(&self) -> String {
        match &self.registers {
            Ok(registers) => {
                format!("proc-events: the CPUs when the machine was given up:\n{registers}")
            }
            Err(_) => String::new(),
        }
    }

    /// A text for people that says where the dump is.
    pub fn summary(&self) -> String {
        match (&self.registers, &self.keys) {
            (Ok(_), Ok(())) => format!(
                "at the end of the console's log are the blocked tasks, the locks and the CPUs' \
                 backtraces (from '{}' on), and the CPUs' registers",
                KEYS[0].1
            ),
            (Ok(_), Err(error)) => format!(
                "at the end of the console's log are the CPUs' registers, but no dump of the \
                 kernel: {error:#}"
            ),
            (Err(error), _) => format!("there is no dump: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::thread;

    use super::*;

    /// A QEMU whose kernel writes these lines when these keys are pressed.
    fn qemu(stream: UnixStream, mut console: impl Write, answers: &[(&str, &str)]) {
        let mut stream = BufReader::new(stream);
        let send = |stream: &mut BufReader<UnixStream>, what: Value| {
            writeln!(stream.get_mut(), "{what}").unwrap();
        };
        send(&mut stream, json!({"QMP": {}}));
        let mut line = String::new();
        while stream.read_line(&mut line).unwrap() > 0 {
            let request: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            send(&mut stream, json!({"event": "RESET"}));
            let result = match request["execute"].as_str().unwrap() {
                "send-key" => {
                    let key = request["arguments"]["keys"][2]["data"].as_str().unwrap();
                    let answer = answers.iter().find(|(known, _)| *known == key);
                    if let Some((_, answer)) = answer {
                        writeln!(console, "{answer}").unwrap();
                    }
                    json!({})
                }
                "human-monitor-command" => json!("CPU#0\r\nRIP=1\r\n"),
                _ => json!({}),
            };
            send(&mut stream, json!({"return": result}));
        }
    }

    /// The dump of such a machine, and the console's log.
    fn dump_of(name: &str, answers: &'static [(&str, &str)], factor: u32) -> (Dump, String) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe().unwrap();
        let log = format!("dump-test-{name}-{}.log", std::process::id());
        let log = std::env::temp_dir().join(log);
        let console = Console::follow(reader, log.clone()).unwrap();
        let qemu = thread::spawn(move || qemu(theirs, writer, answers));
        let mut monitor = Monitor::new(ours).unwrap();
        let dump = monitor.dump(&console, true, factor);
        drop(monitor);
        qemu.join().unwrap();
        let transcript = console.end();
        assert!(transcript.verdict().is_none(), "a dump is no complaint");
        transcript.add(&dump.text());
        let text = std::fs::read_to_string(&log).unwrap();
        transcript.remove_log();
        (dump, text)
    }

    #[test]
    fn a_machine_that_answers_shows_what_its_tasks_do() {
        let answers = &[
            ("w", "[    1.0] sysrq: Show Blocked State\nCall Trace:"),
            ("d", "[    1.0] sysrq: HELP : no lockdep here"),
            ("l", "[    1.0] sysrq: Show backtrace of all active CPUs"),
            ("h", "[    1.0] sysrq: HELP : end"),
        ];
        let (dump, log) = dump_of("answers", answers, 1);
        assert!(dump.summary().contains("'sysrq: Show Blocked State'"));
        assert!(log.contains("HELP : end\n"), "{log}");
        assert!(log.ends_with("given up:\nCPU#0\nRIP=1\n"), "{log}");
    }

    #[test]
    fn a_machine_that_does_not_answer_has_registers() {
        let (dump, log) = dump_of("is-dead", &[], 0);
        let summary = dump.summary();
        assert!(summary.contains("did not answer the key w"), "{summary}");
        assert!(log.ends_with("RIP=1\n"), "{log}");
    }

    #[test]
    fn without_qemu_there_is_no_dump() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut monitor = Monitor::new(ours).unwrap();
        assert!(monitor.registers().is_err());
    }
}
