//! From raw records and totals to the text that is scraped.

use std::collections::BTreeMap;

use handshake_common::{Connection, ConnectionFlags, tcp::setup, tls::library::key::Key};
use proptest::prelude::*;

use super::{gauge::tests::totals, *};
use crate::{
    config::{Buckets, Config, Label},
    event::testing::waited,
    join::{
        Joiner,
        build::tests::{Epoch, client, event, tls_event},
        view::tests::completed,
    },
    kernel::raw_record::RawRecord,
};

fn settings() -> config::Metrics {
    config::Metrics { buckets: Buckets::All(vec![0.001, 1.0]), ..Config::default().metrics }
}

/// More bounds than the kernel side takes: the durations are those of the records.
fn from_records() -> config::Metrics {
    let many = (0..40).map(|number| 1e6 + f64::from(number));
    config::Metrics { buckets: Buckets::All([0.001, 1.0].into_iter().chain(many).collect()), ..settings() }
}

fn metrics(settings: &config::Metrics) -> Metrics {
    Metrics::new(settings).unwrap()
}

/// The lines that say something: no comment, no zero, no version.
fn said(metrics: &Metrics) -> String {
    let text = metrics.render(Format::Text).unwrap();
    let lines = text.lines().filter(|line| {
        !line.starts_with('#') && !line.starts_with("handshake_build_info") && !line.contains("le=\"10000")
    });
    lines.filter(|line| !line.ends_with(" 0")).flat_map(|line| [line, "\n"]).collect()
}

fn server() -> Connection {
    Connection { role: Role::Server.code(), local_port: 443, ..client() }
}

/// A client whose peer closed first, 20 ms before it closed itself; its FIN was acknowledged 50 ms later.
fn closed() -> Connection {
    let mut raw = client();
    raw.stage = Stage::Close.code();
    raw.initiator = Initiator::Remote.code();
    raw.flags.insert(ConnectionFlags::ACKED_BEFORE_CLOSE);
    (raw.peer_fin_ns, raw.our_close_ns, raw.our_fin_ns) = (2_000_000_000, 2_020_000_000, 2_020_000_000);
    (raw.fin_acked_ns, raw.closed_ns) = (2_070_000_000, 2_070_000_000);
    raw
}

#[test]
fn every_counter_is_there_from_the_start_and_no_empty_histogram() {
    let metrics = metrics(&settings());
    metrics.probe("inet_sock_set_state", PENDING, false);
    let text = metrics.render(Format::Text).unwrap();
    let series = text.lines().filter(|line| !line.contains("_bucket{") && !line.contains("_sum"));
    let version = env!("CARGO_PKG_VERSION");
    let listed: String = series.flat_map(|line| [line, "\n"]).collect();
    insta::assert_snapshot!(listed.replace(version, "VERSION").replace(std::env::consts::ARCH, "ARCH"));
}

/// What an operator pays for before anything happens, and on a host whose only connections are those of the
/// scrape: docs/metrics.md has both figures.
#[test]
fn page_of_an_idle_host_is_small() {
    let defaults = Config::default().metrics;
    let mut metrics = metrics(&defaults);
    for number in 0..9 {
        metrics.probe(&format!("tracepoint_{number}"), "tp_btf", true);
    }
    let size = |metrics: &Metrics| {
        let text = metrics.render(Format::Text).unwrap();
        (text.lines().count(), text.len())
    };
    let before = size(&metrics);
    let mut kernel = InKernel::default();
    for made in
        [closed(), Connection { role: Role::Server.code(), initiator: Initiator::Local.code(), ..closed() }]
    {
        kernel.take(&made, &defaults.bounds());
    }
    metrics.fill(&kernel.histograms, &totals(&kernel.setups), WireCoverage::All);
    let after = size(&metrics);
    println!("{before:?} lines and bytes, {after:?} with the connections of scrapes");
    assert!(before.0 < 330 && before.1 < 24_000, "{before:?}");
    assert!(after.0 < 700 && after.1 < 60_000, "{after:?}");
}

#[test]
fn late_fin_counts_where_its_bucket_is_certain() {
    let mut metrics = metrics(&config::Metrics { buckets: Buckets::All(vec![0.1, 1.0]), ..settings() });
    let end = waited(Role::Client);
    let fin = |app_wait_ms: u64, grain_ms: u64| {
        let mut fin = end.clone();
        let close = fin.close.as_mut().unwrap();
        (close.time_wait, close.time_wait_end) = (None, None);
        (close.app_wait, close.grain) =
            (Some(Duration::from_millis(app_wait_ms)), Some(Duration::from_millis(grain_ms)));
        close.duration = Some(Duration::from_millis(app_wait_ms + 50));
        fin
    };
    let mut count = |event: &ConnectionEvent, line: &str| {
        metrics.observe(event);
        let text = metrics.render(Format::Text).unwrap();
        text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let app_wait = "handshake_tcp_close_app_wait_seconds_count{initiator=\"local\",role=\"client\"}";
    assert_eq!(count(&fin(123, 1), app_wait), 1);
    assert_eq!(count(&fin(123, 100), app_wait), 1, "it may be in two buckets");
    assert_eq!(count(&end, app_wait), 1, "it was counted already");
    assert_eq!(count(&end, "handshake_tcp_time_wait_seconds_count"), 2);
    assert_eq!(count(&end, "handshake_tcp_time_wait_ends_total{end=\"ran_out\"}"), 3);
}

#[test]
fn records_become_durations() {
    let mut metrics = metrics(&from_records());
    metrics.observe(&event(&client()));
    metrics.observe(&event(&server()));
    metrics.observe(&event(&closed()));
    let mut refused = client();
    (refused.flags, refused.error) = (ConnectionFlags::empty(), 111);
    metrics.observe(&event(&refused));
    insta::assert_snapshot!(said(&metrics));
}

#[test]
fn what_is_unknown_is_an_event_and_no_duration() {
    let mut metrics = metrics(&settings());
    let mut raw = closed();
    raw.flags.insert(ConnectionFlags::PREEXISTING);
    (raw.role, raw.peer_fin_ns, raw.our_fin_ns) = (0, 0, 0);
    metrics.observe(&event(&raw));
    assert_eq!(said(&metrics), "handshake_events_total{stage=\"close\"} 1\n");
}

#[test]
fn totals_come_from_the_kernel_and_only_ever_advance() {
    let mut metrics = metrics(&settings());
    let (client, v4) = (Some(Role::Client), Some(Family::Ipv4));
    let first = [
        (totals::begun(client), 9),
        (totals::opens(client, v4, Some(Outcome::Established)), 5),
        (totals::opens(client, v4, Some(Outcome::Refused)), 2),
        (totals::opens(None, None, None), 1),
        (totals::fast_opens(client, Some(FastOpen::DataAccepted)), 1),
        (totals::fast_opens(client, Some(FastOpen::None)), 4),
        (totals::syn_retransmits(Role::Server), 3),
        (totals::closing(client), 2),
        (totals::closes(client, Some(Initiator::Local), Some(CloseStyle::FourSegments)), 1),
        (totals::lost(DropReason::RingFull), 6),
    ];
    metrics.found(&Census { established: 7, ..Census::default() }, &Totals::ZERO);
    metrics.advance(&totals(&first), 1);
    let second: Vec<_> = first.iter().map(|&(slot, count)| (slot, count * 2)).collect();
    metrics.advance(&totals(&second), 2);
    // Whatever makes a count smaller is no event.
    metrics.advance(&totals(&second), 0);
    metrics.malformed(1);
    insta::assert_snapshot!(said(&metrics));
}

#[test]
fn labels_on_demand_stand_apart_until_there_are_too_many() {
    let settings =
        config::Metrics { labels: vec![Label::Process, Label::LocalPort], max_series: 2, ..settings() };
    let mut metrics = metrics(&settings);
    for comm in [*b"curl\0\0\0\0\0\0\0\0\0\0\0\0", *b"wget\0\0\0\0\0\0\0\0\0\0\0\0", [b'a'; 16], [b'b'; 16]] {
        for _ in 0..2 {
            metrics.observe(&event(&Connection { comm, ..client() }));
        }
    }
    insta::assert_snapshot!(said(&metrics));
}

#[test]
fn a_probe_is_pending_until_it_is_attached() {
    let metrics = metrics(&settings());
    metrics.probe("tcp_destroy_sock", PENDING, false);
    metrics.probe("tcp_destroy_sock", "tp_btf", true);
    assert_eq!(said(&metrics), "handshake_probe_attached{kind=\"tp_btf\",probe=\"tcp_destroy_sock\"} 1\n");
    assert!(!metrics.render(Format::Text).unwrap().contains(PENDING));
}

#[test]
fn handshakes_and_setups_are_told_once() {
    use handshake_common::{TlsClass, TlsVersion};

    let mut metrics = metrics(&settings());
    let tls = completed(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    let event = tls_event(&client(), &tls);
    metrics.observe(&event);
    metrics.observe(&ConnectionEvent { stage: Stage::Close, ..event });
    metrics.library(Library::OpenSsl, true, 2);
    metrics.advance(&totals(&[(totals::tls_lost(1), 3)]), 0);
    let lines = said(&metrics);
    let told: String = lines
        .lines()
        .filter(|line| !line.contains("_bucket") && (line.contains("_tls_") || line.contains("_setup_")))
        .flat_map(|line| [line, "\n"])
        .collect();
    insta::assert_snapshot!(told);
}

/// What the kernel side would have observed and counted.
#[derive(Default)]
struct InKernel {
    histograms: Histograms,
    setups: Vec<(usize, u64)>,
}

impl InKernel {
    /// A connection that opened and closed; returns whether user space gets its close record.
    fn take(&mut self, connection: &Connection, bounds: &Bounds) -> bool {
        let Self { histograms, setups } = self;
        let mut observe = |series, us| histograms.observe(bounds, series, us);
        histograms::opened(connection, &mut observe);
        histograms::closed(connection, &mut observe);
        if connection.shows_no_tls()
            && let Some(round_trips) = setup::round_trips(connection)
        {
            histograms::set_up(connection, &mut observe);
            setups.push((totals::setups(connection.role(), round_trips), 1));
        }
        !connection.shows_no_tls()
    }
}

/// The samples but those of the bounds that only [`from_records`] has, and those that count records.
fn samples(metrics: &Metrics) -> BTreeMap<String, f64> {
    let text = metrics.render(Format::Text).unwrap();
    let lines = text.lines().filter(|line| {
        !line.starts_with('#') && !line.contains("le=\"10000") && !line.starts_with("handshake_events_total")
    });
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse::<f64>().unwrap())
    };
    lines.map(sample).filter(|(_, value)| *value != 0.0).collect()
}

prop_compose! {
    fn connections()(
        [role, family, initiator, wire] in [0..=3_u8, 0..=3_u8, 0..=4_u8, 0..=2_u8],
        flags in prop_oneof![Just(1 << 1), any::<u32>()],
        times in any::<[u32; 8]>(),
        which in any::<u8>(),
        srtt_us in prop_oneof![Just(0), Just(2000), 1..5_000_000_u32],
        syn_retransmits in 0..=1_u16,
        error in prop_oneof![Just(0), Just(110), Just(111)],
        tls_session in prop_oneof![4 => Just(Key::NONE), 1 => Just(Key::ENDED), 1 => Just(Key { tgid: 9, ..Key::NONE })],
    ) -> Connection {
        // Seconds apart at most, in any order, some not seen.
        let mut flags = ConnectionFlags::from_bits_retain(flags);
        // A server's socket is adopted before it is established.
        flags.set(ConnectionFlags::PREEXISTING, flags.contains(ConnectionFlags::PREEXISTING) && role != 2);
        let seen = |at: usize| {
            if which >> at & 1 == 0 { 5_000_000_000_000 + u64::from(times[at]) } else { 0 }
        };
        Connection {
            role, family, initiator, wire, srtt_us, syn_retransmits, error, tls_session,
            flags,
            syn_ns: seen(0), open_ns: seen(1), our_close_ns: seen(2), our_fin_ns: seen(3),
            fin_acked_ns: seen(4), peer_fin_ns: seen(5), closed_ns: seen(6), id: 7,
            ..Connection::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn kernel_and_records_give_the_same_histograms(made in prop::collection::vec(connections(), 1..8)) {
        let bounds = settings().bounds();
        prop_assert_ne!(bounds, Bounds::NONE);
        let (mut by_kernel, mut by_records) = (metrics(&settings()), metrics(&from_records()));
        let mut kernel = InKernel::default();
        let [mut few, mut all] = [(); 2].map(|()| Joiner::new(WireCoverage::All));
        for (id, made) in (1..).zip(made) {
            let open = Connection { id, stage: Stage::Open.code(), ..made };
            let close = Connection { stage: Stage::Close.code(), ..open };
            for record in [open, close] {
                all.take(&RawRecord::Connection(record), 0, &mut Epoch, |event| by_records.observe(&event));
            }
            if kernel.take(&close, &bounds) {
                few.take(&RawRecord::Connection(close), 0, &mut Epoch, |event| by_kernel.observe(&event));
            }
        }
        all.finish(&mut Epoch, |event| by_records.observe(&event));
        few.finish(&mut Epoch, |event| by_kernel.observe(&event));
        by_kernel.fill(&kernel.histograms, &totals(&kernel.setups), WireCoverage::All);
        let (by_kernel, by_records) = (samples(&by_kernel), samples(&by_records));
        prop_assert_eq!(by_kernel.keys().collect::<Vec<_>>(), by_records.keys().collect::<Vec<_>>());
        for ((name, kernel), records) in by_kernel.iter().zip(by_records.values()) {
            // Sums are of floats, in different orders.
            let tolerance = if name.contains("_sum") { 1e-9 } else { 0.0 };
            prop_assert!((kernel - records).abs() <= tolerance, "{}: {} is not {}", name, kernel, records);
        }
    }
}

#[test]
fn setups_without_tls_are_known_only_where_all_tls_is_seen() {
    for (wire, setups) in
        [(WireCoverage::All, true), (WireCoverage::Some, false), (WireCoverage::None, false)]
    {
        let mut metrics = metrics(&settings());
        let mut kernel = InKernel::default();
        kernel.take(&closed(), &settings().bounds());
        for _ in 0..2 {
            metrics.fill(&kernel.histograms, &totals(&kernel.setups), wire);
        }
        let said = said(&metrics);
        let trips = "handshake_setup_round_trips_total{role=\"client\",round_trips=\"1\"} 1\n";
        assert_eq!(said.contains(trips), setups, "{said}");
        assert_eq!(said.contains("handshake_setup_duration_seconds_count"), setups, "{said}");
        assert!(said.contains("handshake_tcp_close_ack_wait_seconds_count"), "{said}");
    }
}

#[test]
fn kernel_fills_histograms_only_where_it_can() {
    let labelled = config::Metrics { labels: vec![Label::Process], ..settings() };
    assert_ne!(settings().bounds(), Bounds::NONE);
    assert_eq!([labelled.bounds(), from_records().bounds()], [Bounds::NONE; 2]);
}
