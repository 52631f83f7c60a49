//! The output of the program under test, as the tests wait for it and check it.

use std::{
    collections::BTreeMap,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{record::Record, testbed};

/// All output of the program so far.
#[derive(Default)]
pub(crate) struct Log {
    output: Mutex<Output>,
    changed: Condvar,
    /// By name, what must hold of all records once the program has ended.
    checks: Mutex<BTreeMap<String, Check>>,
}

/// Checks all records once the program has ended, so that a record too many is found however late it comes.
/// Returns what is wrong.
type Check = Box<dyn Fn(&[Record]) -> Result<(), String> + Send>;

#[derive(Default)]
struct Output {
    records: Vec<Record>,
    stderr: Vec<String>,
    /// Lines on standard output that are not JSON.
    garbage: Vec<String>,
}

/// There were not enough records in time. Holds those that there were.
#[derive(Debug)]
pub(crate) struct TimedOut(pub(crate) Vec<Record>);

impl Log {
    /// The matching records, once there are enough of them.
    pub(crate) fn wait_for(
        &self,
        timeout: Duration,
        matches: impl Fn(&Record) -> bool,
        enough: impl Fn(&[Record]) -> bool,
    ) -> Result<Vec<Record>, TimedOut> {
        let deadline = Instant::now() + timeout;
        let mut output = self.lock();
        loop {
            let found: Vec<_> = output.records.iter().filter(|record| matches(record)).cloned().collect();
            if enough(&found) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TimedOut(found));
            }
            output = self.changed.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the lines on standard error satisfy `enough`. Returns whether they did in time.
    pub(crate) fn wait_for_log(&self, timeout: Duration, enough: impl Fn(&[String]) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut output = self.lock();
        loop {
            if enough(&output.stderr) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            output = self.changed.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn matching(&self, matches: impl Fn(&Record) -> bool) -> Vec<Record> {
        self.lock().records.iter().filter(|record| matches(record)).cloned().collect()
    }

    /// Registers what must hold of all records once the program has ended. A later check of the same name
    /// replaces it.
    pub(crate) fn check_at_end(
        &self,
        name: String,
        holds: impl Fn(&[Record]) -> Result<(), String> + Send + 'static,
    ) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.insert(name, Box::new(holds));
    }

    /// The names of the checks that fail, with what is wrong.
    pub(crate) fn failed_checks(&self) -> Vec<String> {
        let output = self.lock();
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = checks.iter().filter_map(|(name, holds)| {
            let reason = holds(&output.records).err()?;
            Some(format!("{name}: {reason}"))
        });
        failed.collect()
    }

    pub(crate) fn garbage(&self) -> Vec<String> {
        self.lock().garbage.clone()
    }

    pub(crate) fn stderr(&self) -> String {
        self.lock().stderr.join("\n")
    }

    pub(crate) fn read_stdout(&self, line: String) {
        // The rest of the host may have very many connections.
        static OURS: LazyLock<[String; 2]> =
            LazyLock::new(|| testbed::address_prefixes().map(|prefix| format!("\"{prefix}")));
        if line.starts_with('{') && !OURS.iter().any(|prefix| line.contains(prefix)) {
            return;
        }
        let mut output = self.lock();
        match Record::parse(&line) {
            Ok(record) => output.records.push(record),
            Err(_) => output.garbage.push(line),
        }
        self.changed.notify_all();
    }

    pub(crate) fn read_stderr(&self, line: String) {
        self.lock().stderr.push(line);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
