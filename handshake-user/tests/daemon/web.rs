//! TLS, client certificates and passwords, by the file of Prometheus' exporters.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{
    exposition::Prometheus,
    hostile_clients::{TLS_KINDS, scrape_under_with},
    program::{Daemon, command},
};

const PASSWORD: &str = "correct horse: battery";

/// A folder with an authority, and certificates that it issues.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    pub(crate) fn new() -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        made.authority("ca");
        made.issue("server", "ca", "subjectAltName=IP:127.0.0.1");
        made.issue("client", "ca", "extendedKeyUsage=clientAuth");
        made
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}"));
    }

    fn issue(&self, name: &str, authority: &str, extension: &str) {
        let request = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}"
        );
        self.openssl(&format!("{request} -CA {authority}.pem -CAkey {authority}.key -addext basicConstraints=critical,CA:false -addext {extension}"));
    }

    fn openssl(&self, arguments: &str) {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes the file, and starts a daemon with it.
    fn daemon(&self, text: &str) -> Daemon {
        fs::write(self.path("web.yml"), text).unwrap();
        let file = self.path("web.yml");
        Daemon::spawn(&mut command(&["--listen", "127.0.0.1:0", "--web-config", file.to_str().unwrap()]))
    }

    /// A request by curl: the status, or 0 with what it said.
    fn curl(&self, daemon: &Daemon, arguments: &[&str]) -> (u16, String) {
        let mut curl = Command::new("curl");
        curl.args(["-sSi", "--max-time", "10", "-w", "\n%{http_code}"]).args(arguments);
        let output = curl
            .arg(format!("https://{}/metrics", daemon.address))
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let code = said.lines().rev().find_map(|line| line.trim().parse().ok());
        (if output.status.success() { code.unwrap() } else { 0 }, said)
    }
}

fn hash() -> String {
    bcrypt::hash(PASSWORD, 6).unwrap()
}

#[test]
fn clients_need_the_certificate_the_password_and_the_version_that_the_file_asks_for() {
    let made = Certificates::new();
    made.authority("stranger");
    let file = format!(
        "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  min_version: TLS13\nhttp_server_config:\n  headers:\n    X-Frame-Options: deny\nbasic_auth_users:\n  prometheus: {}\n",
        hash()
    );
    let daemon = made.daemon(&file);
    let right = ["--cacert", "ca.pem", "--cert", "client.pem", "--key", "client.key"];
    let user = format!("prometheus:{PASSWORD}");
    let with = |more: &[&str]| made.curl(&daemon, &[&right[..], more].concat());

    let (status, said) = with(&["-u", &user]);
    assert_eq!(status, 200, "{said}");
    assert!(said.contains("x-frame-options: deny") && said.contains("handshake_build_info"), "{said}");
    let (status, said) = with(&["-u", &user, "--compressed"]);
    assert!(
        status == 200 && said.contains("content-encoding: gzip") && said.contains("handshake_build_info"),
        "{said}"
    );

    for (credentials, expected) in [(None, 401), (Some("prometheus:wrong"), 401), (Some("root:x"), 401)] {
        let more: Vec<_> = credentials.iter().flat_map(|user| ["-u", user]).collect();
        let (status, said) = with(&more);
        assert_eq!(status, expected, "{credentials:?}: {said}");
        assert!(said.contains("www-authenticate: Basic") && !said.contains("handshake_build_info"), "{said}");
    }
    let without = |arguments: &[&str], what: &str| {
        let (status, said) = made.curl(&daemon, &[&["-u", user.as_str()], arguments].concat());
        assert!(status == 0 && said.contains(what), "{arguments:?}: {said}");
    };
    without(&["--cacert", "ca.pem"], "certificate required");
    without(&["--cacert", "ca.pem", "--cert", "stranger.pem", "--key", "stranger.key"], "alert");
    without(&["--cacert", "stranger.pem", "--cert", "client.pem", "--key", "client.key"], "certificate");
    without(&[&right[..], &["--tls-max", "1.2"]].concat(), "alert protocol version");
    // Without TLS there is nothing.
    let plain = Command::new("curl")
        .args(["-sS", "--max-time", "10"])
        .arg(format!("http://{}/metrics", daemon.address))
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&plain.stdout).contains("handshake_build_info"));

    assert_eq!(daemon.end(Signal::SIGTERM).0.code(), Some(0));
}

#[test]
fn certificate_is_optional_where_the_file_says_so_and_versions_are_as_wide() {
    let made = Certificates::new();
    made.authority("stranger");
    let daemon = made.daemon("tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n");
    for version in ["1.2", "1.3"] {
        assert_eq!(made.curl(&daemon, &["--cacert", "ca.pem", "--tls-max", version]).0, 200, "{version}");
    }
    let own = ["--cacert", "ca.pem", "--cert", "client.pem", "--key", "client.key"];
    assert_eq!(made.curl(&daemon, &own).0, 200);
    let foreign = ["--cacert", "ca.pem", "--cert", "stranger.pem", "--key", "stranger.key"];
    assert_eq!(made.curl(&daemon, &foreign).0, 0);
}

#[test]
fn files_are_read_anew_when_they_change_and_errors_change_nothing() {
    let made = Certificates::new();
    let tls = "tls_server_config: {cert_file: server.pem, key_file: server.key}\n";
    let daemon = made.daemon(tls);
    let soon = |arguments: &[&str], expected: u16| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (status, said) = made.curl(&daemon, arguments);
            if status == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{arguments:?}: {said}");
            thread::sleep(Duration::from_millis(300));
        }
    };
    soon(&["--cacert", "ca.pem"], 200);
    // Another authority: each client trusts one of the two.
    made.authority("next");
    made.issue("server", "next", "subjectAltName=IP:127.0.0.1");
    soon(&["--cacert", "next.pem"], 200);
    assert_eq!(made.curl(&daemon, &["--cacert", "ca.pem"]).0, 0);

    fs::write(made.path("web.yml"), format!("{tls}basic_auth_users: {{a: '{}'}}\n", hash())).unwrap();
    soon(&["--cacert", "next.pem"], 401);
    soon(&["--cacert", "next.pem", "-u", &format!("a:{PASSWORD}")], 200);

    // A key that does not belong to the certificate, and then a file that is none.
    made.authority("other");
    fs::copy(made.path("other.key"), made.path("server.key")).unwrap();
    thread::sleep(Duration::from_millis(1200));
    soon(&["--cacert", "next.pem", "-u", &format!("a:{PASSWORD}")], 200);
    assert!(daemon.said().contains("do not go together"), "{}", daemon.said());
    fs::write(made.path("web.yml"), "tls_server_confg: {}\n").unwrap();
    thread::sleep(Duration::from_millis(1200));
    soon(&["--cacert", "next.pem"], 401);
    assert!(daemon.said().contains("tls_server_confg"), "{}", daemon.said());
    // Nothing of that is repeated until the next change.
    let said = daemon.said().lines().count();
    thread::sleep(Duration::from_millis(2200));
    soon(&["--cacert", "next.pem"], 401);
    assert_eq!(daemon.said().lines().count(), said, "{}", daemon.said());

    // At the start, an error is an error; --check-config reads the file, too.
    let file = made.path("web.yml");
    for more in [&[][..], &["--check-config"]] {
        let (status, said) = crate::fails(&[&["--web-config", file.to_str().unwrap()], more].concat());
        assert!(status == 1 && said.contains("tls_server_confg") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn prometheus_scrapes_with_tls_and_a_password() {
    let made = Certificates::new();
    let daemon = made.daemon(&format!(
        "tls_server_config: {{cert_file: server.pem, key_file: server.key, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem}}\nbasic_auth_users: {{prometheus: '{}'}}\n",
        hash()
    ));
    let file = |name: &str| made.path(name).display().to_string();
    let settings = format!(
        "    scheme: https\n    tls_config: {{ca_file: {}, cert_file: {}, key_file: {}}}\n    basic_auth: {{username: prometheus, password: '{PASSWORD}'}}\n",
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    let prometheus =
        Prometheus::start(made.0.path(), &format!("{{targets: [\"{}\"]}}", daemon.address), &settings);
    prometheus.wait_for("up{job=\"handshake\"} == 1");
    prometheus.wait_for("handshake_build_info");
}

#[test]
fn thousand_hostile_clients_of_tls_do_not_delay_scrapes() {
    let made = Certificates::new();
    let daemon = made.daemon("tls_server_config: {cert_file: server.pem, key_file: server.key}\n");
    scrape_under_with(&daemon, Some(&made.path("ca.pem")), &TLS_KINDS, 1000, Duration::from_secs(8));
}

/// A client that trusts every server.
pub(crate) fn trusting() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let verifier = Arc::new(Trusting(provider));
    Arc::new(builder.unwrap().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
