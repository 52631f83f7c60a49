//! The daemon's configuration: flags take precedence over the environment, the environment over the file, the
//! file over the defaults.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use handshake_common::histograms::Bounds;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{
    bounded,
    otlp::{Endpoint, Sampling, Signal},
    recording::Limits,
    settings::{
        ExporterOptions, ExporterSettings, LogLevel, PageFor, ProbeOptions, ProbeSettings, RedactOptions,
        RedactSettings,
    },
};

pub use crate::{
    buckets::{Buckets, Purpose},
    settings::Label,
};

/// Largest configuration file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The settings in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the HTTP server listens.
    pub listen: SocketAddr,
    /// What the histograms look like.
    pub metrics: Metrics,
    /// How to load the kernel side.
    pub probes: ProbeSettings,
    /// The file with TLS settings and passwords of the server.
    pub web_config: Option<PathBuf>,
    /// Where records go. `None`: nowhere.
    pub records: Option<Records>,
    /// The collector to which connections and metrics are exported, if the configuration names one.
    pub otlp_endpoint: Option<Endpoint>,
    /// Which of the two.
    pub otlp_signals: Vec<Signal>,
    /// Which of the connections.
    pub otlp_sampling: Sampling,
    /// Who may see the page `/`.
    pub page: PageFor,
    /// What is redacted.
    pub redact: RedactSettings,
    /// What is logged.
    pub log_level: LogLevel,
    /// All of it by its keys, as in the file.
    in_force: toml::Table,
}

/// The keys that a running daemon can change without losing a count.
const CHANGEABLE: [&str; 5] = ["log_level", "max_series", "remote_net_ipv4", "remote_net_ipv6", "web_config"];

/// Records of all connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// The folder of their files.
    pub folder: PathBuf,
    /// What it may hold.
    pub limits: Limits,
    /// Only the last while, in memory, until asked for.
    pub look_back: Option<Duration>,
}

/// What the histograms look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Upper bounds.
    pub buckets: Buckets,
    /// The labels on demand, each once, in the order of [`Label::ALL`].
    pub labels: Vec<Label>,
    /// Sets of their values per metric.
    pub max_series: usize,
    /// Prefix lengths of [`Label::RemoteNet`], IPv4 and IPv6.
    pub remote_net: (u8, u8),
}

impl Metrics {
    /// The bounds of the histograms that the kernel side can fill; [`Bounds::NONE`] where records have to: it
    /// has no labels on demand, and no room for more bounds than `MAX_BOUNDS`.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        if !self.labels.is_empty() {
            return Bounds::NONE;
        }
        Bounds::new(&self.buckets.kernel_bounds()).unwrap_or(Bounds::NONE)
    }
}

impl Config {
    /// Settles every setting from flags and environment, the file if one is named, and the defaults.
    ///
    /// # Errors
    /// When the file cannot be read or is not valid, and when settings contradict each other; the text names
    /// file, line and key.
    pub fn new(
        path: Option<&Path>,
        exporter: ExporterOptions,
        redact: RedactOptions,
        probes: ProbeOptions,
    ) -> Result<Self> {
        let file = match path {
            Some(path) => {
                let text = bounded::read_to_string(path, MAX_FILE)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                parse(&text, path)?
            }
            None => Options::default(),
        };
        let config = Options { exporter, redact, probes }.or(file).settle();
        config.redact.leave(&config.metrics.labels)?;
        Ok(config)
    }
}

impl Config {
    /// Takes over what can be changed while the daemon runs. Returns the keys of what else is different.
    pub fn change_to(&mut self, new: &Self) -> Vec<String> {
        self.log_level = new.log_level;
        self.web_config.clone_from(&new.web_config);
        self.metrics.max_series = new.metrics.max_series;
        self.metrics.remote_net = new.metrics.remote_net;
        let mut waiting = Vec::new();
        for (key, value) in &new.in_force {
            if CHANGEABLE.contains(&key.as_str()) {
                self.in_force.insert(key.clone(), value.clone());
            } else if self.in_force.get(key) != Some(value) {
                waiting.push(key.clone());
            }
        }
        waiting
    }

    /// It as a file: each key with the value in force.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // A table of plain values can always be written.
        toml::to_string(&self.in_force).unwrap_or_default()
    }
}

impl Default for Config {
    fn default() -> Self {
        Options::default().settle()
    }
}

/// The configuration of a daemon that has a file with this text, and neither flags nor environment.
pub(crate) fn from_file(text: &str, path: &Path) -> Result<Config> {
    Ok(parse(text, path)?.settle())
}

/// Reads a configuration file; the error is one line: where, and what is wrong.
fn parse(text: &str, path: &Path) -> Result<Options> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let start = before.len() - before.rsplit('\n').next().unwrap_or_default().len();
        // The error of a value does not name its key, which is what the line begins with.
        let key = text[start..].split('=').next().unwrap_or_default().trim();
        let what = error.message().replace('\n', " ");
        let named = if what.contains(key) || key.contains('\n') { String::new() } else { format!("{key}: ") };
        anyhow!("{}, line {line}: {named}{what}", path.display())
    })
}

/// What one source says: flags and environment, or the file.
#[derive(Clone, Debug, Default, PartialEq)]
struct Options {
    exporter: ExporterOptions,
    redact: RedactOptions,
    probes: ProbeOptions,
}

impl Options {
    /// Takes from `other` what is absent here.
    fn or(self, other: Self) -> Self {
        Self {
            exporter: self.exporter.or(other.exporter),
            redact: self.redact.or(other.redact),
            probes: self.probes.or(other.probes),
        }
    }

    fn settle(self) -> Config {
        let (exporter, redact, probes) = (self.exporter.settle(), self.redact.settle(), self.probes.settle());
        // Plain values by their keys: each can be written.
        let mut in_force = toml::Table::try_from(&exporter).unwrap_or_default();
        in_force.extend(toml::Table::try_from(&redact).unwrap_or_default());
        in_force.extend(toml::Table::try_from(&probes).unwrap_or_default());
        let ExporterSettings {
            listen,
            buckets,
            labels,
            max_series,
            remote_net_ipv4,
            remote_net_ipv6,
            web_config,
            records,
            records_mib,
            records_age,
            look_back,
            otlp_endpoint,
            otlp_signals,
            otlp_sample,
            otlp_slow,
            page,
            log_level,
        } = exporter;
        let limits = Limits { bytes: u64::from(records_mib) << 20, age: records_age.duration() };
        let look_back = look_back.duration();
        let records = records.into_path().map(|folder| Records { folder, limits, look_back });
        // Both are bounded by the length of an address.
        let prefix = |bits: u32| u8::try_from(bits).unwrap_or(u8::MAX);
        Config {
            listen,
            metrics: Metrics {
                buckets,
                labels: labels.into_vec(),
                max_series: max_series as usize,
                remote_net: (prefix(remote_net_ipv4), prefix(remote_net_ipv6)),
            },
            probes,
            web_config: web_config.into_path(),
            records,
            otlp_endpoint: otlp_endpoint.into_endpoint(),
            otlp_signals: otlp_signals.into_vec(),
            otlp_sampling: Sampling { share: otlp_sample, slow: otlp_slow.duration() },
            page,
            redact,
            log_level,
            in_force,
        }
    }
}

/// All groups of settings are in one table, and serde's `flatten` would lose the lines of errors.
impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;

        impl<'de> Visitor<'de> for Table {
            type Value = Options;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Options, A::Error> {
                let mut options = Options::default();
                while let Some(Key(key)) = map.next_key()? {
                    if !options.exporter.read(&key, &mut map)? && !options.redact.read(&key, &mut map)? {
                        options.probes.read(&key, &mut map)?;
                    }
                }
                Ok(options)
            }
        }
        deserializer.deserialize_map(Table)
    }
}

/// The key of a setting.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        let known = [ExporterOptions::KEYS, RedactOptions::KEYS, ProbeOptions::KEYS].concat();
        if known.contains(&key.as_str()) {
            return Ok(Self(key));
        }
        Err(D::Error::custom(format!("unknown setting `{key}`; there are {}", known.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Attach;

    fn file(text: &str) -> Result<Options> {
        parse(text, Path::new("handshake.toml"))
    }

    #[test]
    fn the_shipped_file_has_every_key_with_its_default() {
        let text = include_str!("../../config/handshake.toml");
        assert_eq!(file(text).unwrap().settle(), Config::default());
        let table: toml::Table = text.parse().unwrap();
        for key in [ExporterOptions::KEYS, RedactOptions::KEYS, ProbeOptions::KEYS].concat() {
            assert!(table.contains_key(key), "{key} is missing in config/handshake.toml");
        }
    }

    #[test]
    fn configuration_in_force_is_a_valid_file_with_every_key() {
        let own = "buckets = [0.00001, 0.5]\nlabels = [\"sni\"]\ntls_wire = \"443,8443\"\nattach = \"tp_btf\"\nlog_level = \"info\"";
        for config in [Config::default(), file(own).unwrap().settle()] {
            let text = config.to_toml();
            assert_eq!(file(&text).unwrap().settle(), config, "{text}");
            for key in [ExporterOptions::KEYS, RedactOptions::KEYS, ProbeOptions::KEYS].concat() {
                assert!(config.in_force.contains_key(key), "{key}: {text}");
            }
        }
    }

    #[test]
    fn running_daemon_takes_over_what_costs_no_count() {
        let mut running = file("max_series = 7\nlabels = [\"sni\"]").unwrap().settle();
        let new = file(
            "max_series = 8\nremote_net_ipv4 = 16\nlog_level = \"debug\"\nring_kib = 64\nbuckets = [1.0]",
        )
        .unwrap();
        let new = new.settle();
        assert_eq!(running.change_to(&new), ["buckets", "labels", "ring_kib"]);
        assert_eq!((running.metrics.max_series, running.metrics.remote_net), (8, (16, 48)));
        assert_eq!(running.log_level, LogLevel::Debug);
        assert_eq!(running.metrics.labels, [Label::Sni]);
        // What is shown is what is in force.
        let shown = file(&running.to_toml()).unwrap().settle();
        assert_eq!(shown, running);
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_key() {
        for (text, place, what) in [
            ("listen = \"127.0.0.1:1\"\nlisen = 1\n", "line 2: ", "`lisen`"),
            ("# a\n\nring_kib = 3", "line 3: ", "ring_kib: 3 is not between 4 and 1048576"),
            ("max_series = -1", "line 1: ", "max_series: -1 is not between"),
            ("remote_net_ipv4 = 33", "line 1: ", "remote_net_ipv4: "),
            ("listen = 9966", "line 1: ", "listen: "),
            ("labels = [\"pid\"]", "line 1: ", "`pid`"),
            ("\nbuckets = [1.0, 0.5]", "line 2: ", "ascending"),
            ("buckets = []", "line 1: ", "ascending"),
            ("buckets = \"some\"", "line 1: ", "buckets are \"default\""),
            ("\nattach = \"magic\"", "line 2: ", "`magic`"),
            ("listen =", "line 1: ", ""),
        ] {
            let error = file(text).unwrap_err().to_string();
            assert!(error.starts_with("handshake.toml, ") && error.contains(place), "{text}: {error}");
            assert!(error.contains(what) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn flags_take_precedence_over_the_file_and_the_file_over_defaults() {
        let flags = file("max_series = 7").unwrap();
        let file =
            file("max_series = 8\nring_kib = 64\nlabels = [\"cgroup\", \"process\", \"cgroup\"]").unwrap();
        let config = flags.or(file).settle();
        assert_eq!(config.metrics.max_series, 7);
        assert_eq!(config.probes.ring_kib, 64);
        assert_eq!(config.metrics.labels, [Label::Process, Label::Cgroup]);
        assert_eq!(config.listen, Config::default().listen);
        assert_eq!(config.probes.attach, Attach::Auto);
    }
}
