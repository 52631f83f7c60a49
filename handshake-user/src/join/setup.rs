//! The whole setup: from the SYN to the moment from which the client may send application data.

use std::time::Duration;

use handshake_common::{
    Connection, FastOpen, Outcome, Role, TlsClass, TlsOutcome, TlsVersion,
    tcp::{self, open},
};

use super::view::{TlsView, whole_micros};
use crate::event::{Setup, micros};

/// The setup of a connection with this TLS handshake, or without TLS if `tls` is `None`. Returns `None` if
/// the TCP handshake was not seen or either of the two failed.
pub(super) fn setup(connection: &Connection, tls: Option<&TlsView>) -> Option<Setup> {
    let Some(tls) = tls else { return plain(connection) };
    if open::outcome(connection) != Some(Outcome::Established) || open::duration_us(connection).is_none() {
        return None;
    }
    if tls.outcome != Some(TlsOutcome::Completed) {
        return None;
    }
    let round_trips = round_trips(connection, tls);
    let duration = duration(connection, tls);
    let excess_us = excess_us(duration, round_trips, open::rtt_us(connection));
    (round_trips.is_some() || duration.is_some()).then_some(Setup { round_trips, duration, excess_us })
}

/// Without TLS.
fn plain(connection: &Connection) -> Option<Setup> {
    Some(Setup {
        round_trips: Some(tcp::setup::round_trips(connection)?),
        duration: tcp::setup::duration_us(connection).map(Duration::from_micros),
        excess_us: tcp::setup::excess_us(connection),
    })
}

fn round_trips(connection: &Connection, tls: &TlsView) -> Option<u8> {
    let slow = tls.path()?.setup_round_trips() + u8::from(waits_for_hello(connection, tls)?);
    match open::fast_open(connection)? {
        // When the end that took the data spoke, before or after the final ACK, is not known.
        FastOpen::DataAccepted if tls.role != connection.role() => None,
        // Only a ClientHello that was entirely in the SYN saves the round trip.
        FastOpen::DataAccepted => Some(if tls.hello_in_syn? { slow - 1 } else { slow }),
        FastOpen::None | FastOpen::CookieRequested | FastOpen::DataRejected => Some(slow),
    }
}

/// Whether this end dials and is the TLS server (FTP over TLS in active mode, for one): the ClientHello comes
/// to it a round trip after its SYN's answer, instead of leaving with the final ACK.
fn waits_for_hello(connection: &Connection, tls: &TlsView) -> Option<bool> {
    Some(connection.role()? == Role::Client && tls.role? == Role::Server)
}

fn duration(connection: &Connection, tls: &TlsView) -> Option<Duration> {
    Some(whole_micros(may_send_ns(tls)?.checked_sub(start_ns(connection)?)?))
}

/// From the start of the TCP handshake to the ClientHello; 0 if that was handed over for the SYN.
pub(super) fn hello(connection: &Connection, tls: &TlsView) -> Option<Duration> {
    if tls.includes_hello_wait {
        return None;
    }
    Some(whole_micros(tls.start_ns?.saturating_sub(start_ns(connection)?)))
}

/// When the TCP handshake began: the SYN, or on a server its first SYN-ACK.
fn start_ns(connection: &Connection) -> Option<u64> {
    let start = match connection.role()? {
        Role::Client => connection.syn_ns,
        Role::Server => connection.open_ns.checked_sub(open::duration_us(connection)? * 1000)?,
    };
    (start != 0).then_some(start)
}

/// From when on the client may send application data, as this end sees it.
fn may_send_ns(tls: &TlsView) -> Option<u64> {
    if tls.may_send_ns.is_some() {
        return tls.may_send_ns;
    }
    match (tls.role?, tls.version?, tls.class?) {
        (_, _, TlsClass::EarlyDataAccepted) => tls.start_ns,
        // The server speaks last; its library does not know when that arrives.
        (Role::Server, version, TlsClass::Full) if version != TlsVersion::Tls13 => None,
        // Before it is complete, but when exactly is unknown.
        (Role::Client, _, TlsClass::FalseStart) => None,
        _ => tls.ended_ns,
    }
}

fn excess_us(duration: Option<Duration>, round_trips: Option<u8>, rtt_us: Option<u64>) -> Option<i64> {
    let network = u64::from(round_trips?).checked_mul(rtt_us?)?;
    i64::try_from(micros(duration?)).ok()?.checked_sub(i64::try_from(network).ok()?)
}

#[cfg(test)]
mod tests {
    use handshake_common::ConnectionFlags;

    use super::*;
    use crate::{
        event::testing::us,
        join::{build::tests::client, view::tests::completed},
    };

    fn server() -> Connection {
        Connection { role: Role::Server.code(), syn_ns: 0, ..client() }
    }

    #[test]
    fn without_tls_the_setup_is_the_opening() {
        let setup = setup(&client(), None).unwrap();
        assert_eq!(setup, Setup { round_trips: Some(1), duration: us(50_646), excess_us: Some(0) });
    }

    #[test]
    fn tls_1_3_takes_two_round_trips_on_both_sides() {
        for (connection, role) in [(client(), Role::Client), (server(), Role::Server)] {
            let tls = completed(role, TlsVersion::Tls13, TlsClass::Full);
            let setup = setup(&connection, Some(&tls)).unwrap();
            assert_eq!((setup.round_trips, setup.duration), (Some(2), us(101_700)), "{role}");
            assert_eq!(setup.excess_us, Some(101_700 - 2 * 50_646), "{role}");
        }
    }

    #[test]
    fn the_end_that_dials_and_is_the_tls_server_waits_one_more() {
        for (connection, role, round_trips) in
            [(client(), Role::Server, 3), (server(), Role::Client, 2), (client(), Role::Client, 2)]
        {
            let tls = completed(role, TlsVersion::Tls13, TlsClass::Full);
            let setup = setup(&connection, Some(&tls)).unwrap();
            assert_eq!(setup.round_trips, Some(round_trips), "TLS {role}");
        }
        let mut fast = client();
        fast.flags.insert(
            ConnectionFlags::SYN_FASTOPEN | ConnectionFlags::SYN_DATA | ConnectionFlags::SYN_DATA_ACKED,
        );
        let tls = completed(Role::Server, TlsVersion::Tls13, TlsClass::Full);
        assert_eq!(setup(&fast, Some(&tls)).unwrap().round_trips, None);
    }

    #[test]
    fn the_hello_counts_from_the_syn_unless_its_arrival_was_not_seen() {
        let tls = completed(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        assert_eq!(hello(&client(), &tls), us(50_700));
        assert_eq!(hello(&client(), &TlsView { start_ns: Some(999_990_000), ..tls.clone() }), us(0));
        assert_eq!(hello(&client(), &TlsView { includes_hello_wait: true, ..tls }), None);
    }

    #[test]
    fn with_early_data_the_client_may_send_at_its_hello() {
        let tls = completed(Role::Client, TlsVersion::Tls13, TlsClass::EarlyDataAccepted);
        let setup = setup(&client(), Some(&tls)).unwrap();
        assert_eq!((setup.round_trips, setup.duration), (Some(1), us(50_700)));
    }

    #[test]
    fn a_server_that_speaks_last_does_not_know_when_that_arrived() {
        let tls = completed(Role::Server, TlsVersion::Tls12, TlsClass::Full);
        let known = setup(&server(), Some(&tls)).unwrap();
        assert_eq!(known, Setup { round_trips: Some(3), duration: None, excess_us: None });
        let seen = TlsView { may_send_ns: Some(1_150_000_000), ..tls };
        assert_eq!(setup(&server(), Some(&seen)).unwrap().duration, us(150_000));
    }

    #[test]
    fn fast_open_saves_its_round_trip_only_for_a_hello_that_was_all_in_the_syn() {
        let mut connection = client();
        for fact in
            [ConnectionFlags::SYN_FASTOPEN, ConnectionFlags::SYN_DATA, ConnectionFlags::SYN_DATA_ACKED]
        {
            connection.flags.insert(fact);
        }
        assert_eq!(
            setup(&connection, None),
            Some(Setup { round_trips: Some(0), duration: us(0), excess_us: Some(0) })
        );
        let tls = completed(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        let with = |hello_in_syn| setup(&connection, Some(&TlsView { hello_in_syn, ..tls.clone() })).unwrap();
        assert_eq!(with(Some(true)).round_trips, Some(1));
        assert_eq!(with(Some(false)).round_trips, Some(2));
        assert_eq!(with(None).round_trips, None);
    }

    #[test]
    fn what_failed_was_not_set_up() {
        let mut tls = completed(Role::Client, TlsVersion::Tls13, TlsClass::Full);
        tls.outcome = Some(TlsOutcome::Failed);
        assert_eq!(setup(&client(), Some(&tls)), None);
        let mut refused = client();
        (refused.flags, refused.error) = (ConnectionFlags::empty(), 111);
        assert_eq!(setup(&refused, None), None);
    }
}
