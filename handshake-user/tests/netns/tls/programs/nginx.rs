//! nginx, as a server and as a proxy in front of one: the system's OpenSSL on non-blocking sockets.

use std::net::SocketAddr;

use super::{
    super::{
        certificate::{Certificate, NAME},
        settings::Settings,
    },
    Client, Library, Peers, Proxy, Running, both,
};
use crate::{
    nginx::command,
    server::{Server, await_listener_of},
    testbed::{Testbed, packet::Side},
};

pub(crate) const PEERS: Peers =
    Peers { client: proxy, server: serve, libraries: both(Some(Library::OpenSsl)) };

#[track_caller]
pub(crate) fn serve(bed: &Testbed, address: SocketAddr, settings: Settings) -> Running {
    let certificate = Certificate::shared();
    let fast_open = if settings.fast_open { " fastopen=16" } else { "" };
    let on = |is_on: bool| if is_on { "on" } else { "off" };
    let server = format!(
        "listen {address} ssl{fast_open}; keepalive_timeout 0; ssl_certificate {}; \
         ssl_certificate_key {}; ssl_protocols TLSv{}; \
         ssl_session_tickets {}; ssl_session_cache shared:sessions:1m; ssl_early_data {}; ssl_ecdh_curve {}; \
         location / {{ return 200 'hello\\n'; }}",
        certificate.chain.display(),
        certificate.key.display(),
        settings.version.number(),
        on(settings.tickets),
        on(settings.early_data),
        if settings.retry { "secp384r1" } else { "auto" },
    );
    let (command, folder) = command(bed, Side::Server, &server);
    Running::start_in(Some(folder), bed, address, command)
}

/// Takes plain-text requests on its own side of the link and forwards them over it with TLS.
#[track_caller]
fn proxy<'a>(bed: &'a Testbed, address: SocketAddr, settings: Settings) -> Box<dyn Client + 'a> {
    let trust = if settings.trusted {
        format!(
            "proxy_ssl_verify on; proxy_ssl_trusted_certificate {};",
            Certificate::shared().chain.display()
        )
    } else {
        String::new()
    };
    let server = format!(
        "listen {}; keepalive_timeout 0; location / {{ proxy_pass https://{address}; \
         proxy_ssl_protocols TLSv{}; \
         proxy_ssl_name {NAME}; proxy_ssl_server_name on; {trust} }}",
        Proxy::ADDRESS,
        settings.version.number(),
    );
    let (command, folder) = command(bed, Side::Client, &server);
    let server = Server::start(command);
    await_listener_of(bed, Side::Client, Proxy::PORT);
    Box::new(Proxy { bed, server, _folder: folder })
}
