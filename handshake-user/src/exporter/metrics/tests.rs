//! From raw records and totals to the text that is scraped.

use handshake_common::{Connection, ConnectionFlags};

use super::{gauge::tests::totals, *};
use crate::{
    config::{Config, Label},
    event::testing::waited,
    join::{
        build::tests::{client, event, tls_event},
        view::tests::completed,
    },
};

fn settings() -> config::Metrics {
    config::Metrics { buckets: vec![0.001, 1.0], ..Config::default().metrics }
}

fn metrics(settings: &config::Metrics) -> Metrics {
    Metrics::new(settings).unwrap()
}

/// The lines that say something: no comment, no zero, no version.
fn said(metrics: &Metrics) -> String {
    let text = metrics.render().unwrap();
    let lines =
        text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("handshake_build_info"));
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
fn every_series_is_there_from_the_start() {
    let metrics = metrics(&settings());
    metrics.probe("inet_sock_set_state", PENDING, false);
    let text = metrics.render().unwrap();
    let series = text.lines().filter(|line| !line.contains("_bucket{") && !line.contains("_sum"));
    let version = env!("CARGO_PKG_VERSION");
    let listed: String = series.flat_map(|line| [line, "\n"]).collect();
    insta::assert_snapshot!(listed.replace(version, "VERSION").replace(std::env::consts::ARCH, "ARCH"));
}

#[test]
fn late_fin_counts_where_its_bucket_is_certain() {
    let mut metrics = metrics(&config::Metrics { buckets: vec![0.1, 1.0], ..settings() });
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
        let text = metrics.render().unwrap();
        text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse::<u64>().ok()).unwrap()
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
    let mut metrics = metrics(&settings());
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
    assert!(!metrics.render().unwrap().contains(PENDING));
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
