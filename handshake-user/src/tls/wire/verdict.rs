//! Interprets the records and the hellos of a handshake. What they do not show is `None`; if they contradict
//! each other, everything that depends on them is.

use handshake_common::{
    Role, TlsClass, TlsOutcome, TlsVersion,
    tls::wire::{
        record::{Record, RecordFlags, content},
        state::{Ending, StreamFlags, Wire},
        tracker::{is_alert, is_finished},
    },
};

use super::{Certificate, Protocols, cipher, message::Hellos};
use crate::tls::handshake_path::HandshakePath;

/// The padding that Java adds to encrypted TLS 1.3 handshake messages, in bytes.
const JAVA_PADDING: u16 = 16;

/// An alert that could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Who sent it.
    pub from: Role,
    /// It ends the connection.
    pub fatal: bool,
    /// See [`super::alert::name`].
    pub description: u8,
}

/// Everything that the bytes of a handshake reveal. Times are CLOCK_MONOTONIC, ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// Which end the local one is.
    pub role: Option<Role>,
    /// How it ended.
    pub outcome: Option<TlsOutcome>,
    /// The version (RFC 8446 §4.2.1).
    pub version: Option<TlsVersion>,
    /// The path it took.
    pub class: Option<TlsClass>,
    /// The cipher suite; see [`super::cipher::name`].
    pub cipher: Option<u16>,
    /// The host that the client asked for.
    pub sni: Option<&'a str>,
    /// The application protocol that the server chose: readable only in TLS 1.2 and before.
    pub alpn: Option<&'a [u8]>,
    /// The application protocols that the client offered; empty if it offered none.
    pub alpn_offered: Option<Protocols<'a>>,
    /// The client sent an encrypted ClientHello, or random bytes in its place (GREASE): both look the same.
    pub encrypted_hello_offered: Option<bool>,
    /// The first fatal alert, else the first one.
    pub alert: Option<Alert>,
    /// `ClientHello.random`: joins this view with that of a library.
    pub random: Option<[u8; 32]>,
    /// The group of the key exchange; see [`super::group::name`].
    pub group: Option<u16>,
    /// TLS 1.2: what the server signed its key exchange with; see [`super::signature::name`].
    pub signature: Option<u16>,
    /// TLS 1.2 and before: the beginning of the server's certificate.
    pub certificate: Option<Certificate>,
    /// When the ClientHello's first byte first passed.
    pub hello_ns: u64,
    /// When the ClientHello's last byte passed.
    pub hello_whole_ns: Option<u64>,
    /// When the beginning of the ClientHello was last retransmitted: it was lost, or the data of a SYN was
    /// not accepted.
    pub hello_again_ns: Option<u64>,
    /// When the handshake was complete for the local end: the last Finished was sent or received.
    pub ended_ns: Option<u64>,
    /// From when on the client may send application data. On a server: when it is known that the client may.
    pub may_send_ns: Option<u64>,
    /// The server sent a HelloRetryRequest.
    pub hello_retry: Option<bool>,
    /// A session (or an external key) was resumed.
    pub resumed: Option<bool>,
    /// The client wanted to resume one: a ticket, a pre-shared key, or the id of a session.
    pub resumption_offered: Option<bool>,
    /// The client sent early data, or said that it would.
    pub early_data_offered: Option<bool>,
    /// Whether the early data was accepted is inferred from the lengths of encrypted records.
    pub early_data_inferred: bool,
    /// The client offered TLS 1.3.
    pub tls13_offered: Option<bool>,
    /// The HelloRetryRequest asked for a group for which the client had sent no key share.
    pub group_mismatch: Option<bool>,
    /// Part of the stream was not seen in order.
    pub gaps: bool,
}

impl Verdict<'_> {
    /// Returns `None` unless the handshake completed and everything that decides its round trips is known.
    #[must_use]
    pub fn path(&self) -> Option<HandshakePath> {
        let completed = self.outcome == Some(TlsOutcome::Completed);
        HandshakePath::new(self.version?, self.class?, self.hello_retry).filter(|_| completed)
    }

    /// See [`HandshakePath::round_trips`].
    #[must_use]
    pub fn round_trips(&self) -> Option<u8> {
        Some(self.path()?.round_trips(self.role?))
    }

    /// See [`HandshakePath::setup_round_trips`].
    #[must_use]
    pub fn setup_round_trips(&self) -> Option<u8> {
        self.path().map(HandshakePath::setup_round_trips)
    }
}

/// Returns everything that can be concluded about a handshake.
#[must_use]
pub fn verdict<'a>(wire: &Wire, hellos: &Hellos<'a>) -> Verdict<'a> {
    let evidence = Evidence::of(wire, hellos);
    let client = hellos.client[0];
    let outcome = evidence.outcome();
    let class = evidence.class();
    let resumed = match evidence.version {
        Some(TlsVersion::Tls13) => evidence.server_hello().map(|hello| hello.pre_shared_key),
        _ => class.map(|class| class == TlsClass::Resumed),
    };
    let wanted =
        hellos.server[0].filter(|_| evidence.hello_retry == Some(true)).and_then(|hello| hello.group);
    Verdict {
        role: wire.role(),
        outcome,
        version: evidence.version,
        class,
        cipher: evidence.any_server_hello().map(|hello| hello.cipher),
        sni: client.and_then(|hello| hello.server_name),
        alpn: evidence.server_hello().and_then(|hello| hello.protocol),
        alpn_offered: client.map(|hello| hello.protocols.unwrap_or_default()),
        encrypted_hello_offered: client.map(|hello| hello.encrypted_hello),
        alert: alert(wire),
        random: client.map(|hello| hello.random),
        group: evidence.group(),
        signature: evidence.signature(),
        certificate: evidence.certificate(),
        hello_ns: wire.hello_ns,
        hello_whole_ns: wire.moment(wire.whole_at),
        hello_again_ns: wire.moment(wire.again_at),
        ended_ns: evidence.ended().filter(|_| outcome == Some(TlsOutcome::Completed)),
        may_send_ns: evidence.may_send(class).filter(|_| outcome == Some(TlsOutcome::Completed)),
        hello_retry: evidence.hello_retry,
        resumed,
        resumption_offered: client.map(|hello| {
            // With TLS 1.3 on offer the session id may be there for middleboxes only (RFC 8446 §D.4).
            let session = !hello.session_id.is_empty() && !hello.offers(0x0304);
            hello.pre_shared_key || hello.ticket || session
        }),
        early_data_offered: client.map(|hello| hello.early_data),
        early_data_inferred: evidence.early_data_inferred(class),
        tls13_offered: client.map(|hello| hello.offers(0x0304)),
        group_mismatch: wanted.zip(client).map(|(group, hello)| hello.shares().all(|shared| shared != group)),
        gaps: wire.client.seen.contains(StreamFlags::AHEAD) || wire.server.seen.contains(StreamFlags::AHEAD),
    }
}

fn alert(wire: &Wire) -> Option<Alert> {
    let mut alerts = wire.records().iter().filter(|record| is_plain_alert(**record));
    let first = alerts.clone().next();
    let worst = alerts.find(|record| record.is(RecordFlags::FATAL)).or(first)?;
    Some(Alert { from: worst.sender(), fatal: worst.is(RecordFlags::FATAL), description: worst.detail })
}

fn is_plain_alert(record: Record) -> bool {
    record.content() == content::ALERT && !record.is(RecordFlags::ENCRYPTED)
}

/// The facts on which the verdict rests.
struct Evidence<'w, 'a> {
    wire: &'w Wire,
    hellos: &'w Hellos<'a>,
    version: Option<TlsVersion>,
    hello_retry: Option<bool>,
    /// The records contradict the hellos, or the walker met something impossible.
    doubtful: bool,
}

impl<'w, 'a> Evidence<'w, 'a> {
    fn of(wire: &'w Wire, hellos: &'w Hellos<'a>) -> Self {
        let mut evidence = Self { wire, hellos, version: None, hello_retry: None, doubtful: false };
        let first = hellos.server[0];
        let second = wire.server.hello_count > 1;
        evidence.hello_retry = match first {
            Some(hello) => Some(hello.is_hello_retry()),
            None => second.then_some(true),
        };
        evidence.version = evidence.any_server_hello().and_then(|hello| hello.tls_version());
        // Traits of only one of the two generations. TLS 1.3: protected records without an old-style
        // Finished, or a second ServerHello. Before: plaintext handshake messages other than the hellos.
        let new = wire.flight > 0 || second;
        let old = [wire.client.seen, wire.server.seen]
            .iter()
            .any(|seen| seen.contains(StreamFlags::FINISHED) || seen.contains(StreamFlags::EXCHANGED));
        let version_is_new = evidence.version.map(|version| version == TlsVersion::Tls13);
        let two_hellos_without_retry = second && evidence.hello_retry == Some(false);
        let retried_by_old = evidence.hello_retry == Some(true) && version_is_new == Some(false);
        evidence.doubtful = wire.is(Ending::Malformed)
            || (new && (old || version_is_new == Some(false)))
            || (old && version_is_new == Some(true))
            || two_hellos_without_retry
            || retried_by_old
            || evidence.has_impossible_finished();
        if new && !evidence.doubtful && first.is_none() {
            evidence.version = Some(TlsVersion::Tls13);
        }
        if evidence.doubtful && !wire.is(Ending::Malformed) {
            (evidence.version, evidence.hello_retry) = (None, None);
        }
        evidence
    }

    /// The decisive ServerHello: the second one after a HelloRetryRequest.
    fn server_hello(&self) -> Option<super::ServerHello<'a>> {
        let [first, second] = self.hellos.server;
        if self.hello_retry? { second } else { first }
    }

    /// The decisive ServerHello or the HelloRetryRequest: version and suite are the same in both (RFC 8446
    /// §4.1.4).
    fn any_server_hello(&self) -> Option<super::ServerHello<'a>> {
        self.server_hello().or(self.hellos.server[0])
    }

    fn find(&self, mut is: impl FnMut(&Record) -> bool) -> Option<&'w Record> {
        self.wire.records().iter().find(|record| is(record))
    }

    /// Finished of TLS 1.2 or before.
    fn old_finished(&self, from: Role) -> Option<&'w Record> {
        self.find(|record| {
            record.content() == content::HANDSHAKE
                && record.is(RecordFlags::ENCRYPTED)
                && record.sender() == from
        })
    }

    /// A Finished of TLS 1.2 or before has an impossible length: record boundaries were misread.
    fn has_impossible_finished(&self) -> bool {
        let suite = self.any_server_hello().map(|hello| hello.cipher);
        let mut finished =
            [Role::Client, Role::Server].into_iter().filter_map(|from| self.old_finished(from));
        finished.any(|record| !cipher::old_finished_fits(suite, record.length))
    }

    /// The client's second flight (TLS 1.3).
    fn flight(&self) -> impl Iterator<Item = &'w Record> + Clone {
        let kind = Record::kind_of(content::APPLICATION_DATA, RecordFlags::empty());
        self.wire.records().iter().filter(move |record| record.kind == kind)
    }

    /// The client's Finished (TLS 1.3), recognized by its length, which depends on the suite's hash.
    fn new_finished(&self) -> Option<&'w Record> {
        let expected = self.any_server_hello().and_then(|hello| cipher::sizes(hello.cipher));
        let last = self.flight().last()?;
        let fits = match expected {
            Some((protection, hash)) => {
                let length = 4 + hash + protection;
                last.length == length || last.length == length + JAVA_PADDING
            }
            None => is_finished(last.length),
        };
        (self.wire.flight > 0 && fits).then_some(last)
    }

    /// From the key share, or before TLS 1.3 from the server's key exchange.
    fn group(&self) -> Option<u16> {
        let hello = self.server_hello()?;
        match self.version? {
            TlsVersion::Tls13 => hello.group,
            _ if self.doubtful || !cipher::has_signed_curve(hello.cipher) => None,
            _ => Some(self.wire.curve).filter(|curve| *curve != 0),
        }
    }

    /// The older versions leave no choice (RFC 4346 §7.4.3): nothing says with what they sign.
    fn signature(&self) -> Option<u16> {
        let is_there = self.version? == TlsVersion::Tls12 && self.group().is_some();
        Some(self.wire.signature).filter(|scheme| is_there && *scheme != 0)
    }

    fn certificate(&self) -> Option<Certificate> {
        let is_readable = !self.doubtful && self.version? < TlsVersion::Tls13;
        self.hellos.certificate.filter(|_| is_readable)
    }

    /// Whether EndOfEarlyData came right before the Finished. Returns `None` if there was no Finished, or its
    /// suite is unknown.
    fn end_of_early_data(&self) -> Option<bool> {
        self.new_finished()?;
        let (protection, _) = self.server_hello().and_then(|hello| cipher::sizes(hello.cipher))?;
        let last_but_one = self.flight().count().checked_sub(2);
        let before = last_but_one.and_then(|index| self.flight().nth(index));
        Some(before.is_some_and(|record| record.length == 4 + protection))
    }

    fn outcome(&self) -> Option<TlsOutcome> {
        if self.doubtful {
            return None;
        }
        if alert(self.wire).is_some_and(|alert| alert.fatal) {
            return Some(TlsOutcome::Failed);
        }
        if self.ended().is_some() {
            return Some(TlsOutcome::Completed);
        }
        // Too short for any handshake message, and nothing else may follow the hellos from a client.
        if self.flight().last().is_some_and(|record| is_alert(record.length)) {
            return Some(TlsOutcome::Failed);
        }
        let stalled = self.wire.client.is_stalled() || self.wire.server.is_stalled();
        let hidden = self.wire.flight > 0
            || self.wire.server.seen.contains(StreamFlags::SPOKE)
            || self
                .find(|record| record.content() == content::ALERT && record.is(RecordFlags::ENCRYPTED))
                .is_some();
        let went_away = self.wire.is(Ending::Closed) || self.find(|record| is_plain_alert(*record)).is_some();
        (went_away && !stalled && !hidden).then_some(TlsOutcome::Abandoned)
    }

    fn class(&self) -> Option<TlsClass> {
        if self.doubtful {
            return None;
        }
        match self.version? {
            TlsVersion::Tls13 => self.new_class(),
            _ => self.old_class(),
        }
    }

    fn new_class(&self) -> Option<TlsClass> {
        let offered = self.hellos.client[0]?;
        if self.hello_retry? {
            return Some(if offered.early_data { TlsClass::EarlyDataRejected } else { TlsClass::HelloRetry });
        }
        let chosen = self.server_hello()?;
        match (offered.early_data, offered.pre_shared_key, chosen.pre_shared_key) {
            (_, false, true) => None,
            (false, _, true) => Some(TlsClass::Resumed),
            (false, _, false) => Some(TlsClass::Full),
            (true, _, false) => Some(TlsClass::EarlyDataRejected),
            (true, true, true) => Some(if self.end_of_early_data()? {
                TlsClass::EarlyDataAccepted
            } else {
                TlsClass::EarlyDataRejected
            }),
        }
    }

    fn old_class(&self) -> Option<TlsClass> {
        let (offered, chosen) = (self.hellos.client[0]?, self.server_hello()?);
        if !self.wire.client.seen.contains(StreamFlags::CHANGE_CIPHER_SPEC) {
            return None;
        }
        // Corroboration: the server repeats the id of a session that it resumes (RFC 5246 §7.4.1.3, RFC 5077
        // §3.4).
        let full = self.wire.client.seen.contains(StreamFlags::EXCHANGED);
        let named = !offered.session_id.is_empty();
        let repeated = named && offered.session_id == chosen.session_id;
        let contradicted = if full { repeated } else { named && !repeated };
        if contradicted {
            return None;
        }
        if !full {
            return Some(TlsClass::Resumed);
        }
        match self
            .find(|record| record.content() == content::APPLICATION_DATA && record.is(RecordFlags::EARLY))
        {
            Some(record) if record.is(RecordFlags::UNSURE) => None,
            Some(_) => Some(TlsClass::FalseStart),
            // Only then does a server know that no early data was in flight.
            None => {
                let settled = self.wire.role() == Some(Role::Client) || self.wire.acked_at != 0;
                settled.then_some(TlsClass::Full)
            }
        }
    }

    fn ended(&self) -> Option<u64> {
        let last = if self.wire.flight > 0 {
            self.new_finished()?
        } else {
            let (client, server) = (self.old_finished(Role::Client)?, self.old_finished(Role::Server)?);
            if client.at > server.at { client } else { server }
        };
        Some(self.wire.time_of(last))
    }

    fn may_send(&self, class: Option<TlsClass>) -> Option<u64> {
        let server = self.wire.role() == Some(Role::Server);
        match class? {
            TlsClass::EarlyDataAccepted => Some(self.wire.hello_ns),
            TlsClass::FalseStart => self.old_finished(Role::Client).map(|record| self.wire.time_of(record)),
            TlsClass::Full if server && self.version? < TlsVersion::Tls13 => {
                self.wire.moment(self.wire.acked_at)
            }
            _ => self.ended(),
        }
    }

    /// A rejection by the ServerHello or a HelloRetryRequest is certain; everything else is hidden in
    /// encrypted records.
    fn early_data_inferred(&self, class: Option<TlsClass>) -> bool {
        let fate = matches!(class, Some(TlsClass::EarlyDataAccepted | TlsClass::EarlyDataRejected));
        fate && self.server_hello().is_some_and(|hello| hello.pre_shared_key)
            && self.hello_retry == Some(false)
    }
}
