//! What is known of a connection when one of its stages ends: one typed value, which metrics, table, ladder,
//! JSON and advice read, and nothing else. Its serialised form is the published record (docs/json-schema.md).

mod address;
mod id;
mod json;
#[cfg(test)]
mod schema;
#[cfg(test)]
pub(crate) mod testing;

use std::time::{Duration, SystemTime};

use handshake_common::{
    CloseStyle, Family, FastOpen, FastOpenReason, FinalAck, Initiator, Library, Outcome, ProcessBy, Role,
    Stage, TimeWaitEnd, TlsClass, TlsOutcome, TlsSource, TlsVersion,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::json::{optional_micros, rfc3339, rfc3339_seconds, whole_micros};
pub use self::{
    address::{Address, NoAddress},
    id::ConnectionId,
    json::{SCHEMA, SchemaVersion, micros},
};
use crate::{cgroup::Names, untrusted::Untrusted};

/// A stage of a connection that ended, and all that was known of the connection by then. `None` is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionEvent {
    /// Always [`SCHEMA`].
    pub schema: SchemaVersion,
    /// The stage that ended.
    #[serde(rename = "event")]
    pub stage: Stage,
    /// When it ended, by the wall clock.
    #[serde(with = "rfc3339")]
    #[schemars(with = "String")]
    pub time: SystemTime,
    /// Name of the host. With `boot_id`, it makes `id` unique among the records of many hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Untrusted>,
    /// Of this boot of the host: the kernel's random number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<Untrusted>,
    /// The same for all records of a connection: the socket's cookie in hexadecimal, as `ss -e` shows it
    /// (`sk:`), with `.N` for the N-th connection that one socket made after its first.
    pub id: ConnectionId,
    /// Which end of the connection the socket is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The address family on the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Our end. Unknown only for a TLS handshake whose socket is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// The peer's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Endpoint>,
    /// Inode of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// The process that owns the socket, as far as `by` says that it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The connection existed before the program started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preexisting: bool,
    /// The TCP handshake (RFC 9293 §3.5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<Open>,
    /// The TLS handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// From the SYN to the moment at which the client may send application data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup: Option<Setup>,
    /// The close (RFC 9293 §3.6).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close: Option<Close>,
    /// From the start of the TCP handshake to CLOSE.
    #[serde(
        rename = "lifetime_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub lifetime: Option<Duration>,
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// IPv4 or IPv6; redacted: its network, or `ipv4-` or `ipv6-` and a hash, or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<Address>,
    /// 0 only if the TCP handshake failed before a port was chosen.
    pub port: u16,
}

/// A process of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// What it did, by which it is known. Records of older versions do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<ProcessBy>,
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name, at most 15 bytes; redacted: `hash-` and a hash, or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<Untrusted>,
    /// Path in the cgroup v2 hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Untrusted>,
    /// Who it belongs to, by its cgroup.
    #[serde(flatten)]
    pub names: Names,
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Open {
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Client: SYN → ESTABLISHED or failure. Server: first SYN-ACK → ESTABLISHED.
    #[serde(
        rename = "duration_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub duration: Option<Duration>,
    /// The network's round trip, free of timers and programs.
    #[serde(rename = "rtt_us", with = "optional_micros", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub rtt: Option<Duration>,
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
    /// Two ends dialled each other at the same moment (RFC 9293 §3.5): both are clients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simultaneous: bool,
    /// Server: whether the connection was made from a SYN cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syn_cookie: Option<bool>,
    /// Server: ESTABLISHED → `accept()`: how long the connection lay in the accept queue. The program's time,
    /// not the network's.
    #[serde(
        rename = "accept_wait_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub accept_wait: Option<Duration>,
    /// Client whose SYN was retransmitted: the listening socket that it dialled, if that is in the same
    /// network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenQueue>,
}

/// How full the accept queue of a listening socket was when the record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListenQueue {
    /// Established connections that wait for `accept()`.
    pub accept_queue: u32,
    /// The backlog of `listen()`, limited by net.core.somaxconn. The kernel lets one more wait.
    pub accept_queue_limit: u32,
    /// Packets that the socket has dropped since it began to listen, or since the program started if that was
    /// later: SYNs, and final ACKs of openings.
    pub drops: u32,
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tls {
    /// Which end of the handshake this one is. Nearly always the end of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<TlsOutcome>,
    /// From the start of the TCP handshake (client: the SYN; server: its first SYN-ACK) to the ClientHello.
    #[serde(rename = "start_us", with = "optional_micros", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub start: Option<Duration>,
    /// ClientHello handed to TCP (client) or arrived (server) → failed, abandoned, or complete: the library
    /// is done, and the last flight of this end has left the host.
    #[serde(
        rename = "duration_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub duration: Option<Duration>,
    /// How long TCP held this end's last flight after the library was done; it is in the duration.
    #[serde(rename = "held_us", with = "optional_micros", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub held: Option<Duration>,
    /// Inside the library's calls, less what they slept.
    #[serde(
        rename = "compute_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub compute: Option<Duration>,
    /// Negotiated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<TlsVersion>,
    /// Full, resumed …: decides the round trips.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<TlsClass>,
    /// IANA's name of the cipher suite, or its number if that is not in our table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher: Option<Untrusted>,
    /// Server name that the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<Untrusted>,
    /// Application protocol that was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<Untrusted>,
    /// IANA's name of the group of the key exchange, or its number if that is not in our table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Untrusted>,
    /// TLS 1.2: IANA's name of the scheme with which the server signed its key exchange, or its number if
    /// that is not in our table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Untrusted>,
    /// TLS 1.2 and before: the server's own certificate, which a full handshake shows in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Box<Certificate>>,
    /// Application protocols that the client offered, in its order; empty if it has none to offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn_offered: Option<Vec<Untrusted>>,
    /// Whether the client sent an encrypted ClientHello, or random bytes in its place (GREASE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ech_offered: Option<bool>,
    /// Alert that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert: Option<Untrusted>,
    /// Which end sent that alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert_from: Option<Role>,
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
    /// Whether the whole ClientHello was in the SYN, where data in the SYN was accepted (RFC 7413).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello_in_syn: Option<bool>,
    /// A server's wait for the ClientHello is in the duration, because its arrival was not seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub includes_hello_wait: bool,
    /// When each flight passed this end, as the packets showed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flights: Option<Vec<Flight>>,
    /// What came, or left, at least 35 ms later than the network explains; empty if nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalls: Option<Vec<Stall>>,
}

/// What the beginning of a certificate says (RFC 5280 §4.1). Nothing of it was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Certificate {
    /// The last second in which it is valid.
    #[serde(with = "rfc3339_seconds")]
    #[schemars(with = "String")]
    pub not_after: SystemTime,
    /// The type of its key: rsa, `rsa_pss`, ecdsa, ed25519, ed448, dsa, `ml_dsa_44`, `ml_dsa_65` or
    /// `ml_dsa_87`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_type: Option<Untrusted>,
    /// The length of the modulus of RSA, bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_bits: Option<u16>,
    /// The named curve of ECDSA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<Untrusted>,
    /// What its issuer signed it with, by the name in the standard, such as ecdsa-with-SHA256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Untrusted>,
}

/// What one end of a TLS handshake sent until bytes of the other one passed: a flight, with the data that it
/// carried. Times are since the start of the TCP handshake, like `start_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flight {
    /// Which end of the TLS handshake sent it.
    pub from: Role,
    /// When its first segment passed this end.
    #[serde(rename = "first_us", with = "whole_micros")]
    #[schemars(with = "u64")]
    pub first: Duration,
    /// When its last segment did.
    #[serde(rename = "last_us", with = "whole_micros")]
    #[schemars(with = "u64")]
    pub last: Duration,
}

/// A part of a TLS handshake's duration that the network does not explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stall {
    /// Which end of the TLS handshake caused it; without a cause, whose bytes were waited for.
    pub end: Role,
    /// What it was, where that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<StallCause>,
    /// How long.
    #[serde(rename = "duration_us", with = "whole_micros")]
    #[schemars(with = "u64")]
    pub duration: Duration,
    /// When what was late passed this end, since the start of the TCP handshake.
    #[serde(rename = "until_us", with = "whole_micros")]
    #[schemars(with = "u64")]
    pub until: Duration,
}

/// Why something was late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StallCause {
    /// TCP held a segment back until an ACK came for the small one before it (RFC 9293 §3.7.4).
    Nagle,
    /// The ACK that Nagle's algorithm waited for was delayed (RFC 9293 §3.8.6.3).
    DelayedAck,
    /// A segment was lost, and sent again.
    Retransmission,
    /// The TLS library computed.
    Computing,
    /// The program did not call the library, or had no CPU.
    Waiting,
}

impl StallCause {
    /// Every cause.
    pub const ALL: &[Self] =
        &[Self::Nagle, Self::DelayedAck, Self::Retransmission, Self::Computing, Self::Waiting];
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Setup {
    /// Counted from protocol facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips: Option<u8>,
    /// From the start of the TCP handshake.
    #[serde(
        rename = "duration_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub duration: Option<Duration>,
    /// What the network does not explain: signed, so not a `Duration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excess_us: Option<i64>,
}

/// See docs/metrics.md for what each number is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Close {
    /// Whose FIN or RST came first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initiator: Option<Initiator>,
    /// Which segments closed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style: Option<CloseStyle>,
    /// Active side: our FIN → the peer's FIN. Passive side: the peer's FIN → the ACK of ours.
    #[serde(
        rename = "duration_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub duration: Option<Duration>,
    /// Our FIN → its ACK.
    #[serde(
        rename = "ack_wait_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub ack_wait: Option<Duration>,
    /// Active side: that ACK → the peer's FIN. Passive side: the peer's FIN → our `close()`.
    #[serde(
        rename = "app_wait_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub app_wait: Option<Duration>,
    /// The entry into TIME_WAIT → its end.
    #[serde(
        rename = "time_wait_us",
        with = "optional_micros",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<u64>")]
    pub time_wait: Option<Duration>,
    /// How TIME_WAIT ended, or the wait for the peer's FIN before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_wait_end: Option<TimeWaitEnd>,
    /// The `id` of the connection that took over the ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reused_by: Option<ConnectionId>,
    /// How far `duration_us`, `app_wait_us` and `time_wait_us` may be off, where a time-wait minisocket told
    /// them.
    #[serde(rename = "grain_us", with = "optional_micros", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    pub grain: Option<Duration>,
    /// The peer's FIN came after the socket was gone, to its time-wait minisocket.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late_fin: bool,
    /// What no probe saw: the peer's FIN, which went to the time-wait minisocket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Unseen>,
}

impl Close {
    /// Whether the connection went on in TIME_WAIT, or in the wait for the peer's FIN before it.
    #[must_use]
    pub fn enters_time_wait(&self) -> bool {
        let orderly = matches!(
            self.style,
            Some(CloseStyle::FourSegments | CloseStyle::ThreeSegments | CloseStyle::Simultaneous)
        );
        orderly && self.initiator != Some(Initiator::Remote)
    }
}

/// What no probe saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unseen {
    /// The peer's FIN, handled by a time-wait minisocket.
    PeerFin,
}

impl ConnectionEvent {
    /// The duration of the stage that ended.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        match self.stage {
            Stage::Open => self.open.as_ref()?.duration,
            Stage::Close => self.close.as_ref()?.duration,
            Stage::Tls => self.tls.as_ref()?.duration,
            Stage::TimeWait => self.close.as_ref().and_then(|close| close.time_wait.or(close.duration)),
        }
    }

    /// The network's round trip, from the establishment of the connection.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.open.as_ref()?.rtt
    }

    /// Returns the role as the kernel side counts it: `None` for a connection whose establishment was not
    /// followed, even if its TLS handshake shows which end this is.
    #[must_use]
    pub fn counted_role(&self) -> Option<Role> {
        self.role.filter(|_| self.open.is_some())
    }
}
