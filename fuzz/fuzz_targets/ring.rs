//! Fuzzes everything from the records of the ring buffer to the output. The input: a byte of flags (the scope
//! of the wire view; 4: with the summary, 0xf0: with the text of all metrics, which is slow), then steps: a
//! byte for the kind, a length (two bytes), and that many bytes.
#![no_main]

use std::{
    cell::RefCell,
    collections::HashSet,
    time::{Duration, SystemTime},
};

use handshake::{
    config::{Config, Label},
    event::ConnectionEvent,
    exporter::metrics::{Format, Metrics},
    host::Context,
    join::{Joiner, journal::ConnectionJournal},
    kernel::{probe::WireCoverage, raw_record::RawRecord},
    output::{savings::Savings, summary::Summary},
    untrusted::Untrusted,
};
use handshake_common::{
    Kind, Stage, connection,
    tcp::minisocket::MinisocketNews,
    tls::{library::session, wire::raw},
};
use handshake_fuzz::{Input, assert_harmless, record};
use libfuzzer_sys::fuzz_target;

/// A host without a kernel.
struct Still;

impl Context for Still {
    fn wall_time(&self, monotonic_ns: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(monotonic_ns)
    }

    fn cgroup(&mut self, id: u64) -> Option<Untrusted> {
        (id != 0).then(|| format!("/{id}\x1b[2J\n").into())
    }
}

/// All outputs.
struct Sinks<'m> {
    metrics: &'m mut Metrics,
    summary: Option<Summary>,
    savings: Savings,
    journal: ConnectionJournal,
    reported: [u64; Stage::SLOTS],
}

thread_local! {
    /// Thousands of counters, hence one shared set for all inputs whose text is not checked.
    static METRICS: RefCell<Metrics> = RefCell::new(metrics());
}

fn metrics() -> Metrics {
    let labels = Label::ALL.to_vec();
    let settings = handshake::config::Metrics { labels, max_series: 4, ..Config::default().metrics };
    Metrics::new(&settings).expect("metrics can be made")
}

impl Sinks<'_> {
    fn take(&mut self, event: ConnectionEvent) {
        self.reported[usize::from(event.stage.code())] += 1;
        self.metrics.observe(&event);
        record::check(&event);
        if let Some(summary) = &mut self.summary {
            summary.add(&event);
        }
        if let Some(whole) = self.journal.take(event) {
            record::check(&whole);
            self.savings.add(&whole);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.byte() {
        Some(flags @ 0xf0..) => {
            let mut metrics = metrics();
            follow(flags, input, &mut metrics);
            assert_harmless(&metrics.render(Format::Text).expect("metrics can be written"));
        }
        Some(flags) => METRICS.with_borrow_mut(|metrics| follow(flags, input, metrics)),
        None => {}
    }
});

fn follow(flags: u8, mut input: Input<'_>, metrics: &mut Metrics) {
    let mut sinks = Sinks {
        metrics,
        summary: (flags & 4 != 0).then(Summary::default),
        savings: Savings::default(),
        journal: ConnectionJournal::default(),
        reported: [0; Stage::SLOTS],
    };
    let mut joiner =
        Joiner::new([WireCoverage::None, WireCoverage::Some, WireCoverage::All][usize::from(flags & 3) % 3]);
    let mut now_ns = 1;
    let (mut opened, mut closed, mut handshakes) = (0, 0, 0);
    let mut closings = HashSet::new();
    while let (Some(step), Some(bytes)) = (input.byte(), input.block()) {
        let kind = Kind::from_code(step & 7);
        let size = match kind {
            Some(Kind::Open | Kind::Close) => connection::SIZE,
            Some(Kind::Library) => session::SIZE,
            Some(Kind::Wire) => raw::SIZE,
            Some(Kind::Minisocket) => size_of::<MinisocketNews>(),
            Some(Kind::Hello) => raw::HEADER.max(bytes.len()),
            None => {
                // Time passes: at least ten milliseconds per byte.
                now_ns += bytes.iter().map(|byte| u64::from(*byte) * 10_000_000).sum::<u64>();
                joiner.expire(now_ns, &mut Still, |event| sinks.take(event));
                continue;
            }
        };
        let mut bytes = bytes.to_vec();
        // Records of the wrong size are rejected; most have the right size.
        if step & 8 == 0 {
            bytes.resize(size, 0);
        }
        if let (Some(kind), Some(first)) = (kind, bytes.first_mut()) {
            *first = kind.code();
        }
        let Some(raw) = RawRecord::from_bytes(&bytes) else { continue };
        match &raw {
            RawRecord::Connection(connection) if connection.stage() == Some(Stage::Close) => {
                // The kernel side reports no close twice.
                if !closings.insert((connection.id, connection.generation)) {
                    continue;
                }
                closed += 1;
            }
            RawRecord::Connection(_) => opened += 1,
            RawRecord::LibraryHandshake(_) | RawRecord::WireHandshake(_) => handshakes += 1,
            RawRecord::HelloFragment(..) | RawRecord::Minisocket(_) => {}
        }
        joiner.take(&raw, now_ns, &mut Still, |event| sinks.take(event));
    }
    joiner.finish(&mut Still, |event| sinks.take(event));
    let reported = |stage: Stage| sinks.reported[usize::from(stage.code())];
    assert_eq!((reported(Stage::Open), reported(Stage::Close)), (opened, closed), "each is reported once");
    assert!(reported(Stage::Tls) <= handshakes, "a handshake is reported twice");
    joiner.finish(&mut Still, |_| panic!("something is left"));
    for whole in sinks.journal.finish() {
        record::check(&whole);
        sinks.savings.add(&whole);
    }
    assert_harmless(&sinks.summary.map(|summary| summary.render()).unwrap_or_default());
    assert_harmless(&sinks.savings.render());
}
