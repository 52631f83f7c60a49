//! TLS handshakes and setups, from events; those whose record was lost are counted as unknown.

use std::time::{Duration, SystemTime};

use handshake_common::{
    Library, Role, Stage, TlsClass, TlsOutcome, TlsVersion,
    histograms::{self, Bounds},
    totals::{self, MAX_SETUP_ROUND_TRIPS, Totals},
};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::{
    class::{LIBRARY, ROLE, ROUND_TRIPS, SETUP_VERSION, TLS_CLASS, TLS_VERSION},
    counting::{catch_up, rise},
    labels::{Key, Labels},
    negotiated::Negotiated,
    timing::Timing,
};
use crate::{
    config::{self, Purpose},
    event::{ConnectionEvent, Tls},
    join::merge::Fact,
    kernel::probe::Histograms,
    tls::library::skipped::Reason,
};

/// The code of a setup without TLS: one above those of the versions.
#[expect(clippy::cast_possible_truncation, reason = "a handful")]
const NO_TLS: u8 = TlsVersion::SLOTS as u8;
const UNKNOWN: &str = "unknown";

/// Every metric of TLS handshakes and of setups.
pub(super) struct Handshakes {
    duration: Timing<4>,
    compute: Timing<4>,
    setup_duration: Timing<2>,
    setup_excess: Timing<2>,
    setup_round_trips: IntCounterVec,
    ended: IntCounterVec,
    negotiated: Negotiated,
    libraries: IntGaugeVec,
    skipped: IntCounterVec,
    turn: IntGauge,
    disagreements: IntCounterVec,
    lost: [u64; TlsOutcome::SLOTS],
    /// Whether the kernel side counts the setups without TLS.
    in_kernel: bool,
    /// What the kernel side has counted of setups without TLS, by their slots.
    plain: Vec<(usize, IntCounter, u64)>,
}

/// Whether a version has this class.
fn occurs([version, class]: [u8; 2]) -> bool {
    match (TlsVersion::from_code(version), TlsClass::from_code(class)) {
        (Some(TlsVersion::Tls12), Some(class)) => matches!(class, TlsClass::Full | TlsClass::Resumed),
        (Some(TlsVersion::Tls13), Some(class)) => class != TlsClass::FalseStart,
        _ => false,
    }
}

fn turn(registry: &Registry) -> prometheus::Result<IntGauge> {
    let turn = IntGauge::new(
        "handshake_tls_worker_last_turn_timestamp_seconds",
        "When the thread that follows the TLS libraries last came round; 0 before it begins, and without it.",
    )?;
    registry.register(Box::new(turn.clone()))?;
    Ok(turn)
}

impl Handshakes {
    pub(super) fn new(
        registry: &Registry,
        settings: &config::Metrics,
        labels: &Labels,
    ) -> prometheus::Result<Self> {
        let axes = [ROLE, TLS_VERSION, TLS_CLASS, LIBRARY];
        let counter = |name, help, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let libraries = IntGaugeVec::new(
            Opts::new(
                "handshake_tls_libraries",
                "Files of TLS libraries in use, by whether their handshakes are seen.",
            ),
            &["library", "covered"],
        )?;
        registry.register(Box::new(libraries.clone()))?;
        let mut made = Self {
            duration: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_tls_duration_seconds",
                    "Completed TLS handshakes: ClientHello sent (client) or arrived (server) to complete.",
                ),
                Purpose::Handshake,
                axes,
            )?,
            compute: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_tls_compute_seconds",
                    "Time that completed TLS handshakes spent computing inside the library's calls.",
                ),
                Purpose::Handshake,
                axes,
            )?,
            setup_duration: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_setup_duration_seconds",
                    "From the start of the opening to the moment from which the client may send application data.",
                ),
                Purpose::Opening,
                [ROLE, SETUP_VERSION],
            )?,
            setup_excess: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_setup_excess_seconds",
                    "What the network does not explain of a setup: its duration less its round trips.",
                ),
                Purpose::Opening,
                [ROLE, SETUP_VERSION],
            )?,
            setup_round_trips: counter(
                "handshake_setup_round_trips_total",
                "Setups, by the round trips that they took.",
                &["role", "round_trips"],
            )?,
            ended: counter(
                "handshake_tls_handshakes_total",
                "TLS handshakes that ended, by outcome. Class unknown: also those whose record was lost.",
                &["role", "version", "class", "library", "outcome"],
            )?,
            negotiated: Negotiated::new(registry, settings, labels)?,
            libraries,
            skipped: counter(
                "handshake_tls_files_skipped_total",
                "How often a file that may hold a TLS library was not looked into or not probed, by reason.",
                &["reason"],
            )?,
            turn: turn(registry)?,
            disagreements: counter(
                "handshake_tls_disagreements_total",
                "TLS handshakes of which the library and the wire told a fact differently.",
                &["fact"],
            )?,
            lost: [0; TlsOutcome::SLOTS],
            in_kernel: settings.bounds() != Bounds::NONE,
            plain: Vec::new(),
        };
        for role in Role::ALL {
            for (number, word) in (0..).zip(ROUND_TRIPS) {
                let counter = made.setup_round_trips.with_label_values(&[role.as_str(), word]);
                if number <= MAX_SETUP_ROUND_TRIPS {
                    made.plain.push((totals::setups(Some(*role), number), counter, 0));
                }
            }
            made.prepare(*role, Library::OpenSsl);
        }
        for fact in Fact::ALL {
            made.disagreements.with_label_values(&[fact.as_str()]);
        }
        made.prepare_files();
        Ok(made)
    }

    /// Zeros for the series of library files.
    fn prepare_files(&self) {
        for reason in Reason::ALL {
            self.skipped.with_label_values(&[reason.as_str()]);
        }
        for library in Library::ALL {
            for covered in ["true", "false"] {
                self.libraries.with_label_values(&[library.as_str(), covered]);
            }
        }
    }

    /// Zeros for the handshakes that this library can make.
    fn prepare(&self, role: Role, library: Library) {
        for version in TlsVersion::ALL {
            for class in TlsClass::ALL.iter().filter(|class| occurs([version.code(), class.code()])) {
                let labels = [role.as_str(), version.as_str(), class.as_str(), library.as_str()];
                let [role, version, class, library] = labels;
                self.ended.with_label_values(&[
                    role,
                    version,
                    class,
                    library,
                    TlsOutcome::Completed.as_str(),
                ]);
            }
        }
        for outcome in [TlsOutcome::Failed, TlsOutcome::Abandoned] {
            let labels = [role.as_str(), UNKNOWN, UNKNOWN, library.as_str(), outcome.as_str()];
            self.ended.with_label_values(&labels);
        }
    }

    /// Sets how many files of a library are in use.
    pub(super) fn library(&self, library: Library, covered: bool, files: i64) {
        let covered = if covered { "true" } else { "false" };
        self.libraries.with_label_values(&[library.as_str(), covered]).set(files);
    }

    /// Sets how many files were not probed for this reason.
    pub(super) fn library_skipped(&self, reason: Reason, files: u64) {
        catch_up(&self.skipped.with_label_values(&[reason.as_str()]), files);
    }

    /// Sets when the thread that follows the libraries last completed a turn.
    pub(super) fn library_turn(&self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.turn.set(since.as_secs().try_into().unwrap_or(i64::MAX));
    }

    /// How often the two views disagreed on this fact.
    pub(super) fn disagreed(&self, fact: Fact, count: u64) {
        catch_up(&self.disagreements.with_label_values(&[fact.as_str()]), count);
    }

    /// From now on records tell of the setups without TLS as well.
    pub(super) const fn fill_from_records(&mut self) {
        self.in_kernel = false;
    }

    /// Observes an event: each handshake and each setup is in exactly one.
    pub(super) fn observe(&mut self, event: &ConnectionEvent, labels: &Labels, key: Option<&Key>) {
        match (event.stage, &event.tls) {
            (Stage::Tls, Some(tls)) => {
                self.handshake(tls, labels, key);
                self.set_up(event, labels, key);
            }
            (Stage::Close, None) if !self.in_kernel => self.set_up(event, labels, key),
            _ => {}
        }
    }

    /// Sets how many sets of label values each histogram may have.
    pub(super) const fn set_max_series(&mut self, most: usize) {
        self.duration.set_max_series(most);
        self.compute.set_max_series(most);
        self.setup_duration.set_max_series(most);
        self.setup_excess.set_max_series(most);
    }

    fn handshake(&mut self, tls: &Tls, labels: &Labels, key: Option<&Key>) {
        let word = |word: Option<&'static str>| word.unwrap_or(UNKNOWN);
        self.ended
            .with_label_values(&[
                word(tls.role.map(Role::as_str)),
                word(tls.version.map(TlsVersion::as_str)),
                word(tls.class.map(TlsClass::as_str)),
                word(tls.library.map(Library::as_str)),
                word(tls.outcome.map(TlsOutcome::as_str)),
            ])
            .inc();
        if tls.outcome == Some(TlsOutcome::Completed) {
            let codes = [
                Role::code_of(tls.role),
                TlsVersion::code_of(tls.version),
                TlsClass::code_of(tls.class),
                Library::code_of(tls.library),
            ];
            self.negotiated.count(tls, labels, key);
            self.duration.observe(codes, tls.duration, labels, key);
            self.compute.observe(codes, tls.compute, labels, key);
        }
    }

    fn set_up(&mut self, event: &ConnectionEvent, labels: &Labels, key: Option<&Key>) {
        let Some(setup) = event.setup else { return };
        let version = event.tls.as_ref().map_or(NO_TLS, |tls| TlsVersion::code_of(tls.version));
        let codes = [Role::code_of(event.role), version];
        self.setup_duration.observe(codes, setup.duration, labels, key);
        // A bucket of a histogram holds no time below zero.
        let excess = setup.excess_us.map(|excess| Duration::from_micros(u64::try_from(excess).unwrap_or(0)));
        self.setup_excess.observe(codes, excess, labels, key);
        if let Some(round_trips) = setup.round_trips {
            let role = event.role.map_or(UNKNOWN, Role::as_str);
            let word = ROUND_TRIPS.get(usize::from(round_trips)).copied().unwrap_or("more");
            self.setup_round_trips.with_label_values(&[role, word]).inc();
        }
    }

    /// Takes the setups without TLS that the kernel side has counted.
    pub(super) fn fill(&mut self, from: &Histograms, totals: &Totals) {
        let is_plain = |version| version == NO_TLS;
        self.setup_duration.fill(from, |[role, version]| {
            is_plain(version).then(|| histograms::setup_duration(Role::from_code(role)))
        });
        self.setup_excess.fill(from, |[role, version]| {
            is_plain(version).then(|| histograms::setup_excess(Role::from_code(role)))
        });
        for (slot, counter, seen) in &mut self.plain {
            counter.inc_by(rise(seen, totals.at(*slot)));
        }
    }

    /// Counts the handshakes whose records were lost: that they ended is known, not how they went.
    pub(super) fn advance(&mut self, totals: &Totals) {
        let codes = (0..).zip(&mut self.lost);
        for (code, seen) in codes {
            let more = rise(seen, totals.at(totals::tls_lost(code)));
            if more > 0 {
                let outcome = TlsOutcome::from_code(code).map_or(UNKNOWN, TlsOutcome::as_str);
                self.ended.with_label_values(&[UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, outcome]).inc_by(more);
            }
        }
    }
}
