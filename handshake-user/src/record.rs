//! The published record: what a raw record means, in the words of docs/json-schema.md.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use handshake_common::{
    CloseStyle, Connection, ConnectionFlags, Family, FastOpen, FastOpenReason, FinalAck, Initiator, Library,
    Outcome, Role, Stage, TlsClass, TlsOutcome, TlsSource, TlsVersion,
    tcp::{close, open},
};
use serde::{Deserialize, Serialize};

use crate::{join::ConnectionEvent, model, tls::wire::cipher, untrusted::Untrusted};

/// Version of the schema; it changes when a field changes its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// One JSON line: a stage of a connection that ended, and all that was known of the connection by then.
/// What is absent is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The stage that ended.
    pub event: Stage,
    /// When it ended: wall time, RFC 3339, UTC, microseconds.
    pub time: Untrusted,
    /// The same for all records of a connection: the socket's cookie in hexadecimal, as `ss -e` shows it
    /// (`sk:`), with `.N` for the N-th connection that one socket made after its first.
    pub id: Untrusted,
    /// Which end of the connection the socket is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The address family on the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Our end. Unknown only where a TLS handshake's socket is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// The peer's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Endpoint>,
    /// Inode of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// Whose socket it is, where that is certain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The connection was there before the program.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preexisting: bool,
    /// The opening.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<Open>,
    /// The TLS handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// From the SYN to the moment from which the client may send application data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup: Option<Setup>,
    /// The closing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close: Option<Close>,
    /// From the beginning of the opening to CLOSE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_us: Option<u64>,
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// IPv4 or IPv6.
    pub addr: IpAddr,
    /// 0 only where an opening failed before it had one.
    pub port: u16,
}

/// A process of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub comm: Untrusted,
    /// Path in the cgroup v2 hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Untrusted>,
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Client: SYN → ESTABLISHED or failure. Server: first SYN-ACK → ESTABLISHED.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// The network's round trip, free of timers and programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Retransmissions of the SYN (client) or SYN-ACK (server).
    pub syn_retransmits: u16,
    /// What the final ACK carried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_ack: Option<FinalAck>,
    /// What became of TCP Fast Open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_open: Option<FastOpen>,
    /// Why the data in the SYN was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_open_reason: Option<FastOpenReason>,
    /// Server: whether the connection was made from a SYN cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_cookie: Option<bool>,
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<TlsOutcome>,
    /// From the start of the opening (client: the SYN; server: its first SYN-ACK) to the ClientHello.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_us: Option<u64>,
    /// ClientHello handed to TCP (client) or arrived (server) → complete, failed or abandoned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Inside the library's calls, less what they slept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_us: Option<u64>,
    /// Negotiated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<TlsVersion>,
    /// Which way it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<TlsClass>,
    /// IANA's name of the cipher suite; its number where it has none that is known here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher: Option<Untrusted>,
    /// Server name that the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<Untrusted>,
    /// Application protocol that was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<Untrusted>,
    /// Alert that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert: Option<Untrusted>,
    /// What the library said of the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Untrusted>,
    /// Whose code made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<Library>,
    /// Who saw it.
    pub source: TlsSource,
    /// ClientHello → complete, counted from protocol facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips: Option<u8>,
    /// There was a HelloRetryRequest, whatever the class.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hello_retry: bool,
    /// A server's wait for the ClientHello is in the duration, because its arrival was not seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub includes_hello_wait: bool,
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Counted from protocol facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips: Option<u8>,
    /// From the start of the opening.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// What the network does not explain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excess_us: Option<i64>,
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// Whose FIN or RST came first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initiator: Option<Initiator>,
    /// How it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style: Option<CloseStyle>,
    /// Active side: our FIN → the peer's FIN. Passive side: the peer's FIN → the ACK of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Our FIN → its ACK.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_wait_us: Option<u64>,
    /// Active side: that ACK → the peer's FIN. Passive side: the peer's FIN → our `close()`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_wait_us: Option<u64>,
    /// TIME_WAIT → its end. Needs a hook that this version does not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_wait_us: Option<u64>,
    /// What happened where nothing could see it: `peer_fin` went to the time-wait minisocket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Unseen>,
}

/// What can be out of sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unseen {
    /// The peer's FIN, handled by a time-wait minisocket.
    PeerFin,
}

pub use crate::host::Context;

impl Record {
    /// Says what a story means.
    #[must_use]
    pub fn new(story: &ConnectionEvent, context: &mut impl Context) -> Self {
        let ConnectionEvent { connection: raw, event, tls, setup, is_joined, .. } = story;
        let (raw, event, is_joined) = (raw, *event, *is_joined);
        let is_stranger = raw.flags.has(ConnectionFlags::PREEXISTING);
        let preexisting = is_stranger && !raw.flags.has(ConnectionFlags::MAYBE_UNFOLLOWED);
        // Of a connection that was there before, or for which there was no room, only an opening that ended under our eyes is known.
        let opened = !is_stranger || raw.role == Role::Client.code();
        let ended_ns = match event {
            Stage::Open => raw.open_ns,
            Stage::Close => raw.closed_ns,
            Stage::Tls => tls.as_ref().and_then(|tls| tls.ended_ns).unwrap_or(0),
        };
        let serial = if raw.generation == 0 { String::new() } else { format!(".{}", raw.generation) };
        Self {
            schema: SCHEMA,
            event,
            time: humantime::format_rfc3339_micros(context.wall_time(ended_ns)).to_string().into(),
            id: if is_joined { format!("{:x}{serial}", raw.id) } else { format!("tls-{:x}", raw.id) }.into(),
            role: raw.role().or(tls.as_ref().and_then(|tls| tls.role)),
            family: raw.family(),
            local: is_joined.then(|| endpoint(raw.family(), raw.local, raw.local_port)),
            remote: is_joined.then(|| endpoint(raw.family(), raw.remote, raw.remote_port)),
            netns: is_joined.then_some(raw.netns),
            process: process(raw, context),
            preexisting,
            open: (is_joined && opened).then(|| Open::new(raw)),
            tls: tls.as_ref().map(|tls| Tls::new(tls, is_joined.then_some(raw))),
            setup: setup.map(|setup| Setup {
                round_trips: setup.round_trips,
                duration_us: setup.duration_us,
                excess_us: setup.excess_us,
            }),
            close: (event == Stage::Close).then(|| Close::new(raw)),
            lifetime_us: if event == Stage::Close { close::lifetime_us(raw) } else { None },
        }
    }

    /// The duration of the stage that ended, microseconds.
    #[must_use]
    pub fn duration_us(&self) -> Option<u64> {
        match self.event {
            Stage::Open => self.open.as_ref()?.duration_us,
            Stage::Close => self.close.as_ref()?.duration_us,
            Stage::Tls => self.tls.as_ref()?.duration_us,
        }
    }
}

impl Open {
    fn new(raw: &Connection) -> Self {
        Self {
            outcome: open::outcome(raw),
            duration_us: open::duration_us(raw),
            rtt_us: open::rtt_us(raw),
            syn_retransmits: raw.syn_retransmits,
            final_ack: open::final_ack(raw),
            fast_open: open::fast_open(raw),
            fast_open_reason: open::fast_open_reason(raw),
            syn_cookie: open::syn_cookie(raw),
        }
    }
}

impl Tls {
    fn new(tls: &model::tls::Tls, connection: Option<&Connection>) -> Self {
        Self {
            outcome: tls.outcome,
            start_us: connection.and_then(|connection| model::setup::hello_us(connection, tls)),
            duration_us: tls.duration_us(),
            compute_us: tls.compute_us,
            version: tls.version,
            class: tls.class,
            cipher: tls.cipher.map(|suite| cipher_name(suite).into()),
            sni: tls.sni.as_deref().map(Untrusted::from),
            alpn: tls.alpn.as_deref().map(Untrusted::from),
            alert: tls.alert.map(Untrusted::from),
            error: tls.error.as_deref().map(Untrusted::from),
            library: tls.library,
            source: tls.source,
            round_trips: tls.path().zip(tls.role).map(|(path, role)| path.round_trips(role)),
            hello_retry: tls.hello_retry == Some(true),
            includes_hello_wait: tls.includes_hello_wait,
        }
    }
}

impl Close {
    fn new(raw: &Connection) -> Self {
        Self {
            initiator: raw.initiator(),
            style: close::style(raw),
            duration_us: close::duration_us(raw),
            ack_wait_us: close::ack_wait_us(raw),
            app_wait_us: close::app_wait_us(raw),
            time_wait_us: None,
            unseen: close::peer_fin_unseen(raw).then_some(Unseen::PeerFin),
        }
    }
}

/// The name of a suite, or its number as IANA writes it.
fn cipher_name(suite: u16) -> String {
    cipher::name(suite).map_or_else(|| format!("0x{suite:04X}"), str::to_owned)
}

fn endpoint(family: Option<Family>, bytes: [u8; 16], port: u16) -> Endpoint {
    let addr = if family == Some(Family::Ipv6) {
        IpAddr::V6(Ipv6Addr::from(bytes))
    } else {
        let [a, b, c, d, ..] = bytes;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    Endpoint { addr, port }
}

fn process(raw: &Connection, context: &mut impl Context) -> Option<Process> {
    if raw.pid == 0 {
        return None;
    }
    Some(Process { pid: raw.pid, comm: comm(&raw.comm), cgroup: context.cgroup(raw.cgroup) })
}

/// The name of a process, as the kernel keeps it: it ends at the first zero byte.
#[must_use]
pub fn comm(bytes: &[u8; 16]) -> Untrusted {
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    Untrusted::from_bytes(&bytes[..length])
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A context without a kernel: time starts at the epoch, every cgroup is the same.
    pub(crate) struct Still;

    impl Context for Still {
        fn wall_time(&self, monotonic_ns: u64) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_nanos(monotonic_ns)
        }

        fn cgroup(&mut self, id: u64) -> Option<Untrusted> {
            (id != 0).then(|| "/system.slice/web.service".into())
        }
    }

    pub(crate) fn client() -> Connection {
        Connection {
            id: 0x1007,
            role: Role::Client.code(),
            family: Family::Ipv4.code(),
            stage: Stage::Open.code(),
            local: [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            remote: [10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            local_port: 51000,
            remote_port: 443,
            netns: 4_026_531_840,
            pid: 1234,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            cgroup: 7,
            syn_ns: 1_000_000_000,
            open_ns: 1_050_646_000,
            srtt_us: 50_646,
            flags: ConnectionFlags::ESTABLISHED,
            ..Connection::default()
        }
    }

    /// The same connection at its end, which a time-wait minisocket took over.
    pub(crate) fn closed_out_of_sight() -> Connection {
        let mut raw = client();
        raw.stage = Stage::Close.code();
        raw.initiator = Initiator::Local.code();
        raw.flags.set(ConnectionFlags::ACK_WITHOUT_FIN);
        raw.flags.set(ConnectionFlags::PEER_FIN_UNSEEN);
        (raw.our_close_ns, raw.our_fin_ns) = (2_000_000_000, 2_000_005_000);
        (raw.fin_acked_ns, raw.closed_ns) = (2_050_000_000, 2_050_020_000);
        raw
    }

    #[test]
    fn an_open_record_reads_as_documented() {
        let record = Record::new(&ConnectionEvent::of(&client()), &mut Still);
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(
            json,
            r#"{"schema":1,"event":"open","time":"1970-01-01T00:00:01.050646Z","id":"1007","role":"client","family":"ipv4","local":{"addr":"10.0.0.1","port":51000},"remote":{"addr":"10.0.0.2","port":443},"netns":4026531840,"process":{"pid":1234,"comm":"curl","cgroup":"/system.slice/web.service"},"open":{"outcome":"established","duration_us":50646,"rtt_us":50646,"syn_retransmits":0,"final_ack":"bare","fast_open":"none"}}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record, "what is written can be read");
    }

    #[test]
    fn a_close_whose_last_fin_was_out_of_sight_says_so() {
        let raw = closed_out_of_sight();
        let json = serde_json::to_value(Record::new(&ConnectionEvent::of(&raw), &mut Still)).unwrap();
        assert_eq!(
            json["close"],
            serde_json::json!({"initiator":"local","style":"four_segments","ack_wait_us":49995,"unseen":"peer_fin"})
        );
        assert_eq!(json["lifetime_us"], 1_050_020);
        assert_eq!(json["open"]["duration_us"], 50_646, "the close record alone tells the whole story");
    }

    #[test]
    fn a_connection_from_before_has_no_opening() {
        let mut raw = client();
        raw.role = 0;
        raw.pid = 0;
        raw.stage = Stage::Close.code();
        raw.flags = ConnectionFlags::PREEXISTING;
        let record = Record::new(&ConnectionEvent::of(&raw), &mut Still);
        assert!(record.preexisting && record.open.is_none() && record.lifetime_us.is_none());
        assert_eq!(record.process, None);
    }

    #[test]
    fn a_connection_that_found_no_room_does_not_claim_to_be_from_before() {
        let mut raw = client();
        (raw.role, raw.stage) = (0, Stage::Close.code());
        raw.flags = ConnectionFlags::PREEXISTING;
        raw.flags.set(ConnectionFlags::MAYBE_UNFOLLOWED);
        let record = Record::new(&ConnectionEvent::of(&raw), &mut Still);
        assert!(!record.preexisting && record.open.is_none() && record.lifetime_us.is_none());
    }
}
