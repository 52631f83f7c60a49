//! HAProxy, as a server and as a proxy in front of one: the system's OpenSSL on non-blocking sockets.

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

/// Of several threads, one may wait for another inside a call.
pub(crate) const PEERS: Peers =
    Peers { client: proxy, server: serve, libraries: both(Some(Library::OpenSslUncertain)) };

#[track_caller]
fn serve(bed: &Testbed, address: SocketAddr, settings: Settings) -> Running {
    let mut bind = format!("bind {address} ssl crt {}", Certificate::shared().pair.display());
    bind += &versions(settings);
    for (is_set, word) in [
        (settings.retry, " curves P-384"),
        (!settings.tickets, " no-tls-tickets"),
        (settings.early_data, " allow-0rtt"),
        (settings.fast_open, " tfo"),
    ] {
        if is_set {
            bind += word;
        }
    }
    let frontend = format!(
        "frontend pages\n {bind}\n option http-server-close\n option httpclose\n \
         http-request return status 200 content-type text/plain string hello\n"
    );
    let (command, folder) = command(bed, Side::Server, &frontend);
    Running::start_in(Some(folder), bed, address, command)
}

/// Takes plain-text requests on its own side of the link and forwards them over it with TLS.
#[track_caller]
fn proxy<'a>(bed: &'a Testbed, address: SocketAddr, settings: Settings) -> Box<dyn Client + 'a> {
    let verify = if settings.trusted {
        format!("verify required ca-file {}", Certificate::shared().chain.display())
    } else {
        "verify none".into()
    };
    let sections = format!(
        "listen proxy\n bind {}\n option httpclose\n http-reuse never\n \
         \
         server there {address} ssl {verify} verifyhost {NAME} sni str({NAME}){}\n",
        Proxy::ADDRESS,
        versions(settings),
    );
    let (command, folder) = command(bed, Side::Client, &sections);
    let server = Server::start(command);
    await_listener_of(bed, Side::Client, Proxy::PORT);
    Box::new(Proxy { bed, server, _folder: folder })
}

fn versions(settings: Settings) -> String {
    let version = settings.version.number();
    format!(" ssl-min-ver TLSv{version} ssl-max-ver TLSv{version}")
}

fn command(bed: &Testbed, side: Side, sections: &str) -> (Command, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("haproxy.cfg");
    let configuration = format!(
        "global\n nbthread 1\n maxconn 64\ndefaults\n mode http\n timeout connect 5s\n timeout client 10s\n \
         timeout server 10s\n{sections}"
    );
    fs::write(&file, configuration).unwrap();
    let mut command = bed.command(side, "haproxy");
    command.args(["-db", "-q", "-f"]).arg(&file);
    (command, folder)
}
