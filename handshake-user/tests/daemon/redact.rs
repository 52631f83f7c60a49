//! What is redacted leaves by no exit: not in files, not on the page, not as a label, not by `trace`. The
//! second witness of what takes its place is openssl, which has the key, too.

use std::{fs, io::Read as _, process::Command};

use flate2::read::MultiGzDecoder;
use nix::sys::signal::Signal;

use crate::{
    page::{Client, page_until},
    program::{Daemon, Running, Said, TRACING, program, tls_server::TlsServer},
    records::{files, wait_for},
};

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// The hash of a value, according to openssl.
fn hash(value: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("value");
    fs::write(&file, value).unwrap();
    let output =
        Command::new("openssl").args(["dgst", "-sha256", "-r", "-hmac", KEY]).arg(&file).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said[..16].to_owned()
}

#[test]
fn redacted_values_leave_by_no_exit_and_are_the_same_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (into, key) = (folder.path().join("records"), folder.path().join("key"));
    fs::write(&key, KEY.to_owned() + "\n").unwrap();
    let hiding = [
        "--redact",
        "addr=hash,sni=hash,comm=hash,cgroup=drop,host=hash",
        "--redact-key",
        key.to_str().unwrap(),
    ];
    let writing = ["--records", into.to_str().unwrap(), "--label", "process", "--label", "sni"];
    let daemon = Daemon::start(&[&hiding[..], &writing[..]].concat());
    let (out, err) = (Said::default(), Said::default());
    // The filter asks for the true name.
    let mut command = program(&[&["trace", "--output", "json", "--comm", "zq-secret"], &hiding[..]].concat());
    let trace = Running::start(&mut command, TRACING, out.taker(), err.taker()).unwrap();
    let server = TlsServer::start(-1, &[]);
    let client = Client::named("zq-secret");
    client.refuse(&server);
    // One that is completed is in the histograms, too.
    let port = server.address.port();
    let resolved = format!("expired.test:{port}:127.0.0.1");
    client.run(&["-k", "--resolve", &resolved, &format!("https://expired.test:{port}/")]);

    let comm = format!("hash-{}", hash("comm:zq-secret"));
    let sni = format!("hash-{}", hash("sni:expired.test"));
    let address = format!("ipv4-{}", hash("addr:127.0.0.1"));
    let nodename = nix::sys::utsname::uname().unwrap().nodename().to_str().unwrap().to_owned();
    let is_whole = |text: &str| text.contains(&comm) && text.contains("\"event\":\"close\"");
    wait_for("the close in trace", || is_whole(&out.text()));
    let written = || {
        let mut text = String::new();
        for file in files(&into) {
            MultiGzDecoder::new(fs::File::open(file).unwrap()).read_to_string(&mut text).unwrap();
        }
        text
    };
    wait_for("the close in a file", || {
        written().lines().any(|line| is_whole(line) && line.contains(&sni) && line.contains(&address))
    });
    let shown = page_until(&daemon.address, |shown| shown.contains(&comm) && shown.contains(&sni));
    let metrics = || daemon.request("GET", "/metrics").2;
    for label in [format!("process=\"{comm}\""), format!("sni=\"{sni}\"")] {
        wait_for(&label, || metrics().contains(&label));
    }
    let metrics = metrics();
    let log = daemon.said();
    trace.end(Signal::SIGINT);

    let exits = [
        ("files", written()),
        ("page", shown),
        ("metrics", metrics),
        ("log", log),
        ("trace", out.text()),
        ("trace's summary", err.text()),
    ];
    for (exit, text) in &exits {
        for secret in ["zq-secret", "expired.test"] {
            assert!(!text.contains(secret), "{secret} by {exit}: {text}");
        }
    }
    for (exit, text) in exits.iter().filter(|(exit, _)| ["files", "trace"].contains(exit)) {
        let host = format!("\"{nodename}\"");
        for secret in ["127.0.0.1", "\"cgroup\"", "\"unit\"", &host] {
            assert!(!text.contains(secret), "{secret} by {exit}: {text}");
        }
    }
    // What other programs of this host do at the same time is redacted as well.
    assert!(!exits[1].1.contains("127.0.0.1:"), "{}", exits[1].1);
    assert!(exits[1].1.contains(&format!("<title>handshake · hash-{}", hash(&format!("host:{nodename}")))));
}
