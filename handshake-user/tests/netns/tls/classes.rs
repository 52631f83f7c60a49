//! The handshake classes without early data, with every program that supports them.

use super::{programs::Peers, row::Row, scenario::meet, settings::Settings};

// PostgreSQL does not resume sessions.
for_each_program!(tls12: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, curl, nginx, haproxy, gnutls,
    python, asyncio, node, go, go_stripped, go_pie, go_wrapped, rustls, java);
for_each_program!(tls13: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, curl, nginx, haproxy, gnutls,
    python, asyncio, node, go, go_stripped, go_pie, go_wrapped, rustls, java);
// Go's server has no session cache.
for_each_program!(tls12_by_session_id: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, curl, nginx,
    haproxy, gnutls, python, asyncio, node, rustls, java);
for_each_program!(tls13_hello_retry: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, curl, nginx, haproxy,
    gnutls, python, asyncio, node, go, go_stripped, go_pie, go_wrapped, rustls, java, postgres);
for_each_program!(tls12_false_start: false_start);
for_each_program!(tls12_full: postgres);
for_each_program!(tls13_full: postgres);

fn tls12(peers: &Peers) {
    meet(peers, Settings::TLS12, &[Row::Tls12Full, Row::Tls12Resumed]);
}

fn tls13(peers: &Peers) {
    meet(peers, Settings::TLS13, &[Row::Tls13Full, Row::Tls13Resumed]);
}

fn tls12_by_session_id(peers: &Peers) {
    let settings = Settings { tickets: false, ..Settings::TLS12 };
    meet(peers, settings, &[Row::Tls12Full, Row::Tls12Resumed]);
}

fn tls13_hello_retry(peers: &Peers) {
    meet(peers, Settings { retry: true, ..Settings::TLS13 }, &[Row::Tls13Retry]);
}

fn tls12_full(peers: &Peers) {
    meet(peers, Settings::TLS12, &[Row::Tls12Full]);
}

fn tls13_full(peers: &Peers) {
    meet(peers, Settings::TLS13, &[Row::Tls13Full]);
}

fn tls12_false_start(peers: &Peers) {
    meet(peers, Settings::TLS12, &[Row::Tls12FalseStart]);
}
