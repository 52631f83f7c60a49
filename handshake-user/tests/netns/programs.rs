//! Connections of widely used programs, and the processes in their records.

use std::{net::SocketAddr, process::Stdio};

use tempfile::TempDir;

use crate::{
    case::Case,
    ends::{Ends, Expect},
    nginx,
    server::{Server, await_listener},
    testbed::{
        Family,
        packet::{Packet, Side},
    },
    tls::certificate::Certificate,
    truth,
};

for_each_family!(curl_and_nginx, curl_and_nginx_closing_first, openssl);

const PORT: u16 = 8080;
const PAGE: &str = "hello over a long link\n";

/// The process is reported where it is certain, and never wrong.
#[track_caller]
fn check_processes(ends: &Ends, client: (u32, &str), server: (u32, &str)) {
    for record in [ends.open(Side::Client), ends.close(Side::Client)] {
        record.assert_process(client.0);
        record.assert_is("process.comm", client.1);
    }
    ends.open(Side::Server).assert_process_or_unknown(server.0);
    ends.open(Side::Server).assert_one_of_or_unknown("process.comm", &[server.1]);
    let close = ends.close(Side::Server);
    close.assert_process(server.0);
    close.assert_is("process.comm", server.1);
}

fn nginx(case: &Case, address: SocketAddr, keepalive: u32) -> (Server, TempDir) {
    let server = format!(
        "listen {address}; keepalive_timeout {keepalive}; location / {{ return 200 '{}\\n'; }}",
        PAGE.trim_end()
    );
    let (command, folder) = nginx::command(&case.bed, Side::Server, &server);
    let server = Server::start(command);
    await_listener(&case.bed, address.port());
    (server, folder)
}

/// Fetches the page. Returns the process id of curl.
#[track_caller]
fn curl(case: &Case, address: SocketAddr) -> u32 {
    let mut command = case.bed.command(Side::Client, "curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "10", &format!("http://{address}/")]);
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("curl, which this test needs");
    let pid = child.id();
    let out = child.wait_with_output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(text, PAGE, "curl: {errors}");
    pid
}

fn fetch(family: Family, keepalive: u32) -> (Case, Ends) {
    let case = Case::new();
    let address = SocketAddr::new(case.bed.address(Side::Server, family), PORT);
    let (server, _folder) = nginx(&case, address, keepalive);
    let client = curl(&case, address);
    let connection = case.connection();
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    for (side, truth) in
        [(Side::Client, truth::client_open(&flow)), (Side::Server, truth::server_open(&flow))]
    {
        let open = ends.open(side);
        open.assert_is("open.outcome", "established");
        open.assert_near("open.duration_us", truth);
        open.assert_near("open.rtt_us", truth);
        open.assert_is("open.final_ack", "bare");
    }
    check_processes(&ends, (client, "curl"), (server.pid(), "nginx"));
    (case, ends)
}

fn curl_and_nginx(family: Family) {
    let (case, ends) = fetch(family, 60);
    let flow = case.flow(case.connection());
    let close = ends.close(Side::Client);
    close.assert_is("close.initiator", "local");
    close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, Side::Client));
    let close = ends.close(Side::Server);
    close.assert_is("close.initiator", "remote");
    close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, Side::Server));
    close.assert_near("close.app_wait_us", truth::passive_app_wait(&flow, Side::Server));
    close.assert_near("close.duration_us", truth::passive_close(&flow, Side::Server));
}

fn curl_and_nginx_closing_first(family: Family) {
    let (case, ends) = fetch(family, 0);
    let flow = case.flow(case.connection());
    let client_fin = flow.sent(Side::Client, Packet::is_fin);
    assert!(flow.sent(Side::Server, Packet::is_fin) < client_fin);
    // curl may have the whole page, and close, before nginx's FIN has come.
    let is_crossing = client_fin < flow.got(Side::Client, Packet::is_fin);
    let initiator = |first| if is_crossing { "both" } else { first };
    let close = ends.close(Side::Server);
    close.assert_is("close.initiator", initiator("local"));
    close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, Side::Server));
    let close = ends.close(Side::Client);
    close.assert_is("close.initiator", initiator("remote"));
    close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, Side::Client));
}

/// Only the TCP sections are checked here; `tls` has the tests of the handshakes.
fn openssl(family: Family) {
    let case = Case::new();
    let address = SocketAddr::new(case.bed.address(Side::Server, family), PORT);
    let certificate = Certificate::shared();
    let mut command = case.bed.command(Side::Server, "openssl");
    command
        .args(["s_server", "-quiet", "-www", "-accept", &address.to_string(), "-key"])
        .arg(&certificate.key);
    command.arg("-cert").arg(&certificate.chain).stderr(Stdio::null());
    let server = Server::start(command);
    await_listener(&case.bed, PORT);
    let mut command = case.bed.command(Side::Client, "openssl");
    command.args(["s_client", "-brief", "-connect", &address.to_string()]).stdin(Stdio::null());
    let client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = client.id();
    let out = client.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let connection = case.connection();
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    for (side, truth) in
        [(Side::Client, truth::client_open(&flow)), (Side::Server, truth::server_open(&flow))]
    {
        ends.open(side).assert_near("open.duration_us", truth);
        ends.open(side).assert_near("open.rtt_us", truth);
    }
    check_processes(&ends, (pid, "openssl"), (server.pid(), "openssl"));
    ends.close(Side::Client).assert_is("close.initiator", "local");
    ends.close(Side::Server).assert_is("close.initiator", "remote");
}
