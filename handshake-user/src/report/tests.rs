//! What a report has of a few connections, in each of its forms.

use handshake_common::{TlsClass, TlsVersion};

use super::{html::html, text::text, *};
use crate::event::{
    ConnectionId,
    testing::{closed, opened, us, with_tls},
};

fn report(records: impl IntoIterator<Item = ConnectionEvent>) -> Report {
    let mut collector = Collector::default();
    for (id, mut record) in (1..).zip(records) {
        record.id = ConnectionId::of_socket(id, 0);
        collector.take(record);
    }
    collector.finish(Missing::default())
}

fn few() -> Vec<ConnectionEvent> {
    let mut refused = opened(Role::Client);
    refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
    let mut failed = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    let tls = failed.tls.as_mut().unwrap();
    (tls.outcome, tls.alert, tls.alert_from) =
        (Some(TlsOutcome::Failed), Some("unknown_ca".into()), Some(Role::Client));
    failed.setup = None;
    vec![
        closed(Role::Server),
        with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Full),
        with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Full),
        with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Resumed),
        refused,
        failed,
    ]
}

#[test]
fn text_tells_the_story_of_a_few_connections() {
    let mut report = report(few());
    report.slowest.truncate(1);
    insta::assert_snapshot!(text(&report));
}

#[test]
fn page_tells_the_same() {
    let mut report = report(few());
    report.slowest.truncate(1);
    let page = html(&report);
    let (_, body) = page.split_once("</style>").unwrap();
    insta::assert_snapshot!(body);
}

#[test]
fn counts_are_those_of_the_connections() {
    let report = report(few());
    assert_eq!((report.records, report.connections, report.bad_lines), (6, 6, 0));
    let failures: Vec<_> =
        report.failures.iter().map(|row| (row.layer, row.reason.as_str(), row.count)).collect();
    assert_eq!(failures, [("TCP", "refused", 1), ("TLS", "failed, alert unknown_ca from the client", 1)]);
    let inventory: Vec<_> = report.inventory.iter().map(|row| (row.version, row.class, row.count)).collect();
    assert_eq!(inventory, [("1.2", "full", 2), ("1.3", "resumed", 1)]);
}

#[test]
fn stages_of_a_connection_are_one_connection() {
    let mut collector = Collector::default();
    for mut record in [opened(Role::Server), closed(Role::Server)] {
        record.id = ConnectionId::of_socket(1, 0);
        collector.take(record);
    }
    let report = collector.finish(Missing::default());
    assert_eq!((report.records, report.connections), (2, 1));
    let counts: Vec<_> = report.stages.iter().map(|row| (row.stage.as_str(), row.count)).collect();
    assert_eq!(counts, [("open", 1), ("close", 1), ("setup", 1)]);
}

#[test]
fn slowest_are_ten_in_order() {
    let records = (0..30).map(|i| {
        let mut record = opened(Role::Client);
        // 7 and 30 have no common factor: every number once, in disorder.
        record.open.as_mut().unwrap().duration = us(1_000 * (i * 7 % 30));
        record
    });
    let slowest = report(records).slowest;
    let took: Vec<_> = slowest.iter().map(|record| record.duration().unwrap().as_millis()).collect();
    assert_eq!(took, (20..30).rev().collect::<Vec<_>>());
}

#[test]
fn rows_are_bounded() {
    let many = u64::try_from(3 * MAX_ROWS).unwrap();
    let records = (0..many).map(|i| {
        let mut record = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        let tls = record.tls.as_mut().unwrap();
        tls.cipher = Some(format!("cipher {i}").into());
        tls.sni = Some(format!("host{i}.example").into());
        record
    });
    let report = report(records);
    assert_eq!(report.inventory.len(), MAX_ROWS + 1);
    assert_eq!(report.inventory.iter().map(|row| row.count).sum::<u64>(), many);
    let other = report.inventory.iter().find(|row| row.cipher == OTHER).unwrap();
    assert_eq!(other.count, many - u64::try_from(MAX_ROWS).unwrap());
    assert_eq!(report.services.last().unwrap().service, OTHER);
    assert!(report.services.len() <= Limits::default().groups + 1);
}

#[test]
fn markup_of_strangers_is_shown_not_obeyed() {
    const EVIL: &str = "<script>alert('\"&')</script>\u{202e}";
    let mut record = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
    record.process.as_mut().unwrap().comm = Some(EVIL.into());
    let tls = record.tls.as_mut().unwrap();
    (tls.sni, tls.cipher, tls.alpn) = (Some(EVIL.into()), Some(EVIL.into()), Some(EVIL.into()));
    let mut failed = record.clone();
    let tls = failed.tls.as_mut().unwrap();
    (tls.outcome, tls.alert, tls.error) = (Some(TlsOutcome::Failed), Some(EVIL.into()), Some(EVIL.into()));
    let page = html(&report([record, failed]));
    assert!(page.contains("&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;"), "{page}");
    let (_, body) = page.split_once("</style>").unwrap();
    for never in ["<script", "alert('", "\"&'", "\u{202e}"] {
        assert!(!body.contains(never), "{never}: {body}");
    }
}

#[test]
fn nothing_is_a_report_too() {
    assert_eq!(text(&report([])), "0 connections, 0 records\n");
}
