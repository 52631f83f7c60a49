//! `handshake record`: records into a file.

use std::{
    ffi::OsString,
    io::{self, ErrorKind, IsTerminal as _, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

use super::live::{Attached, Losses, Turns, lost};
use crate::{
    cli::RecordArgs,
    recording::{Counts, Folder, Limits, Recorder, Target, name_of_now},
    redact::Gate,
    untrusted::{Untrusted, say},
};

/// Memory for what `--keep` looks back at, compressed.
const LOOK_BACK: usize = 256 << 20;
/// How long the command may take to end when recording ends before it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);

/// Records until the duration is over, the command ends or a signal arrives. Returns the exit status of the
/// command.
///
/// # Errors
/// When the file exists or cannot be written, the probes cannot be attached or the command cannot be started.
pub async fn run(args: RecordArgs) -> Result<ExitCode> {
    args.filters.notes().iter().for_each(say);
    let gate = Gate::new(args.filters.filter(), &args.redact)?;
    let (target, place) = target(&args)?;
    let recorder = Recorder::start(target).context("cannot start a thread that writes the records")?;
    // Until now, SIGUSR1 ends the program.
    let mut look_back = signal(SignalKind::user_defined1()).context("cannot wait for SIGUSR1")?;
    let attached = Attached::new(&args.probes)?;
    let mut turns = Turns::new(args.duration)?;
    let mut live = attached.follow()?;
    let mut workload =
        args.command.split_first().map(|(name, rest)| Workload::start(name, rest)).transpose()?;
    let mut session = Session { recorder, gate, progress: Progress::default() };
    let mut status = None;
    loop {
        let last = tokio::select! {
            last = turns.next(&live) => last,
            Some(()) = look_back.recv(), if args.keep.is_some() => {
                // The thread that writes says what becomes of it.
                drop(session.recorder.write_look_back());
                continue;
            }
        };
        if let Some(workload) = &mut workload {
            status = workload.ended()?;
        }
        let last = last || status.is_some();
        live.turn(last, |event| {
            if let Some(event) = session.gate.pass(event) {
                session.recorder.record(&event);
            }
            ControlFlow::Continue(())
        });
        session.recorder.turn();
        session.progress.show(session.recorder.counts());
        if last {
            break;
        }
    }
    let losses = live.losses()?;
    if let Some(workload) = workload.filter(|_| status.is_none()) {
        workload.stop();
    }
    session.finish(args.keep.is_some(), &place, losses)?;
    drop(live);
    Ok(status.map_or(ExitCode::SUCCESS, exit_code))
}

/// Where records go, and how to say it.
fn target(args: &RecordArgs) -> Result<(Target, String)> {
    let path =
        args.output.clone().unwrap_or_else(|| PathBuf::from(if args.keep.is_some() { "." } else { "" }));
    if let Some(keep) = args.keep {
        let folder = Folder::open(&path, Limits { bytes: u64::MAX, age: None });
        let name = Untrusted::from(&*path);
        let folder = folder.with_context(|| format!("cannot write to the folder {name}"))?;
        return Ok((Target::look_back(keep, LOOK_BACK, folder), format!("a file in {name}")));
    }
    let path = if path.as_os_str().is_empty() { PathBuf::from(name_of_now()) } else { path };
    if path.as_os_str() == "-" {
        bail!("`handshake trace --output json` writes records to standard output");
    }
    let name = Untrusted::from(&*path).to_string();
    let target = Target::file(&path).map_err(|error| unwritable(&path, error))?;
    Ok((target, name))
}

fn unwritable(path: &Path, error: io::Error) -> anyhow::Error {
    let name = Untrusted::from(path);
    if error.kind() == ErrorKind::AlreadyExists {
        return anyhow!("{name} exists and is not overwritten: remove it, or choose another name with -o");
    }
    anyhow::Error::new(error).context(format!("cannot write {name}"))
}

struct Session {
    recorder: Recorder,
    gate: Gate,
    progress: Progress,
}

impl Session {
    /// Writes what is left, and says what became of everything.
    fn finish(self, keeps: bool, place: &str, losses: Losses) -> Result<()> {
        let Self { mut recorder, mut progress, .. } = self;
        if keeps {
            drop(recorder.write_look_back());
        }
        let (counts, error) = recorder.finish();
        progress.end();
        let Counts { written, bytes, dropped_queue, dropped_disk } = counts;
        say(format_args!("handshake: {written} records, {} in {place}", size(bytes)));
        let dropped =
            [(dropped_queue, "records, the disk did not keep up"), (dropped_disk, "records, writing failed")];
        lost(losses.counts().into_iter().chain(dropped)).for_each(say);
        match error {
            Some(error) => Err(anyhow::Error::new(error).context(format!("cannot write to {place}"))),
            None => Ok(()),
        }
    }
}

/// One line on a terminal that is written over and over.
#[derive(Default)]
struct Progress {
    shown: Option<Instant>,
}

impl Progress {
    fn show(&mut self, counts: Counts) {
        if self.shown.is_some_and(|shown| shown.elapsed() < PROGRESS) || !io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(Instant::now());
        let _ = write!(io::stderr(), "\r{} records, {} \x1b[K", counts.written, size(counts.bytes));
    }

    fn end(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Bytes as a person would say them.
fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let bytes_f = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes_f / 1024.0),
        _ => format!("{:.1} MiB", bytes_f / 1_048_576.0),
    }
}

/// The command during which is recorded.
struct Workload {
    child: Child,
}

impl Workload {
    fn start(name: &OsString, arguments: &[OsString]) -> Result<Self> {
        let child = Command::new(name).args(arguments).spawn();
        let name = Untrusted::from(Path::new(name));
        Ok(Self { child: child.with_context(|| format!("cannot start the command {name}"))? })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot wait for the command")
    }

    /// Ends it, for recording has ended before it.
    fn stop(mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        // It has not been waited for, so the id is still its own.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        say(format_args!("handshake: the command (process {pid}) goes on: it did not end at SIGTERM"));
    }
}

/// As a shell says it: 128 and the number of a signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_with_their_units() {
        assert_eq!([size(17), size(2048), size(5 << 20)], ["17 bytes", "2.0 KiB", "5.0 MiB"]);
    }
}
