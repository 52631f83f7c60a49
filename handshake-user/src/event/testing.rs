//! Events for the tests of what reads them: connections over a link of 50 ms.

use std::time::Duration;

use handshake_common::{
    CloseStyle, Family, FastOpen, FinalAck, Initiator, Library, Outcome, ProcessBy, Role, Stage, TimeWaitEnd,
    TlsClass, TlsOutcome, TlsSource, TlsVersion,
};

use super::{Close, ConnectionEvent, Endpoint, Open, Process, SchemaVersion, Setup, Tls};
use crate::cgroup::Names;

/// A known duration, microseconds.
#[expect(clippy::unnecessary_wraps, reason = "what it is compared with may be unknown")]
pub(crate) const fn us(us: u64) -> Option<Duration> {
    Some(Duration::from_micros(us))
}

/// The round trip of the link.
pub(crate) const RTT_US: u64 = 50_200;

/// An opening over a link of 50 ms.
pub(crate) fn opened(role: Role) -> ConnectionEvent {
    let end = |text: &str, port| Endpoint { addr: text.parse().ok(), port };
    let (client, server) = (end("10.0.0.1", 51000), end("10.0.0.2", 443));
    let (by, comm, local, remote) = match role {
        Role::Client => (ProcessBy::Connect, "curl", client, server),
        Role::Server => (ProcessBy::Listener, "nginx", server, client),
    };
    ConnectionEvent {
        schema: SchemaVersion,
        stage: Stage::Open,
        time: humantime::parse_rfc3339("2026-01-31T12:00:00.123456Z").unwrap(),
        host: None,
        boot_id: None,
        id: "1007".into(),
        role: Some(role),
        family: Some(Family::Ipv4),
        local: Some(local),
        remote: Some(remote),
        netns: Some(4_026_531_840),
        process: Some(Process {
            by: Some(by),
            pid: 1234,
            comm: Some(comm.into()),
            cgroup: None,
            names: Names::default(),
        }),
        preexisting: false,
        open: Some(Open {
            outcome: Some(Outcome::Established),
            duration: us(RTT_US),
            rtt: us(RTT_US),
            syn_retransmits: 0,
            final_ack: Some(FinalAck::Bare),
            fast_open: Some(FastOpen::None),
            fast_open_reason: None,
            simultaneous: false,
            syn_cookie: None,
            accept_wait: None,
            listener: None,
        }),
        tls: None,
        setup: None,
        close: None,
        lifetime: None,
    }
}

/// A TLS handshake on it, as docs/metrics.md counts its round trips.
pub(crate) fn with_tls(role: Role, version: TlsVersion, class: TlsClass) -> ConnectionEvent {
    let tls12 = version != TlsVersion::Tls13;
    let cipher = if tls12 { "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" } else { "TLS_AES_256_GCM_SHA384" };
    let (client, server, setup) = match class {
        TlsClass::Full if tls12 => (2, 1, 3),
        TlsClass::FalseStart => (2, 1, 2),
        TlsClass::HelloRetry => (2, 2, 3),
        TlsClass::EarlyDataAccepted => (1, 1, 1),
        _ => (1, 1, 2),
    };
    let round_trips = if role == Role::Client { client } else { server };
    let took = u64::from(round_trips) * RTT_US + 900;
    let start = RTT_US + 100;
    let duration_us = match class {
        TlsClass::EarlyDataAccepted => Some(start),
        TlsClass::FalseStart => None,
        TlsClass::Full if tls12 && role == Role::Server => None,
        _ => Some(start + took),
    };
    let network = i64::from(setup) * i64::try_from(RTT_US).unwrap();
    ConnectionEvent {
        stage: Stage::Tls,
        tls: Some(Tls {
            role: Some(role),
            outcome: Some(TlsOutcome::Completed),
            start: us(start),
            duration: us(took),
            held: None,
            compute: us(700),
            version: Some(version),
            class: Some(class),
            cipher: Some(cipher.into()),
            sni: Some("example.org".into()),
            alpn: Some("h2".into()),
            group: (version == TlsVersion::Tls13).then(|| "X25519MLKEM768".into()),
            signature: None,
            certificate: None,
            alpn_offered: Some(vec!["h2".into(), "http/1.1".into()]),
            ech_offered: Some(false),
            alert: None,
            alert_from: None,
            error: None,
            library: Some(Library::OpenSsl),
            source: TlsSource::Both,
            round_trips: Some(round_trips),
            hello_in_syn: None,
            hello_retry: class == TlsClass::HelloRetry,
            includes_hello_wait: false,
            flights: None,
            stalls: None,
        }),
        setup: Some(Setup {
            round_trips: Some(setup),
            duration: duration_us.map(Duration::from_micros),
            excess_us: duration_us.map(|us| i64::try_from(us).unwrap() - network),
        }),
        ..opened(role)
    }
}

/// The same, but that the program had closed its socket before the peer's FIN: what is known of it in the
/// end.
pub(crate) fn waited(role: Role) -> ConnectionEvent {
    let mut record = closed(role);
    record.stage = Stage::TimeWait;
    record.lifetime = us(1_150_400);
    let close = record.close.as_mut().expect("it is closed");
    (close.late_fin, close.grain) = (true, us(5_000));
    (close.time_wait, close.time_wait_end) = (us(61_400_000), Some(TimeWaitEnd::RanOut));
    record
}

/// A closing: four segments, by us, the peer's program taking 12 ms.
pub(crate) fn closed(role: Role) -> ConnectionEvent {
    ConnectionEvent {
        stage: Stage::Close,
        setup: Some(Setup { round_trips: Some(1), duration: us(RTT_US), excess_us: Some(0) }),
        close: Some(Close {
            initiator: Some(Initiator::Local),
            style: Some(CloseStyle::FourSegments),
            duration: us(62_300),
            ack_wait: us(50_300),
            app_wait: us(12_000),
            time_wait: None,
            time_wait_end: None,
            reused_by: None,
            grain: None,
            late_fin: false,
            unseen: None,
        }),
        lifetime: us(1_162_400),
        ..opened(role)
    }
}
