//! Boots a kernel under QEMU's software emulation and reads its console.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{process::dies_with_its_parent, target::Target};

/// A machine about to be started.
pub(super) struct Machine {
    pub(super) target: Target,
    pub(super) kernel: PathBuf,
    /// More parameters for it.
    pub(super) parameters: String,
    /// The archives of its root, one behind the other in one file.
    pub(super) initramfs: PathBuf,
    /// Where its console is kept.
    pub(super) log: PathBuf,
    /// After this long it is ended.
    pub(super) limit: Duration,
}

/// The serial console, no messages of the kernel except its last ones, and no second try.
const PARAMETERS: &str = "quiet loglevel=1 panic=-1 mitigations=off";

impl Machine {
    fn command(&self) -> Command {
        // aarch64: the pointer authentication of a real processor is what emulation is slowest at.
        let (program, machine, console) = match self.target {
            Target::X86_64 => ("qemu-system-x86_64", ["-M", "pc", "-cpu", "max"], "ttyS0"),
            Target::Aarch64 => {
                ("qemu-system-aarch64", ["-M", "virt", "-cpu", "max,pauth-impdef=on"], "ttyAMA0")
            }
        };
        let mut command = Command::new(program);
        command.args(machine).args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "2048"]);
        command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.arg("-append").arg(format!("console={console} {PARAMETERS} {}", self.parameters));
        command
    }

    /// Runs the machine until it switches itself off, and gives every line of its console to `take`.
    ///
    /// # Errors
    /// If it does not end in time, or QEMU fails.
    pub(super) fn run(&self, mut take: impl FnMut(&str)) -> Result<()> {
        let mut command = self.command();
        let mut log = File::create(&self.log)
            .with_context(|| format!("cannot create {}: is the disk full?", self.log.display()))?;
        dies_with_its_parent(&mut command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let program = command.get_program().display();
        let mut child = Running(child.with_context(|| format!("`{program}` cannot be started"))?);
        let (send, lines) = mpsc::channel();
        let stdout = child.0.stdout.take().context("the console is piped")?;
        // It ends with QEMU.
        thread::spawn(move || read_lines(stdout, |line| send.send(line).is_ok()));
        let deadline = Instant::now() + self.limit;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    writeln!(log, "{line}")
                        .with_context(|| format!("cannot write {}", self.log.display()))?;
                    take(&line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine was still running after {:?}: {}", self.limit, self.log.display())
                }
            }
        }
        let status = child.0.wait().context("waiting for QEMU")?;
        if !status.success() {
            let mut errors = String::new();
            if let Some(stderr) = child.0.stderr.take() {
                errors = io::read_to_string(stderr).unwrap_or_default();
            }
            bail!("`{program}` failed ({status}): {}", errors.trim());
        }
        Ok(())
    }
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of a console, whatever bytes they hold, while `take` wants more.
fn read_lines(from: impl io::Read, take: impl Fn(String) -> bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line);
        if !take(text.trim_end_matches(['\r', '\n']).to_owned()) {
            return;
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn console_lines_lose_their_ends_and_may_hold_any_bytes() {
        let lines = RefCell::new(Vec::new());
        read_lines(&b"one\r\n\xfftwo\n\nend"[..], |line| {
            lines.borrow_mut().push(line);
            true
        });
        assert_eq!(*lines.borrow(), ["one", "\u{fffd}two", "", "end"]);
    }
}
