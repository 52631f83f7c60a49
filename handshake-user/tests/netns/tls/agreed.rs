//! What the two ends agreed on besides version and cipher suite, compared with what the programs print.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use tempfile::TempDir;

use super::{
    certificate::{Certificate, NAME, not_after},
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

/// A certificate of its own in a folder.
struct Made {
    _folder: TempDir,
    key: PathBuf,
    chain: PathBuf,
}

/// Makes a certificate of 9 days with this kind of key.
#[track_caller]
fn certificate(arguments: &[&str]) -> Made {
    let folder = TempDir::new().unwrap();
    let [key, chain] = ["key", "chain"].map(|name| folder.path().join(name));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-subj", "/C=XX/O=An organisation/CN=example.org", "-days", "9"]);
    let made = command.args(arguments).arg("-keyout").arg(&key).arg("-out").arg(&chain).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    Made { _folder: folder, key, chain }
}

#[test]
fn signature_and_certificate_before_tls_1_3_are_those_which_openssl_prints() {
    let rsa = certificate(&["-newkey", "rsa:3072"]);
    let p384 = certificate(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha384"]);
    let ed25519 = certificate(&["-newkey", "ed25519"]);
    let of_rsa = ("rsa", Some(3072), None, "sha256WithRSAEncryption");
    let of_p384 = ("ecdsa", None, Some("secp384r1"), "ecdsa-with-SHA384");
    let of_ed25519 = ("ed25519", None, None, "id-Ed25519");
    let pss = &["-sigalgs", "rsa_pss_rsae_sha384"][..];
    for (made, version, arguments, printed_as, signature, facts) in [
        (
            &rsa,
            "1.2",
            &["-sigalgs", "RSA+SHA512"][..],
            Some(["SHA512", "RSA"]),
            Some("rsa_pkcs1_sha512"),
            of_rsa,
        ),
        (&rsa, "1.2", pss, Some(["SHA384", "RSA-PSS"]), Some("rsa_pss_rsae_sha384"), of_rsa),
        // Nothing is signed.
        (&rsa, "1.2", &["-cipher", "AES128-SHA256"], None, None, of_rsa),
        // The versions before have one signature for each type of key, which no message names.
        (&rsa, "1.1", &["-cipher", "ALL:@SECLEVEL=0"], None, None, of_rsa),
        (
            &p384,
            "1.2",
            &["-sigalgs", "ECDSA+SHA512"],
            Some(["SHA512", "ECDSA"]),
            Some("ecdsa_secp521r1_sha512"),
            of_p384,
        ),
        (&ed25519, "1.2", &[], None, Some("ed25519"), of_ed25519),
        (&ed25519, "1.3", &[], None, None, of_ed25519),
    ] {
        let case = Case::new();
        let address = server_address(&case.bed);
        let mut command = case.bed.command(Side::Server, "openssl");
        command.args(["s_server", "-quiet", "-www", "-cipher", "ALL:@SECLEVEL=0", "-accept"]);
        command.arg(address.to_string()).arg(format!("-tls{}", version.replace('.', "_")));
        command.arg("-key").arg(&made.key).arg("-cert").arg(&made.chain);
        let _server = Running::start(&case.bed, address, command);
        let (text, ends) = connect(&case, openssl_client(&case, arguments));
        if let Some([digest, algorithm]) = printed_as {
            assert_eq!(printed(&text, "Peer signing digest:"), Some(digest), "{text}");
            assert_eq!(printed(&text, "Peer signature type:"), Some(algorithm), "{text}");
        }
        for side in [Side::Client, Side::Server] {
            let tls = ends.tls(side);
            tls.assert_is("tls.version", version);
            match signature {
                Some(signature) => tls.assert_is("tls.signature", signature),
                None => tls.assert_unknown("tls.signature"),
            }
            if version == "1.3" {
                tls.assert_unknown("tls.certificate");
                continue;
            }
            let (kind, bits, curve, signed) = facts;
            tls.assert_is("tls.certificate.not_after", &not_after(&made.chain));
            tls.assert_is("tls.certificate.key_type", kind);
            assert_eq!(tls.number("tls.certificate.key_bits"), bits, "{tls}");
            assert_eq!(tls.text("tls.certificate.curve"), curve, "{tls}");
            tls.assert_is("tls.certificate.signature", signed);
        }
    }
}
