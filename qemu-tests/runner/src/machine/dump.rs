// SPDX-License-Identifier: GPL-2.0
//! What a machine that hangs was doing.
//!
//! The agent may be stuck with everybody else, so QEMU is asked: for the CPUs' registers, which need
//! nothing of the guest, and to press keys, by which the kernel dumps what its tasks wait for. The
//! kernel needs one CPU for that which takes interrupts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::console::Console;

/// How long QEMU may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long the kernel may take for a key, on a fast machine. It waits ten seconds itself for CPUs
/// that don't answer.
const KEY_LIMIT: Duration = Duration::from_secs(15);

/// What the kernel writes when it knows no such key, which [`LAST_KEY`] never is.
const HELP: &str = "sysrq: HELP";

/// Keys behind Alt and SysRq, and what the kernel writes first: blocked tasks, the locks that are
/// held, the backtraces of all CPUs.
const KEYS: [(char, &str); 3] = [
    ('w', "sysrq: Show Blocked State"),
    ('d', "sysrq: Show Locks Held"),
    ('l', "sysrq: Show backtrace of all active CPUs"),
];

/// What follows the help when the dump is over.
const LAST_KEY: char = 'h';

/// QEMU's monitor, which speaks JSON.
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Of a QEMU that has connected.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let stream = BufReader::new(stream);
        Ok(Self { stream })
    }

    /// What the machine does, as far as it can be learnt; it is of no use afterwards.
    ///
    /// `factor` is what the kernel's limits are multiplied with.
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
        // Nothing else is answered before that.
        self.execute("qmp_capabilities", json!({}))?;
        let arguments = json!({"command-line": "info registers -a"});
        let text = self.execute("human-monitor-command", arguments)?;
        let text = text.as_str().context("QEMU told no registers")?;
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

    /// Has a command executed, and returns what came of it.
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
                bail!("QEMU did not do {command}: {error}");
            }
            // Greetings and events come in between.
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }
}

/// What was learnt of a machine.
pub struct Dump {
    registers: Result<String>,
    keys: Result<()>,
}

impl Dump {
    /// What is to be added to the console's log.
    pub fn text(&self) -> String {
        match &self.registers {
            Ok(registers) => format!("proc-events: the CPUs when it was given up:\n{registers}"),
            Err(_) => String::new(),
        }
    }

    /// Where it is, for people.
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
        let say = |stream: &mut BufReader<UnixStream>, what: Value| {
            writeln!(stream.get_mut(), "{what}").unwrap();
        };
        say(&mut stream, json!({"QMP": {}}));
        let mut line = String::new();
        while stream.read_line(&mut line).unwrap() > 0 {
            let request: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            say(&mut stream, json!({"event": "RESET"}));
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
            say(&mut stream, json!({"return": result}));
        }
    }

    /// What comes of it.
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
    fn a_machine_that_answers_tells_what_its_tasks_do() {
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
