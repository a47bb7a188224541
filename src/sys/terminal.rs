//! Terminals: window size and raw mode (ioctl_tty(2), termios(3)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::libc::winsize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

mod ioctl {
    nix::ioctl_read_bad!(get_window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);
    nix::ioctl_write_ptr_bad!(set_window_size, nix::libc::TIOCSWINSZ, nix::libc::winsize);
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Returns the terminal's size.
///
/// # Errors
/// `ENOTTY` if the descriptor is no terminal.
pub fn window_size(terminal: BorrowedFd) -> nix::Result<WindowSize> {
    let mut size = winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes one winsize into `size`, which outlives the call.
    unsafe { ioctl::get_window_size(terminal.as_raw_fd(), &mut size)? };
    Ok(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Sets the terminal's size. Its foreground processes get SIGWINCH.
///
/// # Errors
/// `ENOTTY` if the descriptor is no terminal.
pub fn set_window_size(terminal: BorrowedFd, size: WindowSize) -> nix::Result<()> {
    let size = winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads one winsize that outlives the call.
    unsafe { ioctl::set_window_size(terminal.as_raw_fd(), &size)? };
    Ok(())
}

/// Keeps a terminal in raw mode, except for the translation of its output. Dropping it restores the
/// former settings.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    former: Termios,
}

impl RawMode {
    /// Switches the terminal to raw mode.
    ///
    /// # Errors
    /// `ENOTTY` if the descriptor is no terminal.
    pub fn enter(terminal: BorrowedFd) -> io::Result<Self> {
        let terminal = terminal.try_clone_to_owned()?;
        let former = tcgetattr(&terminal)?;
        let mut raw = former.clone();
        cfmakeraw(&mut raw);
        // The output of a container's terminal has plain newlines ([`clear_onlcr`]).
        raw.output_flags
            .insert(nix::sys::termios::OutputFlags::OPOST);
        tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Self { terminal, former })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone. Nothing can be done about that.
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.former);
    }
}

/// Switches off the translation of newlines to CR-LF on output (ONLCR), as runc does for a
/// container's terminal. The terminal at the other end of the copy translates already.
///
/// # Errors
/// `ENOTTY` if the descriptor is no terminal.
pub fn clear_onlcr(terminal: BorrowedFd) -> nix::Result<()> {
    let mut settings = tcgetattr(terminal)?;
    settings
        .output_flags
        .remove(nix::sys::termios::OutputFlags::ONLCR);
    tcsetattr(terminal, SetArg::TCSANOW, &settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn size_and_modes_of_a_pseudoterminal() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let size = WindowSize {
            rows: 33,
            columns: 101,
        };
        set_window_size(pty.master.as_fd(), size).unwrap();
        assert_eq!(window_size(pty.slave.as_fd()).unwrap(), size);
        let before = tcgetattr(&pty.slave).unwrap();
        let raw = RawMode::enter(pty.slave.as_fd()).unwrap();
        assert_ne!(tcgetattr(&pty.slave).unwrap(), before);
        drop(raw);
        assert_eq!(tcgetattr(&pty.slave).unwrap(), before);
    }
}
