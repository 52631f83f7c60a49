//! Early data (RFC 8446 §2.3, §4.2.10): the library's calls return before the handshake is complete.

use super::{
    programs::Peers,
    row::Row,
    scenario::{meet, meet_and_restart},
    settings::Settings,
};

// Without early data on one side or the other: curl, Python, Node.js, Go, PostgreSQL, Java.
for_each_program!(accepted: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, gnutls, rustls);
// gnutls-cli resumes only within one process, which leaves no time to start another server.
for_each_program!(rejected_by_a_server_with_other_keys: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6,
    rustls);
for_each_program!(rejected_by_a_server_without: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, rustls);
for_each_program!(rejected_by_hello_retry: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, rustls);

const EARLY: Settings = Settings { early_data: true, ..Settings::TLS13 };

fn accepted(peers: &Peers) {
    meet(peers, EARLY, &[Row::Tls13Full, Row::EarlyDataAccepted]);
}

fn rejected_by_a_server_with_other_keys(peers: &Peers) {
    meet_and_restart(peers, EARLY, EARLY, &[Row::Tls13Full, Row::EarlyDataRejected]);
}

fn rejected_by_a_server_without(peers: &Peers) {
    meet_and_restart(peers, EARLY, Settings::TLS13, &[Row::Tls13Full, Row::EarlyDataRejected]);
}

fn rejected_by_hello_retry(peers: &Peers) {
    let after = Settings { retry: true, ..EARLY };
    meet_and_restart(peers, EARLY, after, &[Row::Tls13Full, Row::EarlyDataRejectedByRetry]);
}
