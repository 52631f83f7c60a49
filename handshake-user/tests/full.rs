//! More connections than the table can hold, a ring that is too small, a stopped daemon: the counters still
//! match what happened.
//!
//! The load counts its own connections. The counters cover the whole host, so a second daemon with sufficient
//! capacity is the reference: both must have counted the same, including unrelated connections.
//!
//! Needs root. `cargo xtask test` builds the program and names it in `HANDSHAKE_BIN`.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

#[path = "full/load.rs"]
mod load;
mod program;

use std::{
    env, fmt,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use load::{Load, PAIRS, REFUSED};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use program::{Daemon, Scrape};

const OPENS: &str = "handshake_tcp_opens_total";
const CLOSES: &str = "handshake_tcp_closes_total";
const GAUGE: &str = "handshake_connections";
const LOST: &str = "handshake_events_lost_total";
/// The table's capacity, far smaller than the number of ends of the load.
const ROOM: f64 = 2000.0;
/// Unrelated connections that may exist at one snapshot and not at the other.
const UNRELATED: f64 = 50.0;
/// The gauges are correct once the last FIN has been seen, including a retransmitted one.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The tests share the host, so each needs the load for itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn full_table_is_counted() {
    attack(&["--max-connections", "2000"], None);
}

#[test]
fn full_ring_is_counted() {
    attack(&["--ring-kib", "64"], None);
}

/// With a label on demand, the kernel side sends the records of all connections.
const EVERY_RECORD: &str = "--label=remote_net";

#[test]
fn events_during_a_daemon_stop_are_counted() {
    attack(&["--ring-kib", "64", EVERY_RECORD], Some(still()));
}

#[test]
fn full_table_and_ring_during_a_daemon_stop_are_counted() {
    attack(&["--ring-kib", "64", "--max-connections", "2000", EVERY_RECORD], Some(still()));
}

/// The minimum time for which the daemon is stopped; `HANDSHAKE_TEST_STILL` (seconds) extends it.
fn still() -> Duration {
    let seconds = env::var("HANDSHAKE_TEST_STILL").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

/// A snapshot: what the daemon counted lies between what the reference had counted just before and just
/// after.
struct Snapshot {
    before: Scrape,
    daemon: Scrape,
    after: Scrape,
}

impl Snapshot {
    fn at(daemon: &Daemon, reference: &Daemon) -> Self {
        let before = reference.scrape();
        let daemon = daemon.scrape();
        Self { before, daemon, after: reference.scrape() }
    }

    /// The increase of a counter since `first`, and the least and the most according to the reference.
    fn rise(&self, first: &Self, name: &str, labels: &[&str]) -> (f64, f64, f64) {
        let sum = |scrape: &Scrape| scrape.sum(name, labels);
        let least = sum(&self.before) - sum(&first.after);
        let most = sum(&self.after) - sum(&first.before);
        (sum(&self.daemon) - sum(&first.daemon), least, most)
    }

    fn agrees(&self, first: &Self, name: &str, labels: &[&str], within: f64) -> bool {
        let (count, least, most) = self.rise(first, name, labels);
        least - within <= count && count <= most + within
    }

    /// Like [`Snapshot::agrees`] for a gauge, which is only exact in a quiet moment.
    fn gauge_agrees(&self, first: &Self, state: &str) -> bool {
        let sum = |scrape: &Scrape| scrape.sum(GAUGE, &[state]);
        let was = [sum(&first.before), sum(&first.daemon), sum(&first.after)];
        let is = [sum(&self.before), sum(&self.daemon), sum(&self.after)];
        let [before, daemon, after] = [0, 1, 2].map(|at| is[at] - was[at]);
        before.min(after) <= daemon && daemon <= before.max(after)
    }
}

fn attack(arguments: &[&str], still: Option<Duration>) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let is_full = arguments.contains(&"--max-connections");
    // Detaching the probes of libraries would take longer than everything else.
    let without_tls = ["--tls-libraries", "off"];
    let reference = Daemon::start(&without_tls);
    let daemon = Daemon::start(&[&without_tls, arguments].concat());
    let mut load = Load::start();
    let first = Snapshot::at(&daemon, &reference);

    let stopped = still.map(|still| (Instant::now() + still, Stopped::new(&daemon)));
    load.open();
    load.close();
    if let Some((until, stopped)) = stopped {
        thread::sleep(until.saturating_duration_since(Instant::now()));
        drop(stopped);
    }

    let roles = ["role=\"client\"", "role=\"server\"", "role=\"unknown\""];
    let states = ["state=\"opening\"", "state=\"established\"", "state=\"closing\""];
    let all = 2.0 * PAIRS;
    let right = |last: &Snapshot| -> Result<(), String> {
        let left = load.sockets();
        if !left.is_empty() {
            return Err(format!("the load has sockets left: {left:?}"));
        }
        let must = |holds: bool, name: &str, labels: &[&str]| {
            if holds {
                Ok(())
            } else {
                Err(format!("{name} {labels:?}: {:?}", last.rise(&first, name, labels)))
            }
        };
        for role in roles {
            for outcome in
                ["established", "refused", "reset", "timed_out", "unreachable", "aborted", "unknown"]
            {
                let labels = [role, &format!("outcome=\"{outcome}\"")];
                must(last.agrees(&first, OPENS, &labels, 0.0), OPENS, &labels)?;
            }
        }
        must(last.rise(&first, CLOSES, &[]).0 >= all, CLOSES, &[])?;
        // An unrelated connection that is older than one of the two daemons has an unknown role there, and a
        // daemon does not see the end of a socket that was reset before it started.
        let unrelated = (last.rise(&first, CLOSES, &[]).2 - all).clamp(0.0, UNRELATED);
        must(last.agrees(&first, CLOSES, &[], unrelated), CLOSES, &[])?;
        for role in roles.iter().filter(|_| !is_full) {
            must(last.agrees(&first, CLOSES, &[role], unrelated), CLOSES, &[role])?;
        }
        for state in states {
            must(last.gauge_agrees(&first, state), GAUGE, &[state])?;
            for role in roles {
                let labels = [role, state];
                let (here, ..) = last.rise(&first, GAUGE, &labels);
                // The reference has also seen the unrelated connections that began or ended meanwhile.
                let (_, lowest, highest) = last.rise(&first, GAUGE, &[state]);
                let unrelated = UNRELATED + lowest.abs().max(highest.abs());
                must(here.abs() <= unrelated, GAUGE, &labels)?;
            }
        }
        Ok(())
    };
    let deadline = Instant::now() + TIMEOUT;
    let last = loop {
        let last = Snapshot::at(&daemon, &reference);
        match right(&last) {
            Ok(()) => break last,
            Err(wrong) => {
                assert!(
                    Instant::now() < deadline,
                    "daemon, least, most of the reference: {wrong}\n  at first: {first}\n  at last: {last}"
                );
            }
        }
        thread::sleep(Duration::from_millis(200));
    };

    let rise = |name, labels: &[&str]| last.rise(&first, name, labels).0;
    for (role, outcome, own) in
        [("client", "established", PAIRS), ("server", "established", PAIRS), ("client", "refused", REFUSED)]
    {
        let count = rise(OPENS, &[&format!("role=\"{role}\""), &format!("outcome=\"{outcome}\"")]);
        assert!(count >= own, "{role} {outcome}: {count} of {own}");
    }
    let unrelated = last.rise(&first, OPENS, &[]).2 - all - REFUSED;
    let state_full = rise(LOST, &["state_full"]);
    if is_full {
        // Existing connections took entries, and the load could take entries that unrelated connections
        // released.
        let range = all - ROOM - unrelated..=all - ROOM + unrelated + last.daemon_held(&first);
        assert!(range.contains(&state_full), "{state_full} without an entry, not {range:?}");
        assert!(rise(CLOSES, &["role=\"unknown\""]) > all / 2.0, "connections without state have no role");
    } else {
        assert_eq!(state_full, 0.0);
    }
    if still.is_some() {
        assert!(
            rise(LOST, &["ring_full"]) > all / 2.0,
            "a reader that stands still loses records, and says so"
        );
    }
    assert_eq!(rise(LOST, &["recursion"]), 0.0);
    println!(
        "{arguments:?}: {all} ends, {unrelated} unrelated, state_full {state_full}, ring_full {}",
        rise(LOST, &["ring_full"])
    );
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, scrape) in
            [("reference", &self.before), ("daemon", &self.daemon), ("reference", &self.after)]
        {
            write!(f, "\n  {name}:")?;
            for metric in [GAUGE, OPENS, CLOSES, LOST] {
                f.write_str(&scrape.series(metric))?;
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// What the daemon's table may have held at the first snapshot.
    fn daemon_held(&self, first: &Self) -> f64 {
        first.daemon.sum(GAUGE, &[]) + self.daemon.sum(GAUGE, &[])
    }
}

/// A stopped daemon, which continues at the latest when the test ends.
struct Stopped(Pid);

impl Stopped {
    fn new(daemon: &Daemon) -> Self {
        let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
        signal::kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = signal::kill(self.0, Signal::SIGCONT);
    }
}
