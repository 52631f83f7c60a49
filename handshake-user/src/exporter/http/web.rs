//! TLS, passwords and headers of the server, from the file that the exporters of Prometheus take as
//! `--web.config.file` (the keys of its exporter-toolkit). It is read anew when it, or a file that it names,
//! has changed; if that fails, what was in force stays.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hyper::header::{HeaderName, HeaderValue};
use rustls::{
    RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use serde::Deserialize;
use tokio_rustls::TlsAcceptor;

use super::auth::Users;
use crate::{bounded, cryptography::is_cpu_supported, untrusted::say};

/// How often the files are looked at while clients connect.
const PACE: Duration = Duration::from_secs(1);
/// Largest of the files, bytes: a bundle of all public authorities has a quarter of it.
const MAX_FILE: u64 = 1 << 20;
/// The headers that may be set.
const HEADERS: [&str; 5] = [
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
    "Content-Security-Policy",
];

/// What the file says, kept up to date.
#[derive(Default)]
pub struct Web(Mutex<State>);

#[derive(Default)]
struct State {
    file: Option<PathBuf>,
    settings: Arc<Settings>,
    /// The files that the settings came from.
    seen: Vec<(PathBuf, Option<Stamp>)>,
    looked: Option<Instant>,
}

/// By what a change of a file is noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What one version of the file says.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) users: Option<Arc<Users>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Web {
    /// Reads the file, if one is named.
    ///
    /// # Errors
    /// When it, or a file that it names, cannot be read or is not valid.
    pub fn new(file: Option<&Path>) -> Result<Self> {
        let web = Self::default();
        web.reload(file)?;
        Ok(web)
    }

    /// Reads this file from now on, and at once.
    ///
    /// # Errors
    /// When it is not valid; what was in force stays.
    pub fn reload(&self, file: Option<&Path>) -> Result<()> {
        let mut state = self.lock();
        let (settings, seen) = file.map(read).transpose()?.unwrap_or_default();
        let file = file.map(Path::to_owned);
        *state = State { file, settings: Arc::new(settings), seen, looked: Some(Instant::now()) };
        Ok(())
    }

    /// Whether connections begin with a TLS handshake.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.lock().settings.tls.is_some()
    }

    /// What is in force now.
    pub(super) fn settings(&self) -> Arc<Settings> {
        let mut state = self.lock();
        if state.file.is_some() && state.looked.is_none_or(|looked| looked.elapsed() >= PACE) {
            state.follow();
        }
        Arc::clone(&state.settings)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reads the files anew if one of them has changed.
    fn follow(&mut self) {
        self.looked = Some(Instant::now());
        let Some(file) = &self.file else { return };
        let changed = self.seen.iter().any(|(path, stamp)| stamp_of(path) != *stamp);
        if !changed {
            return;
        }
        match read(file) {
            Ok((settings, seen)) => {
                say(format_args!("handshake: {} has changed, and is in force", file.display()));
                (self.settings, self.seen) = (Arc::new(settings), seen);
            }
            Err(error) => {
                say(format_args!("handshake: what was in force of the web configuration stays: {error:#}"));
                // The next change is the next attempt.
                for (path, stamp) in &mut self.seen {
                    *stamp = stamp_of(path);
                }
            }
        }
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let data = fs::metadata(path).ok()?;
    let modified = (data.mtime(), data.mtime_nsec());
    Some(Stamp { device: data.dev(), inode: data.ino(), size: data.size(), modified })
}

type Seen = Vec<(PathBuf, Option<Stamp>)>;

fn read(path: &Path) -> Result<(Settings, Seen)> {
    // The stamps first: what is written meanwhile is then a change.
    let mut seen = vec![(path.to_owned(), stamp_of(path))];
    let named = || format!("web configuration {}", path.display());
    let text =
        bounded::read_to_string(path, MAX_FILE).with_context(|| format!("cannot read the {}", named()))?;
    let file: Option<File> = serde_saphyr::from_str(&text)
        .map_err(|error| anyhow!("{}", error.to_string().lines().next().unwrap_or_default().to_owned()))
        .with_context(named)?;
    let File { tls_server_config, http_server_config, basic_auth_users } = file.unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut load = |name: &str, file: &Path| -> Result<Vec<u8>> {
        let path = folder.join(file);
        seen.push((path.clone(), stamp_of(&path)));
        let bytes = bounded::read(&path, MAX_FILE);
        bytes.with_context(|| format!("{}: cannot read {name} {}", named(), path.display()))
    };
    let tls = tls_server_config
        .map(|tls| tls.server_config(&mut load))
        .transpose()
        .with_context(named)?
        .map(|config| TlsAcceptor::from(Arc::new(config)));
    let users = basic_auth_users.filter(|users| !users.is_empty());
    let users = users.map(Users::new).transpose().with_context(named)?.map(Arc::new);
    let headers = http_server_config.unwrap_or_default().headers().with_context(named)?;
    Ok((Settings { tls, users, headers }, seen))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tls_server_config: Option<Tls>,
    http_server_config: Option<Http>,
    basic_auth_users: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    /// Accepted, because files have it: this server speaks HTTP/1.1 alone.
    #[serde(rename = "http2")]
    _http2: Option<bool>,
    headers: Option<BTreeMap<String, String>>,
}

impl Http {
    fn headers(self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let headers = self.headers.unwrap_or_default().into_iter().map(|(name, value)| {
            ensure!(
                HEADERS.iter().any(|known| known.eq_ignore_ascii_case(&name)),
                "http_server_config.headers: {name} is none of {}",
                HEADERS.join(", ")
            );
            let value = HeaderValue::from_str(&value);
            Ok((name.parse()?, value.with_context(|| format!("http_server_config.headers: {name}"))?))
        });
        headers.collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert_file: PathBuf,
    key_file: PathBuf,
    client_auth_type: Option<ClientAuth>,
    client_ca_file: Option<PathBuf>,
    min_version: Option<TlsVersion>,
    max_version: Option<TlsVersion>,
    cipher_suites: Option<Vec<String>>,
    curve_preferences: Option<Vec<String>>,
    /// Accepted, because files have it: the order is always the server's.
    #[serde(rename = "prefer_server_cipher_suites")]
    _prefer_server_cipher_suites: Option<bool>,
}

/// Go's names. A certificate that is asked for and not verified would protect nothing, so the two types that
/// do that are refused.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum ClientAuth {
    #[default]
    #[serde(rename = "NoClientCert", alias = "")]
    None,
    #[serde(rename = "VerifyClientCertIfGiven")]
    IfGiven,
    #[serde(rename = "RequireAndVerifyClientCert")]
    Required,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum TlsVersion {
    Tls10,
    Tls11,
    Tls12,
    Tls13,
}

impl Tls {
    fn server_config(&self, load: &mut impl FnMut(&str, &Path) -> Result<Vec<u8>>) -> Result<ServerConfig> {
        ensure!(
            is_cpu_supported(),
            "tls_server_config: this processor lacks instructions that TLS needs here (x86-64: AES, ADX, AVX2)"
        );
        let provider = Arc::new(self.provider()?);
        let chain = certificates("cert_file", &load("cert_file", &self.cert_file)?)?;
        let key = PrivateKeyDer::from_pem_slice(&load("key_file", &self.key_file)?)
            .map_err(|error| anyhow!("tls_server_config.key_file: no private key in PEM: {error}"))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.versions()?)
            .context("tls_server_config: the versions and cipher_suites leave nothing to offer")?;
        let builder = match (self.client_auth_type.unwrap_or_default(), &self.client_ca_file) {
            (ClientAuth::None, None) => builder.with_no_client_auth(),
            (ClientAuth::None, Some(_)) => {
                bail!("tls_server_config: client_ca_file has no effect without client_auth_type")
            }
            (_, None) => bail!("tls_server_config: client_auth_type needs a client_ca_file"),
            (auth, Some(file)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("client_ca_file", &load("client_ca_file", file)?)? {
                    roots.add(certificate).context("tls_server_config.client_ca_file")?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier =
                    if auth == ClientAuth::IfGiven { verifier.allow_unauthenticated() } else { verifier };
                builder
                    .with_client_cert_verifier(verifier.build().context("tls_server_config.client_ca_file")?)
            }
        };
        let config = builder.with_single_cert(chain, key);
        let mut config = config.context("tls_server_config: cert_file and key_file do not go together")?;
        // Prometheus keeps its connection, so nothing is resumed, and nothing is kept for clients that leave.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>> {
        let (min, max) =
            (self.min_version.unwrap_or(TlsVersion::Tls12), self.max_version.unwrap_or(TlsVersion::Tls13));
        let offered = [(TlsVersion::Tls12, &TLS12), (TlsVersion::Tls13, &TLS13)];
        let within = offered.into_iter().filter(|(version, _)| (min..=max).contains(version));
        let versions: Vec<_> = within.map(|(_, version)| version).collect();
        ensure!(
            !versions.is_empty(),
            "tls_server_config: TLS12 and TLS13 are offered, none of them is between min_version and max_version"
        );
        Ok(versions)
    }

    /// The suites of TLS 1.2 and the groups that are asked for. Those of TLS 1.3 are always on, as in Go.
    fn provider(&self) -> Result<CryptoProvider> {
        let mut provider = rustls_graviola::default_provider();
        let name =
            |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1);
        if let Some(wanted) = &self.cipher_suites {
            let known: Vec<_> = provider.cipher_suites.iter().map(name).collect();
            let unknown = wanted.iter().find(|wanted| !known.contains(wanted));
            if let Some(unknown) = unknown {
                bail!("tls_server_config.cipher_suites: {unknown} is none of {}", known.join(", "));
            }
            provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted.contains(&name(suite)));
        }
        if let Some(wanted) = &self.curve_preferences {
            let mut groups = Vec::new();
            for wanted in wanted {
                let Some((_, name)) = CURVES.iter().find(|(curve, _)| curve == wanted) else {
                    let known = CURVES.map(|(curve, _)| curve).join(", ");
                    bail!("tls_server_config.curve_preferences: {wanted} is none of {known}");
                };
                groups.extend(provider.kx_groups.iter().filter(|group| group.name() == *name));
            }
            ensure!(!groups.is_empty(), "tls_server_config.curve_preferences: none of them is offered");
            provider.kx_groups = groups;
        }
        Ok(provider)
    }
}

/// Go's names of the groups.
const CURVES: [(&str, rustls::NamedGroup); 4] = [
    ("X25519MLKEM768", rustls::NamedGroup::X25519MLKEM768),
    ("X25519", rustls::NamedGroup::X25519),
    ("CurveP256", rustls::NamedGroup::secp256r1),
    ("CurveP384", rustls::NamedGroup::secp384r1),
];

fn certificates(name: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| anyhow!("tls_server_config.{name}: {error}"))?;
    ensure!(!chain.is_empty(), "tls_server_config.{name}: no certificate in PEM");
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.yml");
        fs::write(&file, text).unwrap();
        format!("{:#}", read(&file).map(|_| ()).unwrap_err())
    }

    #[test]
    fn errors_say_where_and_what() {
        for (text, what) in [
            ("tls_server_config: {cert_file: a, key_file: b, cret: 1}", "cret"),
            ("tls_sever_config: {}", "tls_sever_config"),
            ("tls_server_config: {cert_file: a}", "key_file"),
            ("tls_server_config: {cert_file: a, key_file: b}", "cannot read cert_file"),
            ("tls_server_config: {cert_file: web.yml, key_file: b}", "no certificate in PEM"),
            (
                "tls_server_config: {cert_file: a, key_file: b, client_auth_type: RequireAnyClientCert}",
                "RequireAnyClientCert",
            ),
            ("tls_server_config: {cert_file: a, key_file: b, min_version: SSL30}", "SSL30"),
            ("tls_server_config: {cert_file: a, key_file: b, cipher_suites: [RC4]}", "RC4 is none of TLS_"),
            (
                "tls_server_config: {cert_file: a, key_file: b, curve_preferences: [P-521]}",
                "P-521 is none of",
            ),
            (
                "tls_server_config: {cert_file: a, key_file: b, client_allowed_sans: [a]}",
                "client_allowed_sans",
            ),
            ("basic_auth_users: {prometheus: secret}", "prometheus: not a bcrypt hash"),
            ("basic_auth_users: [a]", "line 1 column 19"),
            ("http_server_config: {headers: {Server: a}}", "Server is none of"),
            ("http_server_config: {headers: {X-Frame-Options: \"a\\nb\"}}", "X-Frame-Options"),
            ("\t{", ""),
            ("a: &a [*a, *a]", ""),
        ] {
            let error = error(text);
            assert!(
                error.contains("web.yml") && error.contains(what) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn empty_file_asks_for_nothing() {
        for text in [
            "",
            "# nothing\n",
            "{}",
            "tls_server_config:\nbasic_auth_users:\n",
            "http_server_config: {http2: true}",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("web.yml");
            fs::write(&file, text).unwrap();
            let (settings, seen) = read(&file).unwrap();
            assert!(
                settings.tls.is_none() && settings.users.is_none() && settings.headers.is_empty(),
                "{text}"
            );
            assert_eq!(seen.len(), 1);
        }
    }
}
