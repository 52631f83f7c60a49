//! Connections as traces, taken by a collector that also hangs, lies or dies.
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    net::TcpStream,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use flate2::read::MultiGzDecoder;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, status::StatusCode},
};
use rustls::{ServerConfig, pki_types::pem::PemObject as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::collector::{Collector, Manner, any, text, wait_for};
use crate::{
    close, connect, listen,
    program::{Scrape, machine::patience, tls_server::TlsServer},
    web::Certificates,
};

const EXPORTED: &str = "handshake_otlp_spans_exported_total";
const DROPPED: &str = "handshake_otlp_spans_dropped_total";
const CONNECTIONS: &str = "handshake_otlp_connections_total";

/// The close records of this address in the daemon's files.
fn closes(folder: &Path, address: &str) -> Vec<Value> {
    let mut text = String::new();
    for file in fs::read_dir(folder).unwrap() {
        let file = fs::File::open(file.unwrap().path()).unwrap();
        MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    }
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ends_here =
        |record: &Value| [&record["local"], &record["remote"]].iter().any(|end| end["addr"] == address);
    records.filter(|record| record["event"] == "close" && ends_here(record)).collect()
}

/// A time of RFC 3339, microseconds since 1970.
fn micros(time: &Value) -> u64 {
    let time = humantime::parse_rfc3339(time.as_str().unwrap()).unwrap();
    u64::try_from(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// As the documentation says.
fn trace_id(record: &Value) -> Vec<u8> {
    let text = |key: &str| record[key].as_str().unwrap();
    Sha256::digest(format!("{}/{}", text("boot_id"), text("id")))[..16].to_vec()
}

#[test]
fn connection_is_a_trace_and_its_times_are_those_of_its_record() {
    let collector = Collector::start(Manner::Takes);
    let folder = tempfile::tempdir().unwrap();
    let server = TlsServer::start(2, &["-tls1_3"]);
    let daemon = collector.daemon_with(
        &["--records", folder.path().to_str().unwrap()],
        &[
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b"),
        ],
    );
    let (listener, at, _) = listen("127.77.60.1");
    for _ in 0..5 {
        close(connect(&listener, at));
    }
    let mut curl = Command::new("curl");
    curl.args(["-sk", "-o", "/dev/null", "--resolve"])
        .arg(format!("example.org:{}:127.0.0.1", server.address.port()));
    assert!(curl.arg(format!("https://example.org:{}/", server.address.port())).status().unwrap().success());

    let is_tls = |span: &Span| {
        let port = Some(&Any::IntValue(i64::from(server.address.port())));
        any(&span.attributes, "server.port") == port && span.parent_span_id.is_empty()
    };
    let tls = || collector.spans().into_iter().map(|(span, _)| span).filter(is_tls).count();
    wait_for("5 connections of two ends, and one with TLS", || {
        collector.wholes("127.77.60.1").len() == 10 && tls() == 2
    });
    let mut records = Vec::new();
    wait_for("their records", || {
        records = closes(folder.path(), "127.77.60.1");
        let with_tls = closes(folder.path(), "127.0.0.1").into_iter();
        let port = server.address.port();
        records.extend(
            with_tls.filter(|record| record["local"]["port"] == port || record["remote"]["port"] == port),
        );
        records.len() == 12
    });

    let mut traces: HashMap<Vec<u8>, Vec<(Span, Vec<KeyValue>)>> = HashMap::new();
    for (span, resource) in collector.spans() {
        traces.entry(span.trace_id.clone()).or_default().push((span, resource));
    }
    let mut parts = 0;
    for record in &records {
        let trace = traces.get(&trace_id(record)).unwrap_or_else(|| panic!("no trace of {record}"));
        let (whole, resource) = trace.iter().find(|(span, _)| span.parent_span_id.is_empty()).unwrap();
        let at = |ns: u64| ns / 1000;
        let number = |value: &Value| value.as_u64();
        assert_eq!(at(whole.end_time_unix_nano), micros(&record["time"]), "{record}");
        if let Some(lifetime) = number(&record["lifetime_us"]) {
            assert_eq!(whole.end_time_unix_nano - whole.start_time_unix_nano, lifetime * 1000, "{record}");
        }
        for (part, _) in trace.iter().filter(|(span, _)| !span.parent_span_id.is_empty()) {
            parts += 1;
            assert_eq!(part.parent_span_id, whole.span_id);
            let lasts = part.end_time_unix_nano - part.start_time_unix_nano;
            let (begins, said) = match part.name.as_str() {
                "TCP open" => (0, &record["open"]["duration_us"]),
                "TLS handshake" => {
                    (record["tls"]["start_us"].as_u64().unwrap(), &record["tls"]["duration_us"])
                }
                "TCP close" => {
                    assert_eq!(part.end_time_unix_nano, whole.end_time_unix_nano, "{record}");
                    // Where the FINs crossed, it ends with the ACK of ours.
                    let crossed = record["close"]["style"] == "simultaneous";
                    let end = if crossed { "ack_wait_us" } else { "duration_us" };
                    assert_eq!(Some(lasts / 1000), number(&record["close"][end]), "{record}");
                    continue;
                }
                // It comes later.
                "TCP TIME_WAIT" => continue,
                other => panic!("{other}: {part:?}"),
            };
            assert_eq!(part.start_time_unix_nano, whole.start_time_unix_nano + begins * 1000, "{record}");
            assert_eq!(Some(lasts / 1000), number(said), "{record}");
            assert!(part.end_time_unix_nano <= whole.end_time_unix_nano, "{record}");
        }
        assert_eq!(text(&whole.attributes, "handshake.id").as_deref(), record["id"].as_str());
        assert_eq!(text(resource, "host.name").as_deref(), record["host"].as_str());
        assert_eq!(text(resource, "deployment.environment.name").as_deref(), Some("test"));
        if let Some(comm) = record["process"]["comm"].as_str() {
            assert_eq!(text(resource, "service.name").as_deref(), Some(comm));
        }
    }
    assert!(parts >= 12 * 2, "an opening and a closing each, {parts}");
    let curl = collector.spans().into_iter().find(|(span, _)| {
        span.name == "TLS handshake"
            && text(&span.attributes, "handshake.tls.role").as_deref() == Some("client")
    });
    let (handshake, _) = curl.expect("the handshake of curl");
    assert_eq!(text(&handshake.attributes, "tls.protocol.version").as_deref(), Some("1.3"));
    assert_eq!(any(&handshake.attributes, "tls.established"), Some(&Any::BoolValue(true)));
    assert!(handshake.events.iter().filter(|event| event.name == "flight").count() >= 2, "{handshake:?}");

    let headers = collector.seen.lock().unwrap().headers.clone();
    assert!(headers.starts_with("post /v1/traces http/1.1"), "{headers}");
    assert!(headers.contains("x-tenant: a b") && headers.contains("application/x-protobuf"), "{headers}");
    let (scrape, taken) = (daemon.scrape(), collector.spans().len());
    assert!(scrape.sum(EXPORTED, &[]) <= taken as f64 && scrape.sum(EXPORTED, &[]) > 0.0);
    assert_eq!(scrape.sum(DROPPED, &[]), 0.0);
}

#[test]
fn own_connections_are_not_exported_even_if_the_collector_closes_each() {
    let collector = Collector::start(Manner::Closes);
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.61.1");
    for round in 1..=4 {
        close(connect(&listener, at));
        wait_for("the connection", || collector.wholes("127.77.61.1").len() == 2 * round);
    }
    assert!(collector.requests() >= 4);
    // The connections to the collector have closed, and would be among these.
    thread::sleep(Duration::from_secs(3));
    let port = Some(&Any::IntValue(i64::from(collector.address.port())));
    for (span, _) in collector.spans() {
        let ends = ["network.local.port", "network.peer.port"];
        assert!(ends.iter().all(|end| any(&span.attributes, end) != port), "{span:?}");
    }
    drop(daemon);
}

#[test]
fn collector_that_is_killed_and_comes_back_misses_nothing_and_is_told_nothing_twice() {
    let mut collector = Collector::start(Manner::Takes);
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.62.1");
    let begin = Instant::now();
    let mut made = 0;
    let mut load = |until: u64| {
        while begin.elapsed() < Duration::from_secs(until) {
            close(connect(&listener, at));
            made += 1;
        }
    };
    load(2);
    collector.kill();
    load(5);
    collector.come_back();
    load(7);
    wait_for("every connection", || collector.wholes("127.77.62.1").len() >= 2 * made);
    let wholes = collector.wholes("127.77.62.1");
    assert_eq!(wholes.len(), 2 * made, "each once");
    let mut told: HashMap<(Vec<u8>, Vec<u8>), u32> = HashMap::new();
    for (span, _) in collector.spans() {
        *told.entry((span.trace_id, span.span_id)).or_default() += 1;
    }
    let twice: Vec<_> = told.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // What the collector took, the daemon counts, and the rest waits for the next request.
    let scrape = daemon.scrape_until(|scrape| scrape.sum(EXPORTED, &[]) == collector.spans().len() as f64);
    assert_eq!(scrape.sum(EXPORTED, &[]), collector.spans().len() as f64);
    assert_eq!(scrape.sum(DROPPED, &[]), 0.0);
    assert!(scrape.sum(CONNECTIONS, &["sampled=\"true\""]) >= 2.0 * made as f64);
    assert!(daemon.said().contains("connections are not exported: cannot connect"), "{}", daemon.said());
}

#[test]
fn collector_that_hangs_stalls_nothing_and_is_asked_again() {
    let collector = Collector::start(Manner::Hangs);
    let daemon = collector.daemon_with(&[], &[("OTEL_EXPORTER_OTLP_TIMEOUT", "300")]);
    let (listener, at, _) = listen("127.77.63.1");
    for _ in 0..10 {
        close(connect(&listener, at));
    }
    wait_for("a second attempt", || collector.requests() >= 2);
    let before = daemon.scrape().sum("handshake_events_total", &["stage=\"close\""]);
    close(connect(&listener, at));
    let after = daemon
        .scrape_until(|scrape| scrape.sum("handshake_events_total", &["stage=\"close\""]) >= before + 2.0);
    assert!(after.sum("handshake_events_total", &["stage=\"close\""]) >= before + 2.0);
    assert_eq!((after.sum(EXPORTED, &[]), after.sum(DROPPED, &[])), (0.0, 0.0));
    assert_eq!(daemon.request("GET", "/healthz").0, 200);
    assert!(daemon.said().contains("no answer in time"), "{}", daemon.said());
    collector.behave(Manner::Takes);
    wait_for("all of them", || collector.wholes("127.77.63.1").len() == 22);
}

#[test]
fn end_does_not_wait_for_a_collector_that_hangs() {
    let collector = Collector::start(Manner::Hangs);
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.64.1");
    close(connect(&listener, at));
    wait_for("an attempt", || collector.requests() >= 1);
    let (status, took, log) = daemon.end(Signal::SIGTERM);
    assert!(status.success() && took < patience(Duration::from_secs(30)), "{took:?}");
    let log = String::from_utf8(log).unwrap();
    assert!(log.contains("spans were not exported before the end"), "{log}");

    // And one that listens gets the last second.
    collector.behave(Manner::Takes);
    let daemon = collector.daemon(&[]);
    let before = collector.wholes("127.77.64.1").len();
    close(connect(&listener, at));
    thread::sleep(Duration::from_millis(100));
    assert!(daemon.end(Signal::SIGTERM).0.success());
    assert_eq!(collector.wholes("127.77.64.1").len(), before + 2);
}

#[test]
fn collector_is_asked_again_when_it_says_and_not_before() {
    let collector = Collector::start(Manner::Later(4));
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.65.1");
    close(connect(&listener, at));
    wait_for("the first request", || collector.requests() == 1);
    collector.behave(Manner::Takes);
    wait_for("the connection", || collector.wholes("127.77.65.1").len() == 2);
    let seen = collector.seen.lock().unwrap();
    let waited = seen.asked[1] - seen.asked[0];
    assert!(waited >= Duration::from_secs(4), "{waited:?}");
    drop(seen);
    assert_eq!(daemon.scrape().sum(DROPPED, &[]), 0.0);
}

#[test]
fn collector_that_lies_costs_spans_that_are_counted_and_nothing_else() {
    let collector = Collector::start(Manner::Rejects(i64::MAX));
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.66.1");
    let dropped = |scrape: &Scrape, reason: &str| scrape.sum(DROPPED, &[&format!("reason=\"{reason}\"")]);
    let mut before: f64 = 0.0;
    for (manner, reason) in [
        (Manner::Rejects(i64::MAX), "rejected"),
        (Manner::Raves, "unconfirmed"),
        (Manner::GoesOn, "unconfirmed"),
        (Manner::Says(400), "refused"),
        (Manner::Says(301), "refused"),
    ] {
        collector.behave(manner);
        let so_far = dropped(&daemon.scrape(), reason);
        close(connect(&listener, at));
        let scrape = daemon.scrape_until(|scrape| dropped(scrape, reason) >= so_far + 2.0);
        assert!(dropped(&scrape, reason) >= so_far + 2.0, "{manner:?}");
        before = before.max(scrape.sum(EXPORTED, &[]));
    }
    assert_eq!(before, 0.0, "it took nothing");
    assert!(daemon.said().contains("no room"), "{}", daemon.said());
    // Some, and the rest is exported.
    collector.behave(Manner::Rejects(1));
    let rejected = dropped(&daemon.scrape(), "rejected");
    close(connect(&listener, at));
    let scrape = daemon.scrape_until(|scrape| scrape.sum(EXPORTED, &[]) >= 1.0);
    assert!(scrape.sum(EXPORTED, &[]) >= 1.0);
    assert!(dropped(&scrape, "rejected") >= rejected + 1.0);
    assert!(daemon.resident_kib() < 256 << 10);
}

#[test]
fn sample_never_leaves_out_a_failure() {
    let collector = Collector::start(Manner::Takes);
    let daemon = collector.daemon(&["--otlp-sample", "0"]);
    let (listener, at, _) = listen("127.77.67.1");
    for _ in 0..10 {
        close(connect(&listener, at));
    }
    drop(listener);
    TcpStream::connect(at).unwrap_err();
    wait_for("the failure", || !collector.wholes("127.77.67.1").is_empty());
    let scrape = daemon.scrape_until(|scrape| scrape.sum(CONNECTIONS, &["sampled=\"false\""]) >= 20.0);
    assert!(scrape.sum(CONNECTIONS, &["sampled=\"false\""]) >= 20.0);
    thread::sleep(Duration::from_secs(2));
    let [whole] = &collector.wholes("127.77.67.1")[..] else { panic!("more than the failure") };
    assert_eq!((whole.trace_state.as_str(), whole.kind), ("ot=th:0", 3));
    let status = whole.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "refused"));
}

#[test]
fn collector_is_verified_by_the_authority_that_a_variable_names() {
    let made = Certificates::new();
    let chain = rustls::pki_types::CertificateDer::from_pem_file(made.path("server.pem")).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(made.path("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![chain], key).unwrap();
    let collector = Collector::start_with(Manner::Takes, Some(config));
    let (listener, at, _) = listen("127.77.68.1");
    let authority = made.path("ca.pem");
    let variable = ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.to_str().unwrap());
    let daemon = collector.daemon_with(&[], &[variable]);
    close(connect(&listener, at));
    wait_for("the connection", || collector.wholes("127.77.68.1").len() == 2);
    drop(daemon);

    let other = made.path("client.pem");
    let variable = ("OTEL_EXPORTER_OTLP_CERTIFICATE", other.to_str().unwrap());
    let daemon = collector.daemon_with(&[], &[variable]);
    close(connect(&listener, at));
    wait_for("trouble", || daemon.said().contains("connections are not exported: cannot connect"));
    assert_eq!(collector.wholes("127.77.68.1").len(), 2);
}
