//! A terminal for a program: a real pseudo-terminal, and an emulator that reads what is written to it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZero,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    pty::{Winsize, openpty},
    sys::{
        signal::Signal,
        termios::{Termios, tcgetattr},
    },
};

use crate::program::send;

/// How long something may take to be on screen: the kernel verifies the programs, which is slow on a small
/// machine.
const TIMEOUT: Duration = Duration::from_mins(1);

/// `include/uapi/asm-generic/ioctls.h`: what `vhangup()` does, for the terminal of the descriptor.
const TIOCVHANGUP: libc::Ioctl = 0x5437;

/// What an emulator made of the output so far.
struct Output {
    emulator: vt100::Parser,
    bytes: Vec<u8>,
}

fn size_of(cells: u16) -> NonZero<u16> {
    NonZero::new(cells).expect("a terminal has cells")
}

/// A terminal with a program in the foreground. Dropping it kills the program.
pub(crate) struct Terminal {
    child: Child,
    /// The side of the person.
    master: File,
    /// The side of the program, kept open so that it can be looked at after the program's end.
    slave: File,
    before: Termios,
    output: Arc<Mutex<Output>>,
}

impl Terminal {
    /// Starts the program as the leader of a session with this terminal.
    pub(crate) fn start(command: &mut Command, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(&slave).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
        // SAFETY: between fork and exec only two system calls are made, on the standard input of the child.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        let output = Arc::new(Mutex::new(Output {
            emulator: vt100::Parser::new(size_of(rows), size_of(columns), 0),
            bytes: Vec::new(),
        }));
        let (mut reader, written) = (master.try_clone().unwrap(), Arc::clone(&output));
        thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                let mut output = written.lock().unwrap_or_else(PoisonError::into_inner);
                output.emulator.process(&bytes[..length]);
                output.bytes.extend(&bytes[..length]);
            }
        });
        Self { child, master, slave, before, output }
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The text on screen.
    pub(crate) fn text(&self) -> String {
        self.output().emulator.screen().contents()
    }

    /// Everything that was ever written.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.output().bytes.clone()
    }

    /// Whether a full-screen program has it: the alternate screen, no cursor, and raw keys.
    pub(crate) fn is_taken(&self) -> bool {
        let output = self.output();
        let screen = output.emulator.screen();
        let [taken, hidden] = [screen.alternate_screen(), screen.hide_cursor()];
        drop(output);
        taken && hidden && tcgetattr(&self.slave).unwrap() != self.before
    }

    /// Checks that it is as it was before the program.
    #[track_caller]
    pub(crate) fn assert_as_before(&self) {
        let output = self.output();
        let screen = output.emulator.screen();
        assert!(!screen.alternate_screen(), "the screen of before is back");
        assert!(!screen.hide_cursor(), "the cursor is back");
        assert!(!screen.application_cursor() && !screen.application_keypad() && !screen.bracketed_paste());
        assert_eq!(screen.fgcolor(), vt100::Color::Default);
        assert!(!screen.bold() && !screen.inverse() && !screen.underline());
        drop(output);
        assert_eq!(tcgetattr(&self.slave).unwrap(), self.before, "modes of the terminal");
    }

    /// Waits until the screen meets the condition.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !enough(self) {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.text());
            assert!(
                self.child.try_wait().unwrap().is_none() || enough(self),
                "it has ended before: {what}\n{}",
                self.text()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until this text is on screen.
    #[track_caller]
    pub(crate) fn until_shows(&mut self, text: &str) {
        self.until(text, |terminal| terminal.text().contains(text));
    }

    /// Types.
    pub(crate) fn type_keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Gives it another size, which the program is told by a signal.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        self.output().emulator.screen_mut().set_size(size_of(rows), size_of(columns));
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Ends the session's terminal, as when a connection over ssh breaks: the program is told by a signal,
    /// and can neither read nor write any more.
    pub(crate) fn hang_up(&self) {
        // SAFETY: the request takes no argument.
        let done = unsafe { libc::ioctl(self.slave.as_raw_fd(), TIOCVHANGUP) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits for the end of the program, and of its output.
    #[track_caller]
    pub(crate) fn ends(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it has not ended\n{}", self.text());
            thread::sleep(Duration::from_millis(20));
        };
        // The emulator may be behind by some milliseconds.
        let mut seen = usize::MAX;
        while seen != self.bytes().len() {
            seen = self.bytes().len();
            thread::sleep(Duration::from_millis(100));
        }
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
