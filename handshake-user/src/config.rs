//! The daemon's settings: flags win over the environment, the environment over the file, the file over the defaults.
//! What is parsed is valid: every value has a type that refuses what makes no sense.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::{
    bounded,
    cli::{MAX_CONNECTIONS, RING_KIB, Switch},
    kernel::probe::{Settings, TlsWire, plan::Attach},
};

/// Of the configuration, bytes.
const MAX_FILE: u64 = 1 << 20;

/// `handshake daemon`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  handshake daemon                                    http://127.0.0.1:9966/metrics
  handshake daemon --config /etc/handshake/handshake.toml
  handshake daemon --label process --label local_port --max-series 500
  HANDSHAKE_LISTEN=[::]:9966 handshake daemon         every address; there is no authentication

A flag wins over its environment variable, that over the file, the file over the default.")]
pub struct DaemonArgs {
    /// Settings in TOML; config/handshake.toml is the manual of its keys.
    #[arg(long, value_name = "FILE", env = "HANDSHAKE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The settings themselves.
    #[command(flatten)]
    pub options: Options,
}

/// Every setting, as flags, environment and file give it: what is absent is said elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Address and port of the HTTP server [default: 127.0.0.1:9966].
    #[arg(long, value_name = "ADDR:PORT", env = "HANDSHAKE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Upper bounds of the histogram buckets, seconds [default: 1-2-5 from 0.00001 to 100].
    #[arg(long, value_name = "SECONDS,…", env = "HANDSHAKE_BUCKETS")]
    pub buckets: Option<Buckets>,
    /// Histogram label to add; may be given more than once [default: none].
    #[arg(long = "label", value_enum, value_name = "LABEL", value_delimiter = ',', env = "HANDSHAKE_LABELS")]
    pub labels: Option<Vec<Label>>,
    /// Sets of added label values per metric; what is over it is counted under `other` [default: 200].
    #[arg(long, value_name = "N", env = "HANDSHAKE_MAX_SERIES")]
    pub max_series: Option<Bounded<1, 1_000_000>>,
    /// Prefix length of the label `remote_net`, IPv4 [default: 24].
    #[arg(long, value_name = "BITS", env = "HANDSHAKE_REMOTE_NET_IPV4")]
    pub remote_net_ipv4: Option<Bounded<0, 32>>,
    /// Prefix length of the label `remote_net`, IPv6 [default: 48].
    #[arg(long, value_name = "BITS", env = "HANDSHAKE_REMOTE_NET_IPV6")]
    pub remote_net_ipv6: Option<Bounded<0, 128>>,
    /// How to attach the probes [default: auto].
    #[arg(long, value_enum, value_name = "WAY", env = "HANDSHAKE_ATTACH", help_heading = "Probes")]
    pub attach: Option<AttachMode>,
    /// Room for records that were not read yet [default: 8192].
    #[arg(long, value_name = "KIB", env = "HANDSHAKE_RING_KIB", help_heading = "Probes")]
    pub ring_kib: Option<Bounded<4, 1_048_576>>,
    /// Connections followed at once [default: 262144].
    #[arg(long, value_name = "N", env = "HANDSHAKE_MAX_CONNECTIONS", help_heading = "Probes")]
    pub max_connections: Option<Bounded<1, { u32::MAX }>>,
    /// TLS handshakes to look at on the wire: on (all), off, or those on some ports, such as 443,8443 [default: on].
    #[arg(long, value_name = "on|off|PORTS", env = "HANDSHAKE_TLS_WIRE", help_heading = "Probes")]
    pub tls_wire: Option<TlsWire>,
    /// Probe the TLS libraries that the host's processes use [default: on].
    #[arg(long, value_enum, value_name = "ON|OFF", env = "HANDSHAKE_TLS_LIBRARIES", help_heading = "Probes")]
    pub tls_libraries: Option<Switch>,
}

/// A whole number within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Bounded<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> TryFrom<i64> for Bounded<MIN, MAX> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{number} is not between {MIN} and {MAX}")),
        }
    }
}

impl<const MIN: u32, const MAX: u32> FromStr for Bounded<MIN, MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<i64>().map_err(|_| "not a whole number".to_owned())?.try_into()
    }
}

/// Upper bounds of histogram buckets, seconds: positive, finite, ascending, at least one.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Vec<f64>")]
pub struct Buckets(Vec<f64>);

impl Default for Buckets {
    /// 10 µs, what loopback needs, to 100 s, where SYN retries end.
    fn default() -> Self {
        let mut bounds = Vec::new();
        for ten in ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1e0", "1e1"] {
            // Written out in decimal, so that the bounds read as such in `le`.
            for step in ["1", "2", "5"] {
                bounds.extend(ten.replacen('1', step, 1).parse::<f64>());
            }
        }
        bounds.push(100.0);
        Self(bounds)
    }
}

impl TryFrom<Vec<f64>> for Buckets {
    type Error = String;

    fn try_from(bounds: Vec<f64>) -> Result<Self, String> {
        let sound = !bounds.is_empty()
            && bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0)
            && bounds.is_sorted_by(|a, b| a < b);
        if sound {
            Ok(Self(bounds))
        } else {
            Err("buckets are seconds above 0, in ascending order".to_owned())
        }
    }
}

impl FromStr for Buckets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bounds: Result<Vec<f64>, _> = text.split(',').map(|bound| bound.trim().parse()).collect();
        bounds.map_err(|_| "buckets are seconds with commas between them".to_owned())?.try_into()
    }
}

/// A label that histograms have only on demand, because the number of its values is not bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Label {
    /// Name of the process.
    Process,
    /// A server's own port.
    LocalPort,
    /// The peer's network.
    RemoteNet,
    /// cgroup v2 path of the process.
    Cgroup,
    /// The server that the client named in its ClientHello.
    Sni,
}

impl Label {
    /// Every label, in the order in which metrics carry them.
    pub const ALL: &[Self] = &[Self::Process, Self::LocalPort, Self::RemoteNet, Self::Cgroup, Self::Sni];

    /// The label's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::LocalPort => "local_port",
            Self::RemoteNet => "remote_net",
            Self::Cgroup => "cgroup",
            Self::Sni => "sni",
        }
    }
}

/// [`Attach`], or whichever is the cheapest that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// The cheapest that works.
    Auto,
    /// BTF-typed raw tracepoints.
    #[value(alias = "tp_btf")]
    TpBtf,
    /// Perf tracepoints.
    Tracepoint,
}

/// The settings that hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the HTTP server listens.
    pub listen: SocketAddr,
    /// What the histograms look like.
    pub metrics: Metrics,
    /// How to load the kernel side.
    pub probes: Settings,
}

/// What the histograms look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Upper bounds, seconds.
    pub buckets: Vec<f64>,
    /// The labels on demand, each once, in their order.
    pub labels: Vec<Label>,
    /// Sets of their values per metric.
    pub max_series: usize,
    /// Prefix lengths of [`Label::RemoteNet`], IPv4 and IPv6.
    pub remote_net: (u8, u8),
}

impl DaemonArgs {
    /// Reads the file, if one is named, and settles every setting.
    ///
    /// # Errors
    /// When the file cannot be read or says something that makes no sense; the text names file, line and key.
    pub fn config(self) -> Result<Config> {
        let Self { config, options } = self;
        let file = match config {
            Some(path) => {
                let text = bounded::read_to_string(&path, MAX_FILE)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                parse(&text, &path)?
            }
            None => Options::default(),
        };
        Ok(options.or(file).settle())
    }
}

/// The settings of a daemon that is told nothing but what this file says.
pub(crate) fn settled(text: &str, path: &Path) -> Result<Config> {
    Ok(parse(text, path)?.settle())
}

/// Reads a configuration file; the error is one line: where, and what is wrong.
fn parse(text: &str, path: &Path) -> Result<Options> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let start = before.len() - before.rsplit('\n').next().unwrap_or_default().len();
        // A wrong value is told by itself; its key is what the line begins with.
        let key = text[start..].split('=').next().unwrap_or_default().trim();
        let what = error.message().replace('\n', " ");
        let named = if what.contains(key) || key.contains('\n') { String::new() } else { format!("{key}: ") };
        anyhow!("{}, line {line}: {named}{what}", path.display())
    })
}

impl Options {
    /// What is absent here comes from `other`.
    #[must_use]
    fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            buckets: self.buckets.or(other.buckets),
            labels: self.labels.or(other.labels),
            max_series: self.max_series.or(other.max_series),
            remote_net_ipv4: self.remote_net_ipv4.or(other.remote_net_ipv4),
            remote_net_ipv6: self.remote_net_ipv6.or(other.remote_net_ipv6),
            attach: self.attach.or(other.attach),
            ring_kib: self.ring_kib.or(other.ring_kib),
            max_connections: self.max_connections.or(other.max_connections),
            tls_wire: self.tls_wire.or(other.tls_wire),
            tls_libraries: self.tls_libraries.or(other.tls_libraries),
        }
    }

    /// What is still absent gets its default.
    #[must_use]
    fn settle(self) -> Config {
        let wanted = self.labels.unwrap_or_default();
        Config {
            listen: self.listen.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 9966).into()),
            metrics: Metrics {
                buckets: self.buckets.unwrap_or_default().0,
                labels: Label::ALL.iter().copied().filter(|label| wanted.contains(label)).collect(),
                max_series: self.max_series.map_or(200, |whole| whole.0 as usize),
                remote_net: (
                    self.remote_net_ipv4.map_or(24, |bits| u8::try_from(bits.0).unwrap_or(32)),
                    self.remote_net_ipv6.map_or(48, |bits| u8::try_from(bits.0).unwrap_or(128)),
                ),
            },
            probes: Settings {
                attach: match self.attach {
                    None | Some(AttachMode::Auto) => None,
                    Some(AttachMode::TpBtf) => Some(Attach::TpBtf),
                    Some(AttachMode::Tracepoint) => Some(Attach::Tracepoint),
                },
                ring_bytes: self.ring_kib.map_or(RING_KIB, |kib| kib.0).saturating_mul(1024),
                max_connections: self.max_connections.map_or(MAX_CONNECTIONS, |most| most.0),
                tls_wire: self.tls_wire.unwrap_or_default(),
                tls_libraries: self.tls_libraries != Some(Switch::Off),
            },
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Options::default().settle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Options> {
        parse(text, Path::new("handshake.toml"))
    }

    #[test]
    fn the_manual_names_every_key_with_its_default() {
        let text = include_str!("../../config/handshake.toml");
        let manual = file(text).unwrap();
        assert_eq!(manual.clone().settle(), Config::default());
        let Options {
            listen: Some(_),
            buckets: Some(_),
            labels: Some(_),
            max_series: Some(_),
            remote_net_ipv4: Some(_),
            remote_net_ipv6: Some(_),
            attach: Some(_),
            ring_kib: Some(_),
            max_connections: Some(_),
            tls_wire: Some(_),
            tls_libraries: Some(_),
        } = manual
        else {
            panic!("a key is missing in config/handshake.toml");
        };
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
            ("listen =", "line 1: ", ""),
        ] {
            let error = file(text).unwrap_err().to_string();
            assert!(error.starts_with("handshake.toml, ") && error.contains(place), "{text}: {error}");
            assert!(error.contains(what) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_to_say_something_wins() {
        let flags = Options { max_series: Some(Bounded(7)), ..Options::default() };
        let file =
            file("max_series = 8\nring_kib = 64\nlabels = [\"cgroup\", \"process\", \"cgroup\"]").unwrap();
        let config = flags.or(file).settle();
        assert_eq!(config.metrics.max_series, 7);
        assert_eq!(config.probes.ring_bytes, 65536);
        assert_eq!(config.metrics.labels, [Label::Process, Label::Cgroup]);
        assert_eq!(config.listen, Config::default().listen);
    }

    #[test]
    fn the_default_buckets_read_as_decimals_and_span_loopback_to_syn_retries() {
        let buckets = Buckets::default().0;
        assert_eq!((buckets.len(), buckets[0], buckets[1], buckets[21]), (22, 0.00001, 0.00002, 100.0));
        assert!(Buckets::try_from(buckets).is_ok());
    }

    #[test]
    fn flags_have_the_types_of_the_file() {
        assert_eq!("0.1, 1,10".parse(), Ok(Buckets(vec![0.1, 1.0, 10.0])));
        assert!("1,a".parse::<Buckets>().is_err());
        assert_eq!("32".parse(), Ok(Bounded::<0, 32>(32)));
        assert!("33".parse::<Bounded<0, 32>>().is_err());
    }
}
