//! Programs that people use, and the processes that the records name.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    case::{Case, Ends, Expect},
    server::{Server, await_listener},
    testbed::{
        Family,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family!(curl_and_nginx, curl_and_an_nginx_that_closes_first, openssl);

const PORT: u16 = 8080;

/// Processes are named where they are certain, and never wrongly.
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
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("index.html"), "hello over a long link\n").unwrap();
    let path = folder.path().display();
    let configuration = format!(
        "daemon off; master_process off; pid {path}/pid; error_log stderr; \
         events {{}} \
         http {{ access_log off; \
           client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c; \
           uwsgi_temp_path {path}/d; scgi_temp_path {path}/e; \
           server {{ listen {address}; root {path}; keepalive_timeout {keepalive}; }} }}"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let mut command = case.bed.command(Side::Server, "nginx");
    command.arg("-p").arg(folder.path()).arg("-c").arg(&file);
    let server = Server::start(command);
    await_listener(&case.bed, address.port());
    (server, folder)
}

/// Fetches the page; the process id of the curl that did.
#[track_caller]
fn curl(case: &Case, address: SocketAddr) -> u32 {
    let mut command = case.bed.command(Side::Client, "curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "10", &format!("http://{address}/")]);
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("curl, which this test needs");
    let pid = child.id();
    let out = child.wait_with_output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(text, "hello over a long link\n", "curl says {errors}");
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

fn curl_and_an_nginx_that_closes_first(family: Family) {
    let (case, ends) = fetch(family, 0);
    let flow = case.flow(case.connection());
    assert!(flow.sent(Side::Server, Packet::is_fin) < flow.sent(Side::Client, Packet::is_fin));
    let close = ends.close(Side::Server);
    close.assert_is("close.initiator", "local");
    close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, Side::Server));
    let close = ends.close(Side::Client);
    close.assert_is("close.initiator", "remote");
    close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, Side::Client));
}

/// TLS is seen as TCP only, here.
fn openssl(family: Family) {
    let case = Case::new();
    let address = SocketAddr::new(case.bed.address(Side::Server, family), PORT);
    let folder = tempfile::tempdir().unwrap();
    let [key, certificate] = ["key.pem", "certificate.pem"].map(|name| folder.path().join(name));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=example.org", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl, which this test needs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let mut command = case.bed.command(Side::Server, "openssl");
    command.args(["s_server", "-quiet", "-www", "-accept", &address.to_string(), "-key"]).arg(&key);
    command.arg("-cert").arg(&certificate).stderr(Stdio::null());
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
