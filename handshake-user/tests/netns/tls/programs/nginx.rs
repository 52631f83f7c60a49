//! nginx, as a server and as a proxy before one: the system's OpenSSL, without blocking.

use std::{fs, net::SocketAddr, process::Command};

use tempfile::TempDir;

use super::{
    super::{
        certificate::{Certificate, NAME},
        settings::Settings,
    },
    Client, Library, Peers, Proxy, Running, both,
};
use crate::{
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
        "listen {address} ssl{fast_open}; ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv{}; \
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

/// Asked in plain text from its own side of the link, it asks over the link.
#[track_caller]
fn proxy<'a>(bed: &'a Testbed, address: SocketAddr, settings: Settings) -> Box<dyn Client + 'a> {
    let trust = if settings.trusted {
        format!("proxy_ssl_verify on; proxy_ssl_trusted_certificate {};", certificate().display())
    } else {
        String::new()
    };
    let server = format!(
        "listen {}; location / {{ proxy_pass https://{address}; proxy_ssl_protocols TLSv{}; \
         proxy_ssl_name {NAME}; proxy_ssl_server_name on; {trust} }}",
        Proxy::ADDRESS,
        settings.version.number(),
    );
    let (command, folder) = command(bed, Side::Client, &server);
    let server = Server::start(command);
    await_listener_of(bed, Side::Client, Proxy::PORT);
    Box::new(Proxy { bed, server, _folder: folder })
}

fn certificate() -> &'static std::path::Path {
    &Certificate::shared().chain
}

fn command(bed: &Testbed, side: Side, server: &str) -> (Command, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let configuration = format!(
        "daemon off; master_process off; pid {path}/pid; error_log {path}/log; events {{}} \
         http {{ access_log off; keepalive_timeout 0; \
           client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c; \
           uwsgi_temp_path {path}/d; scgi_temp_path {path}/e; server {{ {server} }} }}"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = bed.command(side, "nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&file);
    (command, folder)
}
