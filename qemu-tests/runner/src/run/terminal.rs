// SPDX-License-Identifier: GPL-2.0
//! The user's terminal, passed through to a shell in the guest.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::pty::Winsize;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use protocol::{Frame, TerminalSize, ToGuest};

nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, Winsize);

/// The terminal in raw mode, until dropped.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches the terminal to raw mode, and sends the user's input and the terminal's size to the
    /// guest.
    pub fn hand_over(port: UnixStream) -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("cannot set the terminal's mode")?;
        let keyboard = port.try_clone()?;
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
                // The guest may be gone already; the main thread notices.
                let input = ToGuest::Input(buffer[..length].to_vec());
                if input.write_to(&keyboard).is_err() {
                    break;
                }
            }
        });
        thread::spawn(move || {
            let changes = SigSet::from(Signal::SIGWINCH);
            while changes.wait().is_ok() {
                if let Ok(size) = size() {
                    let _ = ToGuest::Resize(size).write_to(&port);
                }
            }
        });
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Checks that there is a terminal. It has to be called before any thread is started: a change of
/// the size sends a signal, which only the thread that waits for it may get.
pub fn prepare() -> Result<TerminalSize> {
    ensure!(
        io::stdin().is_terminal() && io::stdout().is_terminal(),
        "a shell needs a terminal: give a command, as in: make boot CMD='uname -a'"
    );
    SigSet::from(Signal::SIGWINCH).thread_block()?;
    size()
}

fn size() -> Result<TerminalSize> {
    let mut size = Winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: The structure is what this request fills in, and it outlives the call.
    unsafe { get_window_size(io::stdout().as_raw_fd(), &raw mut size) }
        .context("cannot read the terminal's size")?;
    Ok(TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}
