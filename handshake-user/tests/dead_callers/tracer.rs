//! The program under test, its records, and the maps of its kernel side.

use std::{
    fs,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use serde_json::Value;

use crate::program::{Running, TRACING, program};

const TIMEOUT: Duration = Duration::from_mins(1);
/// The same number as on the kernel side.
const SEATS: usize = 1 << 15;

pub(crate) struct Tracer {
    _running: Running,
    records: Receiver<Value>,
    seated: Array<MapData, [u32; SEATS]>,
}

impl Tracer {
    /// Starts it. Returns when the probes are attached.
    pub(crate) fn start() -> Self {
        let (send, records) = channel();
        let record = move |line: &[u8]| drop(send.send(serde_json::from_slice(line).unwrap()));
        let mut command = program(&["trace", "--output", "json"]);
        let running = Running::start(&mut command, TRACING, record, |_| ());
        let running = running.unwrap_or_else(|reason| panic!("{reason}"));
        let seated = map(running.pid(), "SEATED");
        Self { _running: running, records, seated: Array::try_from(Map::Array(seated)).unwrap() }
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
