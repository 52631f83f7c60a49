//! Merges two views of one TLS handshake: each fact comes from the view that saw it happen.

use std::time::Duration;

use handshake_common::{Role, TlsClass, TlsOutcome, TlsSource, TlsVersion};

use super::view::{TlsView, whole_micros};

/// A fact that both views report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// How it ended.
    Outcome,
    /// The version.
    Version,
    /// Full, resumed …
    Class,
    /// Whether there was a HelloRetryRequest.
    HelloRetry,
    /// The cipher suite.
    Cipher,
    /// ClientHello.random.
    Random,
}

impl Fact {
    /// Every fact.
    pub const ALL: [Self; 6] =
        [Self::Outcome, Self::Version, Self::Class, Self::HelloRetry, Self::Cipher, Self::Random];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outcome => "outcome",
            Self::Version => "version",
            Self::Class => "class",
            Self::HelloRetry => "hello_retry",
            Self::Cipher => "cipher",
            Self::Random => "random",
        }
    }
}

/// Merges the views and lists the facts on which they differ. The library knows what it computed and decided;
/// the wire knows when bytes passed and what the hellos said.
#[must_use]
pub fn merge(library: TlsView, wire: TlsView) -> (TlsView, Vec<Fact>) {
    let disagreements = disagreements(&library, &wire);
    // The library calls it complete as soon as the program may send.
    let is_false_start = wire.class == Some(TlsClass::FalseStart);
    let hello_retry = wire.hello_retry.or(library.hello_retry);
    let held = held(&library, &wire);
    let tls = TlsView {
        role: library.role.or(wire.role),
        outcome: outcome(&library, &wire),
        version: library.version.or(wire.version),
        class: class(&library, &wire),
        hello_retry,
        start_ns: wire.start_ns.or(library.start_ns),
        ended_ns: if is_false_start { wire.ended_ns } else { ended_ns(&library, &wire) },
        held,
        may_send_ns: wire.may_send_ns.or(if is_false_start { library.ended_ns } else { library.may_send_ns }),
        compute: library.compute,
        cipher: library.cipher.or(wire.cipher),
        sni: library.sni.or(wire.sni),
        alpn: library.alpn.or(wire.alpn),
        group: library.group.or(wire.group),
        signature: library.signature.or(wire.signature),
        certificate: library.certificate.or(wire.certificate),
        alpn_offered: library.alpn_offered.or(wire.alpn_offered),
        ech_offered: library.ech_offered.or(wire.ech_offered),
        alert: library.alert.or(wire.alert),
        // The library knows only of the alert that it received.
        alert_from: if library.alert.is_some() { library.alert_from } else { wire.alert_from },
        error: library.error,
        library: library.library,
        source: TlsSource::Both,
        // The wire saw the ClientHello arrive.
        includes_hello_wait: library.includes_hello_wait && wire.start_ns.is_none(),
        hello_in_syn: wire.hello_in_syn.or(library.hello_in_syn),
        bursts: wire.bursts.filter(|_| wire.start_ns.is_some()),
        random: wire.random.or(library.random),
    };
    (tls, disagreements)
}

/// The end: the library is done, and the last flight of this end has left the host.
fn ended_ns(library: &TlsView, wire: &TlsView) -> Option<u64> {
    match (library.ended_ns, wire.ended_ns) {
        (Some(done), Some(left)) if are_complete(library, wire) => Some(done.max(left)),
        (done, left) => done.or(left),
    }
}

/// How long TCP held this end's last flight after the library was done: Nagle's algorithm, a full window.
fn held(library: &TlsView, wire: &TlsView) -> Option<Duration> {
    let last = match (wire.version?, wire.class?) {
        (TlsVersion::Tls13, _) | (_, TlsClass::Resumed) => Role::Client,
        // The data behind a client's Finished has left with it, or before the server's came.
        (_, TlsClass::FalseStart) => return None,
        _ => Role::Server,
    };
    if wire.role? != last || !are_complete(library, wire) {
        return None;
    }
    Some(whole_micros(wire.ended_ns?.saturating_sub(library.ended_ns?)))
}

fn are_complete(library: &TlsView, wire: &TlsView) -> bool {
    [library, wire].iter().all(|view| view.outcome == Some(TlsOutcome::Completed))
}

/// The library's outcome, except that a session which it saw abandoned failed if the wire saw an alert end
/// it.
fn outcome(library: &TlsView, wire: &TlsView) -> Option<TlsOutcome> {
    match (library.outcome, wire.outcome) {
        (Some(TlsOutcome::Abandoned), Some(TlsOutcome::Failed)) => wire.outcome,
        (reported, seen) => reported.or(seen),
    }
}

/// The library's class, except for what only the wire shows: that there was a HelloRetryRequest, and that the
/// client's data left before the server's Finished arrived.
fn class(library: &TlsView, wire: &TlsView) -> Option<TlsClass> {
    match (library.class, wire.class) {
        (Some(TlsClass::Full), Some(seen @ TlsClass::FalseStart))
        | (Some(TlsClass::Full | TlsClass::Resumed), Some(seen @ TlsClass::HelloRetry)) => Some(seen),
        (Some(TlsClass::HelloRetry), seen) if wire.hello_retry == Some(false) => seen,
        (reported, seen) => reported.or(seen),
    }
}

fn disagreements(library: &TlsView, wire: &TlsView) -> Vec<Fact> {
    fn differ<T: PartialEq>(library: Option<T>, wire: Option<T>) -> bool {
        library.zip(wire).is_some_and(|(library, wire)| library != wire)
    }
    // No library reports that the client spoke before the server's Finished.
    let refined = wire.class == Some(TlsClass::FalseStart) && library.class == Some(TlsClass::Full);
    Fact::ALL
        .into_iter()
        .filter(|fact| match fact {
            Fact::Outcome => differ(library.outcome, wire.outcome),
            Fact::Version => differ(library.version, wire.version),
            Fact::Class => differ(library.class, wire.class) && !refined,
            Fact::HelloRetry => differ(library.hello_retry, wire.hello_retry),
            Fact::Cipher => differ(library.cipher, wire.cipher),
            Fact::Random => differ(library.random, wire.random),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::view::tests::completed;

    fn views(version: TlsVersion, reported: TlsClass, seen: TlsClass) -> (TlsView, TlsView) {
        let library = completed(Role::Client, version, reported);
        let wire = TlsView {
            start_ns: Some(1_050_800_000),
            ended_ns: Some(1_101_000_000),
            may_send_ns: Some(1_101_000_000),
            sni: Some("example.org".to_owned()),
            cipher: Some(0x1301),
            library: None,
            source: TlsSource::Wire,
            hello_in_syn: Some(false),
            ..completed(Role::Client, version, seen)
        };
        (library, wire)
    }

    #[test]
    fn each_fact_comes_from_the_view_that_saw_it() {
        let (library, wire) = views(TlsVersion::Tls13, TlsClass::Full, TlsClass::Full);
        let (tls, disagreements) = merge(library.clone(), wire.clone());
        assert_eq!(disagreements, []);
        assert_eq!((tls.source, tls.library), (TlsSource::Both, library.library));
        assert_eq!((tls.start_ns, tls.ended_ns), (wire.start_ns, library.ended_ns));
        assert_eq!((tls.sni.as_deref(), tls.cipher), (Some("example.org"), Some(0x1301)));
        assert_eq!(tls.may_send_ns, wire.may_send_ns);
    }

    #[test]
    fn the_end_is_that_of_the_last_flight_which_tcp_may_have_held() {
        let (library, mut wire) = views(TlsVersion::Tls13, TlsClass::Full, TlsClass::Full);
        let done = library.ended_ns.unwrap();
        assert_eq!(merge(library.clone(), wire.clone()).0.held, Some(Duration::ZERO));
        wire.ended_ns = Some(done + 42_000_000);
        let (tls, _) = merge(library.clone(), wire.clone());
        assert_eq!((tls.ended_ns, tls.held), (wire.ended_ns, Some(Duration::from_millis(42))));
        wire.role = Some(Role::Server);
        assert_eq!(merge(library, wire).0.held, None, "the last flight is the client's");
    }

    #[test]
    fn wire_wins_where_the_library_cannot_know() {
        use TlsClass::{EarlyDataAccepted, EarlyDataRejected, FalseStart, Full, HelloRetry, Resumed};
        for (version, reported, seen, class, differs) in [
            (TlsVersion::Tls12, Full, FalseStart, FalseStart, vec![]),
            (TlsVersion::Tls13, Full, HelloRetry, HelloRetry, vec![Fact::Class, Fact::HelloRetry]),
            (TlsVersion::Tls13, HelloRetry, Full, Full, vec![Fact::Class, Fact::HelloRetry]),
            (TlsVersion::Tls13, EarlyDataRejected, EarlyDataAccepted, EarlyDataRejected, vec![Fact::Class]),
            (TlsVersion::Tls12, Resumed, Full, Resumed, vec![Fact::Class]),
        ] {
            let (library, wire) = views(version, reported, seen);
            let (tls, disagreements) = merge(library, wire);
            assert_eq!((tls.class, disagreements), (Some(class), differs), "{reported} {seen}");
        }
    }

    #[test]
    fn outcome_is_the_libraries() {
        let (mut library, wire) = views(TlsVersion::Tls13, TlsClass::Full, TlsClass::Full);
        library.outcome = Some(TlsOutcome::Failed);
        let (tls, disagreements) = merge(library, wire);
        assert_eq!((tls.outcome, disagreements), (Some(TlsOutcome::Failed), vec![Fact::Outcome]));
    }
}
