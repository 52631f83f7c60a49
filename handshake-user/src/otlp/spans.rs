//! A record as spans. Pure. docs/otlp.md says what is where.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use handshake_common::{CloseStyle, Outcome, Role, Stage, TlsClass, TlsOutcome, TlsVersion};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, SpanKind},
        status::StatusCode,
    },
};
use serde::Serialize;
use serde_json::Value;

use super::{
    attributes::{Common, SCHEMA_URL, attribute, flag, nanos, number, scope, text},
    ids::{Ids, Part},
};
use crate::{
    event::{ConnectionEvent, Endpoint, Tls},
    untrusted::Untrusted,
};

/// Sampled, the trace's id is random (W3C Trace Context Level 2), and the parent is known not to be remote.
const FLAGS: u32 = 0x1 | 0x2 | 0x100;
/// `error.type` for a reason that has no name.
const OTHER: &str = "_OTHER";

/// The request that exports these records, each with its `tracestate`.
pub(super) fn request(records: &[(ConnectionEvent, String)], common: &Common) -> ExportTraceServiceRequest {
    let mut by_process = HashMap::new();
    let mut resource_spans: Vec<ResourceSpans> = Vec::new();
    for (event, state) in records {
        let process = event.process.as_ref();
        let key = process.map(|process| (process.pid, process.comm.as_ref(), process.cgroup.as_ref()));
        let at = *by_process.entry(key).or_insert_with(|| {
            resource_spans.push(ResourceSpans {
                resource: Some(Resource { attributes: resource(event, common), ..Resource::default() }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope()),
                    spans: Vec::new(),
                    schema_url: SCHEMA_URL.to_owned(),
                }],
                schema_url: SCHEMA_URL.to_owned(),
            });
            resource_spans.len() - 1
        });
        resource_spans[at].scope_spans[0].spans.extend(spans(event, state));
    }
    ExportTraceServiceRequest { resource_spans }
}

/// Whether this is the record of which a trace is made; the others add to it, or nothing.
pub(super) fn makes_trace(event: &ConnectionEvent) -> bool {
    Moments::of(event).whole.is_some()
}

/// How many spans a record makes.
pub(super) fn count(event: &ConnectionEvent) -> u64 {
    let Moments { whole, open, tls, close, time_wait } = Moments::of(event);
    [whole, open, tls, close, time_wait].iter().flatten().count() as u64
}

/// Why a stage failed: in the terms of `error.type`, and in words.
pub(super) fn failed(event: &ConnectionEvent, stage: Stage) -> Option<(String, String)> {
    let same = |reason: &str| Some((reason.to_owned(), reason.to_owned()));
    match stage {
        Stage::Open => match event.open.as_ref()?.outcome {
            Some(Outcome::Established) => None,
            Some(outcome) => same(outcome.as_str()),
            None => Some((OTHER.to_owned(), "failed".to_owned())),
        },
        Stage::Tls => {
            let tls = event.tls.as_ref()?;
            let outcome = tls.outcome.filter(|outcome| *outcome != TlsOutcome::Completed)?;
            let reason = tls.alert.as_ref().map_or(outcome.as_str(), |alert| alert.raw());
            let words = tls.error.as_ref().map_or(reason, |error| error.raw());
            Some((reason.to_owned(), words.to_owned()))
        }
        Stage::Close => {
            let style = event.close.as_ref()?.style.filter(|style| *style == CloseStyle::TimedOut)?;
            same(style.as_str())
        }
        Stage::TimeWait => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    start: SystemTime,
    end: SystemTime,
}

/// When each span began and ended. `None`: the record is not the one that tells it, or it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moments {
    whole: Option<Interval>,
    open: Option<Interval>,
    tls: Option<Interval>,
    close: Option<Interval>,
    time_wait: Option<Interval>,
}

impl Moments {
    fn of(event: &ConnectionEvent) -> Self {
        let end = event.time;
        let ending = |took: Option<Duration>| Some(Interval { start: end.checked_sub(took?)?, end });
        match event.stage {
            Stage::Open => {
                if event.open.as_ref().is_some_and(|open| open.outcome == Some(Outcome::Established)) {
                    return Self::default();
                }
                let open = ending(event.duration());
                Self { whole: open.or(ending(Some(Duration::ZERO))), open, ..Self::default() }
            }
            // The close tells it again, unless the socket is not known.
            Stage::Tls if event.local.is_some() => Self::default(),
            Stage::Tls => {
                Self { whole: ending(event.duration()).or(ending(Some(Duration::ZERO))), ..Self::default() }
            }
            Stage::Close => Self::of_close(event),
            Stage::TimeWait => match &event.close {
                Some(close) if close.time_wait_end.is_some() => {
                    Self { time_wait: ending(close.time_wait), ..Self::default() }
                }
                Some(close) => Self { close: ending(close.duration), ..Self::default() },
                None => Self::default(),
            },
        }
    }

    fn of_close(event: &ConnectionEvent) -> Self {
        let end = event.time;
        let start = event.lifetime.and_then(|lifetime| end.checked_sub(lifetime));
        // Each time was rounded by itself.
        let from = |offset: Duration, took: Duration| {
            let start = start?.checked_add(offset)?.min(end);
            Some(Interval { start, end: start.checked_add(took)?.min(end) })
        };
        let open = event.open.as_ref().and_then(|open| from(Duration::ZERO, open.duration?));
        let tls = event.tls.as_ref().and_then(|tls| from(tls.start?, tls.duration?));
        let close = event.close.as_ref().and_then(|close| {
            // The FINs crossed: it ended with the ACK of ours.
            let is_simultaneous = close.style == Some(CloseStyle::Simultaneous);
            let took = if is_simultaneous { close.ack_wait } else { close.duration };
            Some(Interval { start: end.checked_sub(took?)?, end })
        });
        let began = start.or(close.map(|close| close.start)).unwrap_or(end);
        Self { whole: Some(Interval { start: began, end }), open, tls, close, time_wait: None }
    }
}

/// The spans of a record. What has no times of its own is told by the span of the whole. A record of what
/// came after the close has everything from before as well, which was told with the close.
fn spans(event: &ConnectionEvent, state: &str) -> Vec<Span> {
    let ids = Ids::of(event);
    let moments = Moments::of(event);
    let span = |part: Part, interval: Interval, name: &str| Span {
        trace_id: ids.trace(),
        span_id: ids.span(part),
        parent_span_id: if part == Part::Whole { Vec::new() } else { ids.span(Part::Whole) },
        trace_state: state.to_owned(),
        flags: FLAGS,
        name: name.to_owned(),
        kind: SpanKind::Internal as i32,
        start_time_unix_nano: nanos(interval.start),
        end_time_unix_nano: nanos(interval.end),
        ..Span::default()
    };
    let mut whole = moments.whole.map(|interval| {
        let name = if event.local.is_some() { "TCP connection" } else { "TLS handshake" };
        let kind = match event.role {
            Some(Role::Client) => SpanKind::Client,
            Some(Role::Server) => SpanKind::Server,
            None => SpanKind::Internal,
        };
        Span { attributes: of_whole(event), kind: kind as i32, ..span(Part::Whole, interval, name) }
    });
    let mut parts = Vec::new();
    let mut tell = |stage, part, interval: Option<Interval>, name, attributes: Vec<KeyValue>, events| {
        let failure = failed(event, stage);
        let mut own = interval.map(|interval| span(part, interval, name));
        // It is the first that failed that ended the connection.
        if let (Some(whole), Some((kind, words))) = (&mut whole, &failure)
            && whole.status.is_none()
        {
            fail(whole, kind, words);
        }
        if let (Some(own), Some((kind, words))) = (&mut own, &failure) {
            fail(own, kind, words);
        }
        if let Some(teller) = own.as_mut().or(whole.as_mut()) {
            teller.attributes.extend(attributes);
            teller.events = events;
        }
        parts.extend(own);
    };
    if let Some(open) = &event.open {
        let attributes = flattened("handshake.open", open, &[]);
        tell(Stage::Open, Part::Open, moments.open, "TCP open", attributes, Vec::new());
    }
    if let Some(tls) = &event.tls {
        let start = moments.tls.and_then(|own| own.start.checked_sub(tls.start?));
        let events = start.map_or_else(Vec::new, |start| events(tls, start));
        tell(Stage::Tls, Part::Tls, moments.tls, "TLS handshake", of_tls(tls), events);
    }
    if let Some(close) = &event.close {
        let attributes = flattened("handshake.close", close, &[]);
        if event.stage == Stage::TimeWait && close.time_wait_end.is_some() {
            let part = Part::TimeWait;
            tell(Stage::TimeWait, part, moments.time_wait, "TCP TIME_WAIT", attributes, Vec::new());
        } else {
            tell(Stage::Close, Part::Close, moments.close, "TCP close", attributes, Vec::new());
        }
    }
    whole.into_iter().chain(parts).collect()
}

fn fail(span: &mut Span, kind: &str, words: &str) {
    span.status = Some(Status { message: words.to_owned(), code: StatusCode::Error as i32 });
    span.attributes.push(text("error.type", kind));
}

/// Of the process, and of the host.
fn resource(event: &ConnectionEvent, common: &Common) -> Vec<KeyValue> {
    let process = event.process.as_ref();
    let comm = process.and_then(|process| process.comm.as_ref()).map(Untrusted::raw);
    let service = common.service.as_deref().or(comm).unwrap_or("unknown_service");
    let mut attributes = vec![text("service.name", service), text("os.type", "linux")];
    let mut known = |key, value: Option<&str>| attributes.extend(value.map(|value| text(key, value)));
    known("host.name", event.host.as_ref().map(Untrusted::raw));
    if let Some(process) = process {
        known("handshake.process.comm", comm);
        let cgroup = process.cgroup.as_ref().map(|cgroup| format!("0::{}", cgroup.raw()));
        known("process.linux.cgroup", cgroup.as_deref());
        known("handshake.process.unit", process.names.unit.as_ref().map(Untrusted::raw));
        known("container.id", process.names.container_id.as_ref().map(Untrusted::raw));
        known("k8s.pod.uid", process.names.pod_uid.as_ref().map(Untrusted::raw));
        attributes.push(number("process.pid", i64::from(process.pid)));
    }
    common.add_to(&mut attributes);
    attributes
}

/// Of the connection as a whole.
fn of_whole(event: &ConnectionEvent) -> Vec<KeyValue> {
    let ConnectionEvent { family, local, remote, role, process, setup, lifetime, .. } = event;
    let mut attributes = vec![text("network.transport", "tcp"), text("handshake.id", &event.id.to_string())];
    attributes.extend(event.boot_id.as_ref().map(|boot| text("handshake.boot_id", boot.raw())));
    attributes.extend(family.map(|family| text("network.type", family.as_str())));
    attributes.extend(role.map(|role| text("handshake.role", role.as_str())));
    attributes.extend(event.netns.map(|netns| number("handshake.netns", i64::from(netns))));
    let by = process.as_ref().and_then(|process| process.by);
    attributes.extend(by.map(|by| text("handshake.process.by", by.as_str())));
    let end = |[address, port]: [&str; 2], end: &Endpoint, name: Option<&str>| {
        let at = name.map(str::to_owned).or_else(|| end.addr.map(|addr| addr.to_string()));
        let address = at.map(|at| text(address, &at));
        address.into_iter().chain([number(port, i64::from(end.port))])
    };
    attributes.extend(
        local.iter().flat_map(|local| end(["network.local.address", "network.local.port"], local, None)),
    );
    attributes.extend(
        remote.iter().flat_map(|remote| end(["network.peer.address", "network.peer.port"], remote, None)),
    );
    let (client, server) = match role {
        Some(Role::Client) => (local, remote),
        Some(Role::Server) => (remote, local),
        None => (&None, &None),
    };
    attributes.extend(client.iter().flat_map(|client| end(["client.address", "client.port"], client, None)));
    // Its name where it is known.
    let name = event.tls.as_ref().and_then(|tls| tls.sni.as_ref()).map(Untrusted::raw);
    attributes.extend(server.iter().flat_map(|server| end(["server.address", "server.port"], server, name)));
    if server.is_none() {
        attributes.extend(name.map(|name| text("server.address", name)));
    }
    attributes.extend(setup.iter().flat_map(|setup| flattened("handshake.setup", setup, &[])));
    let lifetime = lifetime.and_then(|lifetime| i64::try_from(lifetime.as_micros()).ok());
    attributes.extend(lifetime.map(|lifetime| number("handshake.lifetime_us", lifetime)));
    let is_unknown = event.stage == Stage::Close && lifetime.is_none();
    attributes.extend(event.preexisting.then(|| flag("handshake.preexisting", true)));
    attributes.extend(is_unknown.then(|| flag("handshake.beginning_unknown", true)));
    attributes
}

fn of_tls(tls: &Tls) -> Vec<KeyValue> {
    let mut attributes = vec![text("tls.protocol.name", "tls")];
    let mut known = |key, value: Option<&str>| attributes.extend(value.map(|value| text(key, value)));
    known("tls.protocol.version", tls.version.map(TlsVersion::as_str));
    known("tls.cipher", tls.cipher.as_ref().map(Untrusted::raw));
    known("tls.next_protocol", tls.alpn.as_ref().map(Untrusted::raw));
    attributes.extend(tls.outcome.map(|outcome| flag("tls.established", outcome == TlsOutcome::Completed)));
    // A HelloRetryRequest and rejected early data go with both.
    let resumed = match tls.class {
        Some(TlsClass::Full) => Some(false),
        Some(TlsClass::Resumed | TlsClass::EarlyDataAccepted) => Some(true),
        _ => None,
    };
    attributes.extend(resumed.map(|resumed| flag("tls.resumed", resumed)));
    // The name is the server's address.
    let mut own = flattened("handshake.tls", tls, &["version", "cipher", "alpn", "sni"]);
    for one in &mut own {
        // Of what the conventions say of a certificate, the only thing that is known.
        if one.key == "handshake.tls.certificate.not_after" {
            "tls.server.not_after".clone_into(&mut one.key);
        }
    }
    attributes.extend(own);
    attributes
}

/// Flights and stalls, which are moments within the handshake. Their times are since `start`.
fn events(tls: &Tls, start: SystemTime) -> Vec<Event> {
    let at = |offset| nanos(start.checked_add(offset).unwrap_or(start));
    let event = |name: &str, offset, attributes| Event {
        time_unix_nano: at(offset),
        name: name.to_owned(),
        attributes,
        dropped_attributes_count: 0,
    };
    let flights = tls
        .flights
        .iter()
        .flatten()
        .map(|flight| event("flight", flight.first, flattened("handshake.flight", flight, &[])));
    let stalls = tls
        .stalls
        .iter()
        .flatten()
        .map(|stall| event("stall", stall.until, flattened("handshake.stall", stall, &[])));
    flights.chain(stalls).collect()
}

/// The fields of a part of the record by their names in it, behind a prefix, but for some. Lists of objects
/// are left out.
fn flattened(prefix: &str, part: &impl Serialize, but: &[&str]) -> Vec<KeyValue> {
    // Plain values can always be written.
    let Ok(Value::Object(fields)) = serde_json::to_value(part) else { return Vec::new() };
    let fields = fields.into_iter().filter(|(key, _)| !but.contains(&key.as_str()));
    let mut attributes = Vec::new();
    for (key, value) in fields {
        let key = format!("{prefix}.{key}");
        if let Value::Object(below) = &value {
            attributes.extend(flattened(&key, below, &[]));
        } else {
            attributes.extend(any(value).map(|value| attribute(&key, value)));
        }
    }
    attributes
}

fn any(value: Value) -> Option<any_value::Value> {
    Some(match value {
        Value::String(text) => any_value::Value::StringValue(text),
        Value::Bool(is) => any_value::Value::BoolValue(is),
        Value::Number(number) => any_value::Value::IntValue(number.as_i64()?),
        Value::Array(list) => {
            let values: Option<Vec<_>> = list.into_iter().map(any).collect();
            let values = values?.into_iter().map(|value| AnyValue { value: Some(value) }).collect();
            any_value::Value::ArrayValue(ArrayValue { values })
        }
        Value::Null | Value::Object(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use handshake_common::TimeWaitEnd;
    use opentelemetry_semantic_conventions::{self as semconv, attribute};

    use super::*;
    use crate::{
        cgroup::Names,
        event::{
            Certificate, Flight, Unseen,
            testing::{RTT_US, closed, opened, us, waited, with_tls},
        },
        redact::Redactor,
        settings::RedactSettings,
    };

    fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
        spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:#?}"))
    }

    fn names(spans: &[Span]) -> Vec<&str> {
        spans.iter().map(|span| span.name.as_str()).collect()
    }

    /// When it began and ended, since the beginning of the whole, microseconds.
    fn times(spans: &[Span], name: &str) -> [u64; 2] {
        let span = named(spans, name);
        let start = spans[0].start_time_unix_nano;
        [span.start_time_unix_nano, span.end_time_unix_nano].map(|at| (at - start) / 1000)
    }

    fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a any_value::Value> {
        let mut found = attributes.iter().filter(|one| one.key == key);
        let value = found.next()?.value.as_ref()?.value.as_ref();
        assert!(found.next().is_none(), "{key} is there twice");
        value
    }

    fn string(attributes: &[KeyValue], key: &str) -> Option<String> {
        match value(attributes, key)? {
            any_value::Value::StringValue(text) => Some(text.clone()),
            other => panic!("{key}: {other:?}"),
        }
    }

    fn with_all() -> ConnectionEvent {
        let whole = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        let mut event = ConnectionEvent { tls: whole.tls, setup: whole.setup, ..closed(Role::Client) };
        (event.host, event.boot_id) = (Some("web1".into()), Some("0d4c".into()));
        let process = event.process.as_mut().unwrap();
        process.cgroup = Some("/kubepods/a".into());
        process.names = Names {
            unit: Some("web.service".into()),
            container_id: Some("c0".into()),
            pod_uid: Some("f00".into()),
        };
        let flight = |from, first| Flight { from, first: us(first).unwrap(), last: us(first).unwrap() };
        let tls = event.tls.as_mut().unwrap();
        tls.flights = Some(vec![flight(Role::Client, RTT_US + 100), flight(Role::Server, 2 * RTT_US + 100)]);
        tls.certificate = Some(Box::new(Certificate {
            not_after: UNIX_EPOCH + Duration::from_hours(500_000),
            key_type: Some("rsa".into()),
            key_bits: Some(2048),
            curve: None,
            signature: None,
        }));
        event
    }

    #[test]
    fn spans_have_nothing_that_was_redacted() {
        let redact = "addr=prefix,sni=drop,comm=drop,cgroup=drop,host=drop".parse().unwrap();
        let redactor = Redactor::new(&RedactSettings { redact, ..RedactSettings::default() }).unwrap();
        let said = |event| format!("{:?}", request(&[(event, String::new())], &Common::default()));
        let (whole, redacted) = (said(with_all()), said(redactor.event(with_all())));
        for secret in [
            "10.0.0.1\"",
            "10.0.0.2",
            "curl",
            "example.org",
            "web1",
            "0d4c",
            "kubepods",
            "web.service",
            "c0\"",
            "f00\"",
        ] {
            assert!(whole.contains(secret) && !redacted.contains(secret), "{secret}: {redacted}");
        }
        assert!(
            redacted.contains("\"10.0.0.0/24\"") && redacted.contains("\"unknown_service\""),
            "{redacted}"
        );
    }

    #[test]
    fn parts_lie_within_the_connection_and_are_as_long_as_the_record_says() {
        let spans = spans(&with_all(), "");
        assert_eq!(names(&spans), ["TCP connection", "TCP open", "TLS handshake", "TCP close"]);
        assert_eq!(times(&spans, "TCP connection"), [0, 1_162_400]);
        assert_eq!(times(&spans, "TCP open"), [0, RTT_US]);
        assert_eq!(times(&spans, "TLS handshake"), [RTT_US + 100, 2 * RTT_US + 1000]);
        assert_eq!(times(&spans, "TCP close"), [1_162_400 - 62_300, 1_162_400]);
        for part in &spans[1..] {
            assert_eq!((&part.trace_id, &part.parent_span_id), (&spans[0].trace_id, &spans[0].span_id));
            assert_eq!(part.kind, SpanKind::Internal as i32);
        }
        assert_eq!((spans[0].parent_span_id.len(), spans[0].kind), (0, SpanKind::Client as i32));
        assert!(spans.iter().all(|span| span.status.is_none()));
        // 2026-01-31T12:00:00.123456Z
        assert_eq!(spans[0].end_time_unix_nano, 1_769_860_800_123_456_000);
        let flights = named(&spans, "TLS handshake").events.iter();
        let flights = flights.map(|event| (event.time_unix_nano - spans[0].start_time_unix_nano) / 1000);
        assert_eq!(flights.collect::<Vec<_>>(), [RTT_US + 100, 2 * RTT_US + 100]);
    }

    #[test]
    fn names_are_those_of_the_semantic_conventions_or_of_the_record() {
        use attribute::*;
        let known = [
            NETWORK_TRANSPORT,
            NETWORK_TYPE,
            NETWORK_LOCAL_ADDRESS,
            NETWORK_LOCAL_PORT,
            NETWORK_PEER_ADDRESS,
            NETWORK_PEER_PORT,
            CLIENT_ADDRESS,
            CLIENT_PORT,
            SERVER_ADDRESS,
            SERVER_PORT,
            TLS_PROTOCOL_NAME,
            TLS_PROTOCOL_VERSION,
            TLS_CIPHER,
            TLS_NEXT_PROTOCOL,
            TLS_ESTABLISHED,
            TLS_RESUMED,
            TLS_SERVER_NOT_AFTER,
            SERVICE_NAME,
            OS_TYPE,
            HOST_NAME,
            PROCESS_LINUX_CGROUP,
            CONTAINER_ID,
            K8S_POD_UID,
            PROCESS_PID,
        ];
        let event = with_all();
        let (whole, resource) = (spans(&event, ""), resource(&event, &Common::default()));
        let all: Vec<_> = whole.iter().flat_map(|span| &span.attributes).chain(&resource).collect();
        for name in known {
            assert!(all.iter().any(|one| one.key == name), "{name} is missing");
        }
        for one in &all {
            let is_known = known.contains(&one.key.as_str()) || one.key.starts_with("handshake.");
            assert!(is_known, "{}", one.key);
        }
        assert_eq!(SCHEMA_URL, semconv::SCHEMA_URL);

        let text =
            |key: &str| string(&all.iter().map(|one| (*one).clone()).collect::<Vec<_>>(), key).unwrap();
        assert_eq!(text(SERVER_ADDRESS), "example.org");
        assert_eq!(text(NETWORK_PEER_ADDRESS), "10.0.0.2");
        assert_eq!(text(PROCESS_LINUX_CGROUP), "0::/kubepods/a");
        assert_eq!(text(SERVICE_NAME), "curl");
        assert_eq!(text("handshake.open.final_ack"), "bare");
        assert_eq!(text("handshake.tls.group"), "X25519MLKEM768");
        assert_eq!(text(TLS_SERVER_NOT_AFTER), "2027-01-15T08:00:00Z");
        assert_eq!(text("handshake.tls.certificate.key_type"), "rsa");
        assert!(all.iter().all(|one| one.key != "handshake.tls.certificate.not_after"));
        let took = value(&named(&whole, "TCP close").attributes, "handshake.close.ack_wait_us");
        assert_eq!(took, Some(&any_value::Value::IntValue(50_300)));
        let offered = value(&named(&whole, "TLS handshake").attributes, "handshake.tls.alpn_offered");
        assert!(matches!(offered, Some(any_value::Value::ArrayValue(list)) if list.values.len() == 2));
    }

    #[test]
    fn failure_is_the_status_of_the_part_and_of_the_whole() {
        let mut refused = opened(Role::Client);
        refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
        let spans_of = |event| spans(event, "");
        let spans = spans_of(&refused);
        assert_eq!(names(&spans), ["TCP connection", "TCP open"]);
        for span in &spans {
            let status = span.status.as_ref().unwrap();
            assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "refused"));
            assert_eq!(string(&span.attributes, "error.type").as_deref(), Some("refused"));
        }

        let mut event = with_all();
        let tls = event.tls.as_mut().unwrap();
        (tls.outcome, tls.alert) = (Some(TlsOutcome::Failed), Some("unknown_ca".into()));
        tls.error = Some("certificate verify failed".into());
        let spans = spans_of(&event);
        let failed = named(&spans, "TLS handshake");
        assert_eq!(failed.status.as_ref().unwrap().message, "certificate verify failed");
        assert_eq!(string(&failed.attributes, "error.type").as_deref(), Some("unknown_ca"));
        assert_eq!(value(&failed.attributes, "tls.established"), Some(&any_value::Value::BoolValue(false)));
        assert!(spans[0].status.is_some() && named(&spans, "TCP open").status.is_none());
    }

    #[test]
    fn what_has_no_times_is_told_by_the_whole() {
        let mut event = with_all();
        (event.lifetime, event.preexisting, event.open) = (None, true, None);
        let close = event.close.as_mut().unwrap();
        (close.style, close.duration) = (Some(CloseStyle::ResetReceived), None);
        let spans = spans(&event, "");
        assert_eq!(names(&spans), ["TCP connection"]);
        assert_eq!(times(&spans, "TCP connection"), [0, 0]);
        let whole = &spans[0].attributes;
        assert_eq!(string(whole, "handshake.close.style").as_deref(), Some("reset_received"));
        assert_eq!(string(whole, "tls.protocol.version").as_deref(), Some("1.3"));
        for key in ["handshake.preexisting", "handshake.beginning_unknown"] {
            assert_eq!(value(whole, key), Some(&any_value::Value::BoolValue(true)), "{key}");
        }
    }

    #[test]
    fn what_comes_after_the_close_is_added_to_its_trace() {
        let mut close = closed(Role::Client);
        let late = close.close.as_mut().unwrap();
        (late.duration, late.app_wait, late.unseen) = (None, None, Some(Unseen::PeerFin));
        let mut fin = waited(Role::Client);
        fin.close.as_mut().unwrap().time_wait_end = None;
        let end = waited(Role::Client);
        assert_eq!(end.close.as_ref().unwrap().time_wait_end, Some(TimeWaitEnd::RanOut));

        let [close, fin, end] = [close, fin, end].map(|event| {
            let spans = spans(&event, "");
            assert_eq!(count(&event), spans.len() as u64);
            assert_eq!(makes_trace(&event), spans.iter().any(|span| span.parent_span_id.is_empty()));
            spans
        });
        assert_eq!(names(&close), ["TCP connection", "TCP open"]);
        assert_eq!((names(&fin), names(&end)), (vec!["TCP close"], vec!["TCP TIME_WAIT"]));
        assert_eq!(fin[0].end_time_unix_nano - fin[0].start_time_unix_nano, 62_300_000);
        assert_eq!(end[0].end_time_unix_nano - end[0].start_time_unix_nano, 61_400_000_000);
        for late in [&fin[0], &end[0]] {
            assert_eq!((&late.trace_id, &late.parent_span_id), (&close[0].trace_id, &close[0].span_id));
        }
    }

    #[test]
    fn records_that_the_close_repeats_make_no_spans() {
        let handshake = with_tls(Role::Server, TlsVersion::Tls13, TlsClass::Full);
        assert_eq!([count(&opened(Role::Client)), count(&handshake)], [0, 0]);
        let mut alone = handshake;
        (alone.local, alone.remote, alone.setup) = (None, None, None);
        let spans = spans(&alone, "");
        assert_eq!(names(&spans), ["TLS handshake"], "its socket is not known");
        assert_eq!(times(&spans, "TLS handshake"), [0, RTT_US + 900]);
    }

    #[test]
    fn process_is_a_resource_and_what_the_operator_says_is_part_of_each() {
        let common = Common {
            service: None,
            attributes: vec![("zone".to_owned(), "a".to_owned()), ("host.name".to_owned(), "b".to_owned())],
        };
        let other = |pid| {
            let mut event = with_all();
            event.process.as_mut().unwrap().pid = pid;
            (event, "ot=th:8".to_owned())
        };
        let request = request(&[other(1), other(2), other(1)], &common);
        let [one, two] = &request.resource_spans[..] else { panic!("{request:#?}") };
        assert_eq!((one.scope_spans[0].spans.len(), two.scope_spans[0].spans.len()), (8, 4));
        let attributes = &one.resource.as_ref().unwrap().attributes;
        assert_eq!(string(attributes, "zone").as_deref(), Some("a"));
        assert_eq!(string(attributes, "host.name").as_deref(), Some("web1"));
        assert!(one.scope_spans[0].spans.iter().all(|span| span.trace_state == "ot=th:8"));
        let named = Common { service: Some("edge".to_owned()), ..common };
        assert_eq!(string(&resource(&other(1).0, &named), "service.name").as_deref(), Some("edge"));
    }
}
