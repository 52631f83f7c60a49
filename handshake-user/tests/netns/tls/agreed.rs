//! What the two ends agreed on besides version and cipher suite, compared with what the programs print.

use std::process::{Command, Output};

use tempfile::TempDir;

use super::{
    certificate::{Certificate, NAME},
    programs::{Running, await_probes, run, run_for, server_address, tool},
};
use crate::{
    case::{Case, ms},
    ends::{Ends, Expect},
    program::machine::probes_libraries,
    testbed::packet::Side,
};

const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// Runs the client once. Returns its output, and the records.
#[track_caller]
fn connect(case: &Case, client: Command) -> (String, Ends) {
    let (_, Output { status, stdout, stderr }) = run(client, REQUEST);
    let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    assert!(status.success(), "{text}");
    case.bed.wait_until_quiet();
    let connections = case.bed.capture().connections();
    let ends = case.ends(*connections.last().unwrap(), Expect::BOTH);
    (text, ends)
}

fn openssl_server(case: &Case, more: &[&str]) -> Running {
    let (address, certificate) = (server_address(&case.bed), Certificate::shared());
    let mut command = case.bed.command(Side::Server, "openssl");
    command.args(["s_server", "-quiet", "-www", "-accept", &address.to_string()]).args(more);
    command.arg("-key").arg(&certificate.key).arg("-cert").arg(&certificate.chain);
    Running::start(&case.bed, address, command)
}

fn openssl_client(case: &Case, more: &[&str]) -> Command {
    let mut command = case.bed.command(Side::Client, "openssl");
    command.args(["s_client", "-servername", NAME, "-connect", &server_address(&case.bed).to_string()]);
    command.args(more);
    command
}

/// The value of a line of the client's output.
fn printed<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim)
}

/// Both ends tell this protocol, which TLS 1.3 encrypts.
#[track_caller]
fn assert_alpn(ends: &Ends, protocol: Option<&str>) {
    for side in [Side::Client, Side::Server] {
        let tls = ends.tls(side);
        tls.assert_is("tls.version", "1.3");
        match protocol.filter(|_| probes_libraries()) {
            Some(protocol) => tls.assert_is("tls.alpn", protocol),
            None => tls.assert_unknown("tls.alpn"),
        }
    }
}

#[test]
fn openssl_tells_the_protocol_that_tls_1_3_encrypts() {
    let case = Case::new();
    let _server = openssl_server(&case, &["-tls1_3", "-alpn", "http/1.1"]);
    let (text, ends) = connect(&case, openssl_client(&case, &["-alpn", "h2,http/1.1"]));
    assert_eq!(printed(&text, "ALPN protocol:"), Some("http/1.1"), "{text}");
    assert_alpn(&ends, Some("http/1.1"));

    let (text, ends) = connect(&case, openssl_client(&case, &[]));
    assert!(text.contains("No ALPN negotiated"), "{text}");
    assert_alpn(&ends, None);
}

#[test]
fn protocol_that_is_longer_than_any_in_the_registry_is_unknown() {
    let case = Case::new();
    let long = "a-protocol-with-24-bytes";
    let _server = openssl_server(&case, &["-tls1_3", "-alpn", &format!("{long},a-protocol-of-23-bytes.")]);
    let (text, ends) = connect(&case, openssl_client(&case, &["-alpn", long]));
    assert_eq!(printed(&text, "ALPN protocol:"), Some(long), "{text}");
    assert_alpn(&ends, None);
    let (_, ends) = connect(&case, openssl_client(&case, &["-alpn", "a-protocol-of-23-bytes."]));
    assert_alpn(&ends, Some("a-protocol-of-23-bytes."));
}

#[test]
fn gnutls_tells_the_protocol_that_tls_1_3_encrypts() {
    let case = Case::new();
    let (address, certificate) = (server_address(&case.bed), Certificate::shared());
    let mut command = case.bed.command(Side::Server, "gnutls-serv");
    command.args(["--quiet", "--http", "--disable-client-cert", "--alpn", "http/1.1", "--priority"]);
    command.args(["NORMAL:-VERS-ALL:+VERS-TLS1.3", "--port", &address.port().to_string()]);
    command.arg("--x509keyfile").arg(&certificate.key).arg("--x509certfile").arg(&certificate.chain);
    let _server = Running::start(&case.bed, address, command);
    let client = |protocols: &[&str]| {
        let mut command = case.bed.command(Side::Client, "gnutls-cli");
        command.args(["--sni-hostname", NAME, "--verify-hostname", NAME, "--port"]);
        command.arg(address.port().to_string()).arg("--x509cafile").arg(&certificate.chain);
        command.args(protocols.iter().flat_map(|protocol| ["--alpn", protocol]));
        command.arg(address.ip().to_string());
        command
    };
    let (text, ends) = connect(&case, client(&["h2", "http/1.1"]));
    assert_eq!(printed(&text, "- Application protocol:"), Some("http/1.1"), "{text}");
    assert_alpn(&ends, Some("http/1.1").filter(|_| cfg!(target_arch = "x86_64")));
    let (text, ends) = connect(&case, client(&[]));
    assert_eq!(printed(&text, "- Application protocol:"), None, "{text}");
    assert_alpn(&ends, None);
}

#[test]
fn go_tells_the_protocol_that_tls_1_3_encrypts() {
    let case = Case::new();
    let (address, certificate) = (server_address(&case.bed), Certificate::shared());
    let program = tool("go-plain");
    let go = |side, role: &str, alpn: &str| {
        let mut command = case.bed.command(side, program.to_str().unwrap());
        command.args([role, &address.ip().to_string(), &address.port().to_string(), "version=1.3", alpn]);
        command.arg(format!("certificate={}", certificate.chain.display()));
        command.arg(format!("key={}", certificate.key.display()));
        command.arg(format!("trust={}", certificate.chain.display()));
        command
    };
    let _server = Running::start(&case.bed, address, go(Side::Server, "server", "alpn=http/1.1"));
    await_probes(&program);
    let client = |alpn| {
        let (_, Output { status, stdout, stderr }) =
            run_for(go(Side::Client, "client", alpn), b"\n", ms(400));
        let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        assert!(status.success(), "{text}");
        case.bed.wait_until_quiet();
        let connections = case.bed.capture().connections();
        (text, case.ends(*connections.last().unwrap(), Expect::BOTH))
    };
    let (text, ends) = client("alpn=h2,http/1.1");
    assert_eq!(printed(&text, "application protocol"), Some("http/1.1"), "{text}");
    assert_alpn(&ends, Some("http/1.1"));
    let (text, ends) = client("alpn=");
    assert_eq!(printed(&text, "application protocol"), Some(""), "{text}");
    assert_alpn(&ends, None);
}

#[test]
fn group_of_tls_1_2_is_that_which_openssl_prints() {
    let case = Case::new();
    // Of RSA: with the key of the shared certificate there is no exchange without a curve.
    let folder = TempDir::new().unwrap();
    let [key, chain] = ["key", "chain"].map(|name| folder.path().join(name).display().to_string());
    let arguments =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=rsa", "-keyout", &key, "-out"];
    let made = Command::new("openssl").args(arguments).arg(&chain).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let address = server_address(&case.bed);
    let mut command = case.bed.command(Side::Server, "openssl");
    command.args([
        "s_server",
        "-quiet",
        "-www",
        "-tls1_2",
        "-cipher",
        "ALL",
        "-accept",
        &address.to_string(),
    ]);
    command.args(["-key", &key, "-cert", &chain]);
    let _server = Running::start(&case.bed, address, command);
    for (groups, shown, name) in [
        ("X25519", "X25519, 253 bits", "x25519"),
        ("P-384", "ECDH, secp384r1, 384 bits", "secp384r1"),
        ("P-256:X25519", "ECDH, prime256v1, 256 bits", "secp256r1"),
    ] {
        let (text, ends) = connect(&case, openssl_client(&case, &["-groups", groups]));
        assert_eq!(printed(&text, "Server Temp Key:"), Some(shown), "{text}");
        for side in [Side::Client, Side::Server] {
            let tls = ends.tls(side);
            tls.assert_is("tls.version", "1.2");
            tls.assert_is("tls.group", name);
        }
    }
    // Without a curve: the key of the certificate, and a group of whole numbers.
    for cipher in ["AES128-SHA256", "DHE-RSA-AES128-GCM-SHA256"] {
        let (text, ends) = connect(&case, openssl_client(&case, &["-cipher", cipher]));
        assert!(printed(&text, "Server Temp Key:").is_none_or(|key| key.starts_with("DH")), "{text}");
        for side in [Side::Client, Side::Server] {
            ends.tls(side).assert_unknown("tls.group");
        }
    }
}
