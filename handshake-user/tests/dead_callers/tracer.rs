//! The program under test, its records, and the maps of its kernel side.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use nix::sys::{prctl, signal::Signal};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_mins(1);
/// The same number as on the kernel side.
const SEATS: usize = 1 << 15;

pub(crate) struct Tracer {
    child: Child,
    records: Receiver<Value>,
    seated: Array<MapData, [u32; SEATS]>,
}

impl Tracer {
    /// Starts it. Returns when the probes are attached.
    pub(crate) fn start() -> Self {
        let program = env::var_os("HANDSHAKE_BIN");
        let program = program
            .expect("HANDSHAKE_BIN does not name the program under test: run through `cargo xtask test`");
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests load programs into the kernel: run them as root"
        );
        let mut command = Command::new(program);
        command.args(["trace", "--output", "json"]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only one system call is made.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        let mut child = command.spawn().unwrap();
        let (send, records) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = send.send(serde_json::from_str(&line).unwrap());
            }
        });
        let (send, ready) = channel();
        let said = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if line.starts_with("tracing ") {
                    let _ = send.send(());
                }
            }
        });
        ready.recv_timeout(TIMEOUT).expect("the tracer is ready");
        let seated = map(child.id(), "SEATED");
        Self { child, records, seated: Array::try_from(Map::Array(seated)).unwrap() }
    }

    /// Whether the thread with this id is considered inside a handshake.
    pub(crate) fn is_inside(&self, id: u32) -> bool {
        self.seated.get(&0, 0).unwrap()[id as usize % SEATS] == id
    }

    #[track_caller]
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The next record that matches.
    #[track_caller]
    pub(crate) fn record(&self, matches: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        let mut others = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.records.recv_timeout(left) {
                Ok(record) if matches(&record) => return record,
                Ok(record) => others.push(record),
                Err(error) => panic!("{error}: no such record among {others:#?}"),
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The map with this name that the process has open.
fn map(pid: u32, name: &str) -> MapData {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let id_of =
        |text: String| text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
    descriptors
        .filter_map(|entry| id_of(fs::read_to_string(entry.ok()?.path()).ok()?))
        .map(|id| MapData::from_id(id).unwrap())
        .find(|map| map.info().unwrap().name_as_str() == Some(name))
        .unwrap_or_else(|| panic!("the program has no map {name}"))
}
