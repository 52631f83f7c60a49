//! TLS that another process makes, and that this one only forwards; what forwarders put in front of it.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
};

use socket2::Socket;
use tempfile::TempDir;

use super::{
    certificate::{Certificate, NAME},
    programs::run_for,
};
use crate::{
    case::{Case, ms},
    ends::{Ends, Expect},
    server::Server,
    testbed::{Family, packet::Side},
};

/// `openssl s_client` and `s_server` on Unix sockets, and the test in between, which forwards what they say
/// over the link. It sends `forward(hello)` instead of the ClientHello, and drops the first `skipped` bytes
/// again.
#[track_caller]
fn relayed(skipped: usize, forward: impl FnOnce(Vec<u8>) -> Vec<u8> + Send + 'static) -> (Ends, u32) {
    let case = Case::new();
    let folder = TempDir::new().unwrap();
    let [front, back] = ["front", "back"].map(|name| folder.path().join(name));
    let certificate = Certificate::shared();
    let mut command = case.bed.command(Side::Server, "openssl");
    command.args(["s_server", "-quiet", "-unix"]).arg(&back);
    command.arg("-key").arg(&certificate.key).arg("-cert").arg(&certificate.chain);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let _server = Server::start(command);
    await_path(&back);
    let (listener, address) = case.bed.listen(Family::V4);
    let client = case.bed.socket(Side::Client, Family::V4);
    let entrance = UnixListener::bind(&front).unwrap();
    let incoming = thread::spawn(move || {
        let (mut program, _) = entrance.accept().unwrap();
        client.connect(&address.into()).unwrap();
        let mut hello = vec![0; 1 << 14];
        let length = program.read(&mut hello).unwrap();
        hello.truncate(length);
        (&client).write_all(&forward(hello)).unwrap();
        pump(&program, &client);
    });
    let outgoing = thread::spawn(move || {
        let (server, _) = listener.accept().unwrap();
        (&server).read_exact(&mut vec![0; skipped]).unwrap();
        pump(&UnixStream::connect(back).unwrap(), &server);
    });
    let mut command = case.bed.command(Side::Client, "openssl");
    command.args(["s_client", "-servername", NAME, "-unix"]).arg(&front);
    let (pid, out) = run_for(command, b"", ms(600));
    assert!(out.status.success(), "{out:?}");
    incoming.join().unwrap();
    outgoing.join().unwrap();
    let connection = case.connection();
    case.bed.wait_until_quiet();
    (case.ends(connection, Expect::BOTH), pid)
}

/// Forwards both ways until both ends have closed.
fn pump(program: &UnixStream, socket: &Socket) {
    thread::scope(|scope| {
        scope.spawn(|| {
            // The peer may have reset the connection.
            let _ = std::io::copy(&mut &*program, &mut &*socket);
            let _ = socket.shutdown(Shutdown::Write);
        });
        let _ = std::io::copy(&mut &*socket, &mut &*program);
        let _ = program.shutdown(Shutdown::Write);
    });
}

#[track_caller]
fn await_path(path: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !path.exists() {
        assert!(std::time::Instant::now() < deadline, "no socket {}", path.display());
        thread::sleep(ms(10));
    }
}

#[track_caller]
fn check_handshake(ends: &Ends, side: Side) {
    let tls = ends.tls(side);
    tls.assert_is("tls.outcome", "completed");
    tls.assert_is("tls.version", "1.3");
    tls.assert_is("tls.class", "full");
    tls.assert_is("tls.sni", NAME);
    tls.assert_count("setup.round_trips", 2);
    ends.close(side).assert_count("setup.round_trips", 2);
}

/// The relay dialled, and another process made the TLS: they are two.
#[test]
fn relay_of_a_unix_socket_has_no_library_of_another_process() {
    let (ends, program) = relayed(0, |hello| hello);
    check_handshake(&ends, Side::Client);
    let tls = ends.tls(Side::Client);
    tls.assert_is("tls.source", "wire");
    tls.assert_unknown("tls.library");
    tls.assert_process(std::process::id());
    assert_ne!(tls.number("process.pid"), Some(program.into()));
}

/// A ClientHello behind a header of the PROXY protocol, in one segment.
#[test]
fn hello_behind_a_proxy_header_is_found() {
    let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec();
    let binary = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec(),
        vec![192, 0, 2, 1, 198, 51, 100, 1, 220, 4, 1, 187],
    ]
    .concat();
    for header in [line, binary] {
        let skipped = header.len();
        let (ends, _) = relayed(skipped, |hello| [header, hello].concat());
        for side in [Side::Client, Side::Server] {
            check_handshake(&ends, side);
        }
    }
}

/// A ClientHello in records of one byte and of many (RFC 8446 §5.1).
#[test]
fn hello_in_records_of_any_length_is_put_together() {
    for lengths in [&[1][..], &[1, 1, 1, 1, 1], &[2, 1], &[3], &[4], &[5, 7]] {
        let (ends, _) = relayed(0, |hello| in_records(&hello, lengths));
        for side in [Side::Client, Side::Server] {
            check_handshake(&ends, side);
        }
    }
}

/// The same message in records of these lengths, and the rest in a last one.
fn in_records(hello: &[u8], lengths: &[usize]) -> Vec<u8> {
    let [kind, major, minor, ..] = *hello else { panic!("no record") };
    let mut message = &hello[5..];
    let mut bytes = Vec::new();
    for &length in lengths.iter().chain(&[usize::MAX]) {
        let (part, rest) = message.split_at(length.min(message.len()));
        bytes.extend([kind, major, minor]);
        bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        bytes.extend(part);
        message = rest;
    }
    bytes
}
