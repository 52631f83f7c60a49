//! One TLS handshake as one view saw it: the library's calls or the packets.

use std::time::Duration;

use handshake_common::{
    Library, Role, TlsClass, TlsOutcome, TlsSource, TlsVersion,
    tls::{
        library::session::{self, Session, SessionFlags},
        wire::{Burst, Ending, WireHandshake},
    },
};

use super::failure;
use crate::tls::{
    handshake_path::HandshakePath,
    wire::{Certificate, Verdict, alert},
};

/// What is known of a handshake; `None` is unknown. Times are CLOCK_MONOTONIC, nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsView {
    /// Which end of the handshake this is.
    pub role: Option<Role>,
    /// How it ended.
    pub outcome: Option<TlsOutcome>,
    /// Negotiated.
    pub version: Option<TlsVersion>,
    /// Full, resumed …: decides the round trips.
    pub class: Option<TlsClass>,
    /// Whether there was a HelloRetryRequest.
    pub hello_retry: Option<bool>,
    /// The ClientHello was handed to TCP (client) or arrived (server); else the library's first call.
    pub start_ns: Option<u64>,
    /// It was complete, failed or abandoned.
    pub ended_ns: Option<u64>,
    /// How long TCP held the last flight of this end after the library was done; both views are needed.
    pub held: Option<Duration>,
    /// From when on the client might send application data, if that was seen separately from the end.
    pub may_send_ns: Option<u64>,
    /// Inside the library's calls, less what they slept.
    pub compute: Option<Duration>,
    /// Cipher suite, as IANA numbers it.
    pub cipher: Option<u16>,
    /// Server name that the client asked for.
    pub sni: Option<String>,
    /// Application protocol that was chosen.
    pub alpn: Option<String>,
    /// Group of the key exchange, as IANA numbers it.
    pub group: Option<u16>,
    /// What the server signed its key exchange with (TLS 1.2), as IANA numbers it.
    pub signature: Option<u16>,
    /// The server's certificate (TLS 1.2 and before).
    pub certificate: Option<Certificate>,
    /// Application protocols that the client offered, in its order, without those that have other bytes than
    /// printable ASCII (GREASE).
    pub alpn_offered: Option<Vec<String>>,
    /// The client sent an encrypted ClientHello, or GREASE in its place.
    pub ech_offered: Option<bool>,
    /// Alert that ended it.
    pub alert: Option<&'static str>,
    /// Which end sent that alert.
    pub alert_from: Option<Role>,
    /// What the library said of the failure.
    pub error: Option<String>,
    /// Whose code it was.
    pub library: Option<Library>,
    /// Who saw it.
    pub source: TlsSource,
    /// A server's wait for the ClientHello is in the duration.
    pub includes_hello_wait: bool,
    /// Whether the whole ClientHello was in the SYN, where Fast Open carried data.
    pub hello_in_syn: Option<bool>,
    /// When its packets passed this end, counted from `start_ns`.
    pub bursts: Option<Box<[Burst]>>,
    /// ClientHello.random, by which the other view is found.
    pub random: Option<[u8; 32]>,
}

impl TlsView {
    /// What the library's calls showed.
    #[must_use]
    pub fn of_library(raw: &Session) -> Self {
        let failed = raw.outcome == TlsOutcome::Failed.code();
        // Until then it may be the cipher of the session to be resumed.
        let agreed = raw.outcome == TlsOutcome::Completed.code();
        let reason = failed && raw.flags.contains(SessionFlags::REASON);
        let alert = if reason { failure::received(raw.error) } else { None };
        let role = session::role(raw);
        let known = |time: u64| (time != 0).then_some(time);
        Self {
            role,
            outcome: session::outcome(raw),
            version: session::version(raw),
            class: session::class(raw),
            hello_retry: session::hello_retry(raw),
            start_ns: known(session::start_ns(raw)),
            ended_ns: known(raw.ended_ns),
            held: None,
            may_send_ns: None,
            compute: session::compute_us(raw).map(Duration::from_micros),
            cipher: (agreed && raw.cipher != 0).then_some(raw.cipher),
            sni: None,
            alpn: session::alpn(raw).filter(|_| agreed).and_then(printable),
            group: None,
            signature: None,
            certificate: None,
            alpn_offered: None,
            ech_offered: None,
            alert,
            // OpenSSL names an alert as the reason only where the peer sent it.
            alert_from: alert.and(role).map(Role::peer),
            error: failed.then(|| error_text(raw)).flatten(),
            library: session::library(raw),
            source: TlsSource::Library,
            includes_hello_wait: session::includes_hello_wait(raw),
            hello_in_syn: None,
            bursts: None,
            random: (raw.random != [0; 32]).then_some(raw.random),
        }
    }

    /// What the packets showed.
    #[must_use]
    pub fn of_wire(verdict: &Verdict<'_>, wire_handshake: &WireHandshake) -> Self {
        let last = wire_handshake.wire.records().last().map(|record| wire_handshake.wire.time_of(record));
        let bursts = wire_handshake.wire.bursts().filter(|_| !wire_handshake.wire.is(Ending::Malformed));
        let failed = verdict.outcome == Some(TlsOutcome::Failed);
        let alert = verdict.alert.filter(|_| failed);
        let offered = verdict.alpn_offered.map(|list| list.iter().filter_map(printable).collect());
        Self {
            role: verdict.role,
            outcome: verdict.outcome,
            version: verdict.version,
            class: verdict.class.filter(|_| verdict.outcome == Some(TlsOutcome::Completed)),
            hello_retry: verdict.hello_retry,
            start_ns: Some(verdict.hello_ns),
            ended_ns: verdict.ended_ns.or(last.filter(|_| failed)),
            held: None,
            may_send_ns: verdict.may_send_ns,
            compute: None,
            cipher: verdict.cipher,
            sni: verdict.sni.map(str::to_owned),
            alpn: verdict.alpn.and_then(printable),
            group: verdict.group,
            signature: verdict.signature,
            certificate: verdict.certificate,
            alpn_offered: offered,
            ech_offered: verdict.encrypted_hello_offered,
            alert: alert.and_then(|alert| alert::name(alert.description)),
            alert_from: alert.map(|alert| alert.from),
            error: None,
            library: None,
            source: TlsSource::Wire,
            includes_hello_wait: false,
            hello_in_syn: Some(wire_handshake.hello_in_syn != 0),
            bursts: bursts.map(Box::from),
            random: verdict.random,
        }
    }

    /// How it ended is not certain after all.
    pub(super) fn doubt(&mut self) {
        (self.outcome, self.class) = (None, None);
        (self.ended_ns, self.may_send_ns) = (None, None);
    }

    /// The first calls of the library may have been missed.
    pub(super) fn doubt_beginning(&mut self) {
        (self.start_ns, self.compute) = (None, None);
        self.includes_hello_wait = false;
    }

    /// ClientHello → complete, failed or abandoned; whole microseconds.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        Some(whole_micros(self.ended_ns?.checked_sub(self.start_ns?)?))
    }

    /// Returns `None` if a fact that decides the round trips is unknown.
    #[must_use]
    pub fn path(&self) -> Option<HandshakePath> {
        HandshakePath::new(self.version?, self.class?, self.hello_retry)
    }
}

/// A protocol's name, if it is printable ASCII.
fn printable(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    name.chars().all(|c| c.is_ascii_graphic()).then(|| name.to_owned())
}

/// Whole microseconds: the kernel's samples are no finer.
pub(super) const fn whole_micros(ns: u64) -> Duration {
    Duration::from_micros(ns / 1000)
}

fn error_text(raw: &Session) -> Option<String> {
    if !raw.flags.contains(SessionFlags::REASON) {
        let known = if session::library(raw) == Some(Library::GnuTls) {
            failure::gnutls_error(raw.error)
        } else {
            None
        };
        return (raw.error != 0).then(|| known.map_or_else(|| format!("error {}", raw.error), str::to_owned));
    }
    if let Some(alert) = failure::received(raw.error) {
        return Some(format!("alert {alert} received"));
    }
    Some(failure::openssl_reason(raw.error).map_or_else(|| format!("reason {}", raw.error), str::to_owned))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A completed handshake of 51 ms that the library saw.
    pub(crate) fn completed(role: Role, version: TlsVersion, class: TlsClass) -> TlsView {
        let raw = Session { begun_ns: 1_050_700_000, ended_ns: 1_101_700_000, ..Session::default() };
        TlsView {
            role: Some(role),
            outcome: Some(TlsOutcome::Completed),
            version: Some(version),
            class: Some(class),
            hello_retry: Some(class == TlsClass::HelloRetry),
            library: Some(Library::OpenSsl),
            ..TlsView::of_library(&raw)
        }
    }

    #[test]
    fn failures_have_names() {
        let failed = |error, flags| {
            let raw = Session { outcome: TlsOutcome::Failed.code(), error, flags, ..Session::default() };
            let TlsView { alert, error, .. } = TlsView::of_library(&raw);
            (alert, error)
        };
        assert_eq!(failed(134, SessionFlags::REASON), (None, Some("certificate verify failed".to_owned())));
        assert_eq!(
            failed(1070, SessionFlags::REASON),
            (Some("protocol_version"), Some("alert protocol_version received".to_owned()))
        );
        assert_eq!(failed(-12, SessionFlags::default()), (None, Some("error -12".to_owned())));
        assert_eq!(failed(0, SessionFlags::default()), (None, None));
    }
}
