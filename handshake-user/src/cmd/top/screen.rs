//! The terminal, while a full-screen view has it: it is given back however the program ends, and while it is
//! stopped.

use std::{
    io::{self, BufWriter, Stdout, Write as _},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal as Number, raise, sigaction},
};
use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::{Hide, Show},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::stderr::{self, Stderr};

/// Whether a view has the terminal.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A taken terminal. Dropping it, and a panic of the thread that took it, give it back.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Screen")
    }
}

impl Screen {
    /// Takes the terminal of standard input and output.
    ///
    /// # Errors
    /// If it is none, or gone.
    pub fn open() -> io::Result<Self> {
        give_back_on_panic();
        take()?;
        let opened = Terminal::new(CrosstermBackend::new(BufWriter::new(io::stdout())));
        match opened {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Takes the terminal again, whatever the shell has made of it while the program was stopped.
    ///
    /// # Errors
    /// If it is gone.
    pub fn enter(&mut self) -> io::Result<()> {
        give_back();
        take()?;
        // Unlike `clear()`, this asks the terminal for nothing.
        let size = self.terminal.size()?;
        self.terminal.resize(size.into())
    }

    /// Gives the terminal back, stops the process like Ctrl-Z, and takes the terminal again when it
    /// continues.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn stop(&mut self) -> io::Result<()> {
        give_back();
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action runs no code of this process, and what was there before is put back.
        unsafe {
            let ours = sigaction(Number::SIGTSTP, &default)?;
            let stopped = raise(Number::SIGTSTP);
            sigaction(Number::SIGTSTP, &ours)?;
            stopped?;
        }
        self.enter()
    }

    /// Draws the whole screen; what changed is written.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn take() -> io::Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    stderr::hold();
    let taken = enable_raw_mode().and_then(|()| execute!(io::stdout(), EnterAlternateScreen, Hide));
    if taken.is_err() {
        give_back();
    }
    taken
}

/// As far as that is possible: the terminal may be gone.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
        let _ = io::stdout().flush();
        stderr::release();
    }
}

fn give_back_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let owner = thread::current().id();
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if thread::current().id() == owner || !TAKEN.load(Ordering::SeqCst) {
                give_back();
                earlier(panic);
            } else {
                // The view goes on.
                let _ = Stderr.write_all(format!("{panic}\n").as_bytes());
            }
        }));
    });
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// To end.
    End,
    /// To stop.
    Stop,
    /// To go on after it was stopped.
    Continue,
}

/// The signals that matter to a program with a screen.
#[derive(Debug)]
pub struct Signals {
    ends: [Signal; 4],
    stop: Signal,
    goes_on: Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ends: [
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::quit())?,
            ],
            stop: signal(SignalKind::from_raw(libc::SIGTSTP))?,
            goes_on: signal(SignalKind::from_raw(libc::SIGCONT))?,
        })
    }

    /// Waits for one.
    pub async fn next(&mut self) -> Happened {
        let Self { ends: [terminate, hangup, interrupt, quit], stop, goes_on } = self;
        tokio::select! {
            biased;
            _ = terminate.recv() => Happened::End,
            _ = hangup.recv() => Happened::End,
            _ = interrupt.recv() => Happened::End,
            _ = quit.recv() => Happened::End,
            _ = stop.recv() => Happened::Stop,
            _ = goes_on.recv() => Happened::Continue,
        }
    }
}
