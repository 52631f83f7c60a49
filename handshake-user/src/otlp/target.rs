//! What is exported, where to, and how: the settings, and OpenTelemetry's variables.

use std::{
    fmt::{self, Display},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use hyper::header::{HeaderName, HeaderValue};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsConnector;

use super::{attributes::Common, endpoint::Endpoint};
use crate::{bounded, cryptography::is_cpu_supported};

/// How long an attempt may take, unless a variable says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often metrics are exported, unless a variable says otherwise.
const INTERVAL: Duration = Duration::from_mins(1);
const INTERVAL_VARIABLE: &str = "OTEL_METRIC_EXPORT_INTERVAL";
/// Each export costs as much as a scrape.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// Largest file of certificates, bytes.
const MAX_FILE: u64 = 1 << 20;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Every connection, as a trace.
    Traces,
    /// The metrics that `/metrics` has.
    Metrics,
}

impl Signal {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Traces, Self::Metrics];

    /// Its name in settings, and in URLs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }

    /// What is exported by it, in words.
    #[must_use]
    pub const fn subject(self) -> &'static str {
        match self {
            Self::Traces => "connections",
            Self::Metrics => "metrics",
        }
    }

    /// What its requests consist of.
    pub(super) const fn items(self) -> &'static str {
        match self {
            Self::Traces => "spans",
            Self::Metrics => "data points",
        }
    }
}

/// The signals to export: each once, in the order of [`Signal::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signals(Vec<Signal>);

impl Signals {
    /// The signals.
    #[must_use]
    pub fn into_vec(self) -> Vec<Signal> {
        self.0
    }
}

impl From<Vec<Signal>> for Signals {
    fn from(wanted: Vec<Signal>) -> Self {
        Self(Signal::ALL.into_iter().filter(|signal| wanted.contains(signal)).collect())
    }
}

impl Display for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.0.iter().map(|signal| signal.as_str()).collect::<Vec<_>>().join(","))
    }
}

/// What is exported, and where to.
pub struct Targets {
    /// Where connections go. `None`: nowhere.
    pub traces: Option<Target>,
    /// Where metrics go. `None`: nowhere.
    pub metrics: Option<Target>,
    /// How often.
    pub interval: Duration,
}

impl Targets {
    /// What the settings and the variables say together.
    ///
    /// # Errors
    /// When one of the variables has no valid value, or a file of certificates cannot be read.
    pub fn new(
        endpoint: Option<&Endpoint>,
        signals: &[Signal],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let variable = |name: &str| {
            let value = variable(name).map(|value| value.trim().to_owned());
            value.filter(|value| !value.is_empty())
        };
        let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|is| is.eq_ignore_ascii_case("true"));
        let target = |signal: Signal, exporters| {
            let is_wanted = variable(exporters).map_or_else(
                || signals.contains(&signal),
                |list| list.split(',').any(|exporter| exporter.trim().eq_ignore_ascii_case("otlp")),
            );
            if is_wanted && !is_off { Target::new(signal, endpoint, variable) } else { Ok(None) }
        };
        let metrics = target(Signal::Metrics, "OTEL_METRICS_EXPORTER")?;
        let interval = variable(INTERVAL_VARIABLE).filter(|_| metrics.is_some());
        let interval = interval.map(|ms| milliseconds(&ms, SHORTEST_INTERVAL).context(INTERVAL_VARIABLE));
        Ok(Self {
            traces: target(Signal::Traces, "OTEL_TRACES_EXPORTER")?,
            metrics,
            interval: interval.transpose()?.unwrap_or(INTERVAL),
        })
    }

    /// Those that there are.
    pub fn each(&self) -> impl Iterator<Item = (Signal, &Target)> {
        let (traces, metrics) = (self.traces.iter(), self.metrics.iter());
        traces.map(|it| (Signal::Traces, it)).chain(metrics.map(|it| (Signal::Metrics, it)))
    }
}

/// Where a signal goes, and how.
pub struct Target {
    /// The URL of the requests.
    pub endpoint: Endpoint,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Of an attempt.
    pub(super) timeout: Duration,
    pub(super) compresses: bool,
    /// Where the URL begins with `https`.
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) common: Common,
}

impl Target {
    /// The setting takes precedence over the variables. `None`: there is no endpoint.
    fn new(
        signal: Signal,
        setting: Option<&Endpoint>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>> {
        let signal_name = signal.as_str().to_uppercase();
        let own = |name: &str| format!("OTEL_EXPORTER_OTLP_{signal_name}_{name}");
        let of_signal = |name: &str| {
            let names = [own(name), format!("OTEL_EXPORTER_OTLP_{name}")];
            names.into_iter().find_map(|name| variable(&name).map(|value| (name, value)))
        };
        let endpoint = match (setting, of_signal("ENDPOINT")) {
            (Some(setting), _) => setting.clone().of_signal(signal.as_str()),
            (None, None) => return Ok(None),
            (None, Some((name, url))) => {
                let endpoint: Endpoint = url.parse().with_context(|| name.clone())?;
                // The variable for a signal alone names the whole URL.
                if name == own("ENDPOINT") { endpoint } else { endpoint.of_signal(signal.as_str()) }
            }
        };
        if let Some((name, protocol)) = of_signal("PROTOCOL") {
            ensure!(
                protocol == "http/protobuf",
                "{name}: {protocol} is not spoken here, only http/protobuf (port 4318 of a collector)"
            );
        }
        if signal == Signal::Metrics {
            for (name, only) in [
                ("TEMPORALITY_PREFERENCE", "cumulative"),
                ("DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram"),
            ] {
                let asked = variable(&own(name)).unwrap_or_else(|| only.to_owned());
                ensure!(
                    asked.eq_ignore_ascii_case(only),
                    "{}: {asked} is not to be had here, only {only}",
                    own(name)
                );
            }
        }
        let headers = of_signal("HEADERS").map(|(name, list)| headers(&list).context(name)).transpose()?;
        let timeout = of_signal("TIMEOUT")
            .map(|(name, ms)| milliseconds(&ms, Duration::from_millis(1)).context(name))
            .transpose()?;
        let compression = of_signal("COMPRESSION");
        let compresses = match compression.as_ref().map(|(name, how)| (name, how.as_str())) {
            None | Some((_, "gzip")) => true,
            Some((_, "none")) => false,
            Some((name, how)) => bail!("{name}: {how} is neither gzip nor none"),
        };
        let tls = if endpoint.is_tls {
            let identity = of_signal("CLIENT_CERTIFICATE").zip(of_signal("CLIENT_KEY"));
            let connector = connector(of_signal("CERTIFICATE").as_ref(), identity.as_ref())?;
            Some((connector, server_name(&endpoint)?))
        } else {
            None
        };
        let mut attributes = match variable("OTEL_RESOURCE_ATTRIBUTES") {
            Some(list) => pairs(&list).context("OTEL_RESOURCE_ATTRIBUTES")?,
            None => Vec::new(),
        };
        let named = attributes.iter().position(|(key, _)| key == "service.name");
        let named = named.map(|at| attributes.remove(at).1);
        let service = variable("OTEL_SERVICE_NAME").or(named);
        Ok(Some(Self {
            endpoint,
            headers: headers.unwrap_or_default(),
            timeout: timeout.unwrap_or(TIMEOUT),
            compresses,
            tls,
            common: Common { service, attributes },
        }))
    }
}

fn milliseconds(text: &str, least: Duration) -> Result<Duration> {
    let time = Duration::from_millis(text.parse().context("not a whole number of milliseconds")?);
    ensure!(
        time >= least && time <= Duration::from_hours(1),
        "not between {} ms and an hour",
        least.as_millis()
    );
    Ok(time)
}

fn headers(list: &str) -> Result<Vec<(HeaderName, HeaderValue)>> {
    let headers = pairs(list)?.into_iter().map(|(name, value)| {
        let mut value = HeaderValue::from_str(&value).map_err(|_| anyhow!("{name}: no value of a header"))?;
        value.set_sensitive(true);
        Ok((name.parse().map_err(|_| anyhow!("{name}: no name of a header"))?, value))
    });
    headers.collect()
}

/// `key=value,key=value`, with `%XX` in values, as in W3C Baggage.
fn pairs(list: &str) -> Result<Vec<(String, String)>> {
    let pairs = list.split(',').filter(|pair| !pair.trim().is_empty()).map(|pair| {
        // The value may be a secret.
        let (key, value) = pair.split_once('=').context("not a list such as key=value,key=value")?;
        Ok((key.trim().to_owned(), decoded(value.trim()).context("not UTF-8, or % without two digits")?))
    });
    pairs.collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).ok()
}

fn server_name(endpoint: &Endpoint) -> Result<ServerName<'static>> {
    let name = ServerName::try_from(endpoint.host.clone());
    name.map_err(|_| anyhow!("{endpoint}: TLS cannot verify the name {}", endpoint.host))
}

/// A variable and the path that is its value.
type File = (String, String);

/// With the authorities of this file or else the system's, and the certificate and key of this end, if any.
fn connector(authorities: Option<&File>, identity: Option<&(File, File)>) -> Result<TlsConnector> {
    ensure!(
        is_cpu_supported(),
        "this processor lacks instructions that TLS needs here (x86-64: AES, ADX, AVX2): export over http to a \
         collector on this host"
    );
    let mut roots = RootCertStore::empty();
    if let Some(file) = authorities {
        for certificate in certificates(file)? {
            roots.add(certificate).with_context(|| file.0.clone())?;
        }
    } else {
        // A single damaged file of the system's is no reason to do without the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        ensure!(
            !roots.is_empty(),
            "no certificates of authorities on this system: install them (package ca-certificates), or name a \
             file by OTEL_EXPORTER_OTLP_CERTIFICATE"
        );
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls_graviola::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let read = read(key)?;
            let private = PrivateKeyDer::from_pem_slice(&read)
                .map_err(|error| anyhow!("{}: no private key in PEM: {error}", key.0))?;
            builder
                .with_client_auth_cert(certificates(chain)?, private)
                .with_context(|| format!("{} and {} do not go together", chain.0, key.0))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn read((variable, path): &File) -> Result<Vec<u8>> {
    bounded::read(Path::new(path), MAX_FILE).with_context(|| format!("{variable}: cannot read {path}"))
}

fn certificates(file: &File) -> Result<Vec<CertificateDer<'static>>> {
    let read = read(file)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    let chain = chain.map_err(|error| anyhow!("{}: {error}", file.0))?;
    ensure!(!chain.is_empty(), "{}: no certificate in PEM", file.0);
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(setting: Option<&str>, signals: &[Signal], variables: &[(&str, &str)]) -> Result<Targets> {
        let setting = setting.map(|url| url.parse::<Endpoint>().unwrap());
        Targets::new(setting.as_ref(), signals, |wanted| {
            variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
        })
    }

    fn target(setting: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Target>> {
        Ok(targets(setting, &[Signal::Traces], variables)?.traces)
    }

    fn url(setting: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        target(setting, variables).unwrap().map(|target| target.endpoint.to_string())
    }

    /// The URLs of traces and metrics.
    fn urls(signals: &[Signal], variables: &[(&str, &str)]) -> [Option<String>; 2] {
        let Targets { traces, metrics, .. } =
            targets(None, signals, &[&[ALL][..], variables].concat()).unwrap();
        [traces, metrics].map(|target| target.map(|target| target.endpoint.to_string()))
    }

    const ALL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318");
    const TRACES: (&str, &str) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:1/in");

    #[test]
    fn endpoint_is_the_setting_or_the_variable_for_traces_or_the_one_for_all() {
        assert_eq!(url(None, &[]), None);
        assert_eq!(url(None, &[ALL]).as_deref(), Some("http://all:4318/v1/traces"));
        assert_eq!(url(None, &[ALL, TRACES]).as_deref(), Some("http://traces:1/in"));
        let set = "http://set:4318";
        assert_eq!(url(Some(set), &[ALL, TRACES]).as_deref(), Some("http://set:4318/v1/traces"));
        assert_eq!(url(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(url(Some(set), &[ALL, off]), None);
        }
    }

    #[test]
    fn variables_take_precedence_in_what_is_exported() {
        let (traces, metrics) = ("http://all:4318/v1/traces", "http://all:4318/v1/metrics");
        let some = |url: &str| Some(url.to_owned());
        assert_eq!(urls(&[Signal::Traces], &[]), [some(traces), None]);
        assert_eq!(urls(&Signal::ALL, &[]), [some(traces), some(metrics)]);
        assert_eq!(urls(&[], &[]), [None, None]);
        let none = ("OTEL_TRACES_EXPORTER", "none");
        for list in ["otlp", "prometheus, OTLP"] {
            let asked = ("OTEL_METRICS_EXPORTER", list);
            assert_eq!(urls(&[Signal::Traces], &[asked, none]), [None, some(metrics)]);
        }
        for list in ["none", "prometheus"] {
            assert_eq!(urls(&Signal::ALL, &[("OTEL_METRICS_EXPORTER", list)]), [some(traces), None]);
        }
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics:1/in");
        assert_eq!(urls(&Signal::ALL, &[own]), [some(traces), some("http://metrics:1/in")]);
        assert_eq!(urls(&Signal::ALL, &[("OTEL_SDK_DISABLED", "true")]), [None, None]);
        let interval = ("OTEL_METRIC_EXPORT_INTERVAL", "1500");
        let every = |variables| targets(None, &Signal::ALL, variables).unwrap().interval.as_millis();
        assert_eq!([every(&[ALL]), every(&[ALL, interval])], [60_000, 1500]);
    }

    #[test]
    fn variables_say_how() {
        let variables = [
            ALL,
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc, x-tenant = a%3Db"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=edge,deployment.environment.name=a%2Cb"),
        ];
        let all = target(None, &variables).unwrap().unwrap();
        let headers = all.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        assert_eq!(headers.collect::<Vec<_>>(), [("authorization", "Basic abc"), ("x-tenant", "a=b")]);
        assert_eq!((all.timeout, all.compresses), (Duration::from_millis(2500), false));
        assert_eq!(all.common.service.as_deref(), Some("edge"));
        let environment = ("deployment.environment.name".to_owned(), "a,b".to_owned());
        assert_eq!(all.common.attributes, [environment]);

        let named = target(None, &[&variables[..], &[("OTEL_SERVICE_NAME", "name")]].concat());
        assert_eq!(named.unwrap().unwrap().common.service.as_deref(), Some("name"));
        let plain = target(None, &[ALL]).unwrap().unwrap();
        assert_eq!((plain.timeout, plain.compresses, plain.common), (TIMEOUT, true, Common::default()));
    }

    #[test]
    fn wrong_variable_is_named_and_its_secrets_are_not() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%0A"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%F"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "10"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "soon"),
        ] {
            let error = targets(None, &Signal::ALL, &[ALL, (name, value)]).err();
            let error = error.map(|error| format!("{error:#}")).unwrap();
            assert!(error.starts_with(name) && !error.contains("secret"), "{error}");
        }
        let missing = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca.pem");
        let error = target(Some("https://collector"), &[missing]).err().unwrap().to_string();
        assert_eq!(error, "OTEL_EXPORTER_OTLP_CERTIFICATE: cannot read /nonexistent/ca.pem");
    }
}
