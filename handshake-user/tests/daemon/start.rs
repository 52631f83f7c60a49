//! What happens while the program attaches its probes: it takes a while, and not all are there at once.

use std::{
    io::copy,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::program::{Trace, child_guard::ChildGuard, tls_server::TlsServer};

fn start(command: &mut Command) -> ChildGuard {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ChildGuard::start(command)
}

/// Which version a connection speaks tells which server it is with: a handshake that is told of another
/// connection, because that had a socket at the same address before its end could be seen, has the wrong one.
/// And all of them speak TLS.
#[test]
fn handshakes_during_the_start_are_told_of_their_own_connections() {
    const VERSIONS: [(&str, &str); 2] = [("-tls1_2", "1.2"), ("-tls1_3", "1.3")];
    let servers = VERSIONS.map(|(only, version)| (TlsServer::start(30, &[only]), version));
    // They make one handshake after the other.
    let _clients = servers.each_ref().map(|(server, _)| {
        let address = server.address.to_string();
        start(Command::new("openssl").args(["s_time", "-new", "-time", "300", "-connect", &address]))
    });
    for start in 1..=5 {
        let trace = Trace::start(&["--output", "json"], None);
        let has_both = |out: &str| {
            VERSIONS
                .iter()
                .all(|(_, version)| out.matches(&format!("\"version\":\"{version}\"")).count() > 100)
        };
        trace.wait_for("a hundred handshakes of both versions", has_both);
        let (out, _) = trace.stop();
        for line in String::from_utf8(out).unwrap().lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let port = |end: &str| record[end]["port"].as_u64();
            let is_handshake = record["event"] == "tls" && record["process"]["comm"] == "openssl";
            let place = servers.iter().position(|(server, _)| {
                let at = Some(u64::from(server.address.port()));
                port("local") == at || port("remote") == at
            });
            let Some(place) = place else {
                // A handshake of openssl without its connection can only be one of these.
                assert!(!is_handshake || record.get("local").is_some(), "start {start}: {line}");
                continue;
            };
            // One whose handshake was missed must not seem to be without TLS, which counts its round trips.
            assert!(
                record.get("tls").is_some() || record["event"] != "close" || record.get("setup").is_none(),
                "start {start}: {line}"
            );
            if let Some(version) = record["tls"]["version"].as_str() {
                assert_eq!(version, servers[place].1, "start {start}: {line}");
            }
        }
    }
}

/// A client of GnuTLS that does not block calls its library again whenever bytes have come. Here the first
/// call is made before the program starts, the others after it. Returns the records of its handshake.
fn under_way(arguments: &[&str]) -> Vec<Value> {
    let server = TlsServer::start(30, &[]);
    let relay = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let between = relay.local_addr().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/python/gnutls.py");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script).arg(between.ip().to_string()).arg(between.port().to_string());
    let _client = start(&mut command);
    let (client, _) = relay.accept().unwrap();
    // The ClientHello is here, so the call is over.
    client.peek(&mut [0]).unwrap();
    thread::sleep(Duration::from_millis(100));

    let trace = Trace::start(&[&["--output", "json"], arguments].concat(), None);
    let server = TcpStream::connect(server.address).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Either end may have reset its connection.
            let _ = copy(&mut &server, &mut &client);
            let _ = client.shutdown(Shutdown::Write);
        });
        let _ = copy(&mut &client, &mut &server);
        let _ = server.shutdown(Shutdown::Write);
    });
    let at_client = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        (record["remote"]["port"] == between.port()).then_some(record)
    };
    trace.wait_for("the end of the connection", |out| {
        let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(at_client).any(|record| record["event"] == "close")
    });
    let (out, _) = trace.stop();
    let records = String::from_utf8(out).unwrap();
    records.lines().filter_map(at_client).filter(|record| record["event"] == "tls").collect()
}

#[test]
fn handshake_under_way_at_the_start_has_no_times() {
    let with_packets = under_way(&[]);
    assert!(with_packets.is_empty(), "no ClientHello was seen: {with_packets:?}");
    let without = under_way(&["--tls-wire", "off"]);
    let [record] = &without[..] else { panic!("one handshake: {without:?}") };
    assert_eq!(record["tls"]["library"], "gnutls");
    assert_eq!(record["tls"]["outcome"], "completed");
    for time in ["duration_us", "compute_us", "start_us"] {
        assert!(record["tls"].get(time).is_none(), "{time}: {record}");
    }
}
