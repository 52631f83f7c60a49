//! More connections than the table has room for, a ring that is too small, a daemon that stands still: what
//! is counted is what happened.
//!
//! The load counts itself. Counters are of the whole host, so a second daemon with room for everything is the
//! witness: both must have counted the same, those of strangers included.
//!
//! Needs root. `cargo xtask test` builds the program and names it in `HANDSHAKE_BIN`.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

#[path = "full/load.rs"]
mod load;
#[expect(dead_code, reason = "the tests of the exporter ask for more")]
#[path = "daemon/program.rs"]
mod program;

use std::{
    env,
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
/// Far fewer than the ends of the load.
const ROOM: f64 = 2000.0;
/// Connections of strangers that may be there at one look and not at the other.
const STRANGERS: f64 = 50.0;
/// The gauges are right when the last FIN has been seen, also one that had to be sent again.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Tests share the host, and there would be less to tell if they shared the load as well.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_full_table() {
    attack(&["--max-connections", "2000"], None);
}

#[test]
fn a_small_ring() {
    attack(&["--ring-kib", "64"], None);
}

#[test]
fn a_daemon_that_stands_still() {
    attack(&["--ring-kib", "64"], Some(still()));
}

#[test]
fn all_at_once() {
    attack(&["--ring-kib", "64", "--max-connections", "2000"], Some(still()));
}

/// How long the daemon stands still at the least; `HANDSHAKE_TEST_STILL` (seconds) makes it longer.
fn still() -> Duration {
    let seconds = env::var("HANDSHAKE_TEST_STILL").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

/// What the daemon counted lies between what the witness had counted just before and just after.
struct Look {
    before: Scrape,
    daemon: Scrape,
    after: Scrape,
}

impl Look {
    fn at(daemon: &Daemon, witness: &Daemon) -> Self {
        let before = witness.scrape();
        let daemon = daemon.scrape();
        Self { before, daemon, after: witness.scrape() }
    }

    /// By how much a counter rose since `first`, and the least and the most that the witness has.
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

    /// Like [`Look::agrees`] for a gauge, which only a look at a quiet moment can tell.
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
    // To let go of the probes of libraries would take longer than all the rest.
    let without_tls = ["--tls-libraries", "off"];
    let witness = Daemon::start(&without_tls);
    let daemon = Daemon::start(&[&without_tls, arguments].concat());
    let mut load = Load::start();
    let first = Look::at(&daemon, &witness);

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
    let right = |last: &Look| -> Result<(), String> {
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
        // A stranger's connection that was there before one of the two daemons is of unknown role to that
        // one, and of a socket that was reset before its start it sees no end.
        let strangers = (last.rise(&first, CLOSES, &[]).2 - all).clamp(0.0, STRANGERS);
        must(last.agrees(&first, CLOSES, &[], strangers), CLOSES, &[])?;
        for role in roles.iter().filter(|_| !is_full) {
            must(last.agrees(&first, CLOSES, &[role], strangers), CLOSES, &[role])?;
        }
        for state in states {
            must(last.gauge_agrees(&first, state), GAUGE, &[state])?;
            for role in roles {
                let labels = [role, state];
                let (here, ..) = last.rise(&first, GAUGE, &labels);
                // What strangers have begun or ended meanwhile the witness has seen, too.
                let (_, lowest, highest) = last.rise(&first, GAUGE, &[state]);
                let strangers = STRANGERS + lowest.abs().max(highest.abs());
                must(here.abs() <= strangers, GAUGE, &labels)?;
            }
        }
        Ok(())
    };
    let deadline = Instant::now() + TIMEOUT;
    let last = loop {
        let last = Look::at(&daemon, &witness);
        match right(&last) {
            Ok(()) => break last,
            Err(wrong) => {
                let recursion = last.rise(&first, LOST, &["recursion"]);
                assert!(
                    Instant::now() < deadline,
                    "daemon, least, most of the witness: {wrong}; recursion {recursion:?}"
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
    let strangers = last.rise(&first, OPENS, &[]).2 - all - REFUSED;
    let state_full = rise(LOST, &["state_full"]);
    if is_full {
        // Those that were there already took room, and what a stranger gave back the load could take.
        let range = all - ROOM - strangers..=all - ROOM + strangers + last.daemon_held(&first);
        assert!(range.contains(&state_full), "{state_full} without room, not {range:?}");
        assert!(rise(CLOSES, &["role=\"unknown\""]) > all / 2.0, "what has no state has no role");
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
        "{arguments:?}: {all} ends, {strangers} of strangers, state_full {state_full}, ring_full {}",
        rise(LOST, &["ring_full"])
    );
}

impl Look {
    /// What may have been in the daemon's table at the first look.
    fn daemon_held(&self, first: &Self) -> f64 {
        first.daemon.sum(GAUGE, &[]) + self.daemon.sum(GAUGE, &[])
    }
}

/// A daemon that goes on at the latest when the test ends.
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
        // If it is gone there is nothing to go on.
        let _ = signal::kill(self.0, Signal::SIGCONT);
    }
}
