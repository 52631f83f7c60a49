//! Every setting, defined once: its flag, environment variable, key in the configuration file, default and
//! help text.
//!
//! Every type here refuses values that make no sense, so a setting that was parsed is valid.

use std::{
    convert::Infallible,
    fmt::{self, Display},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum, builder::PossibleValue};
use handshake_common::tls::wire::raw::MAX_PORTS;
use serde::{Deserialize, Serialize, Serializer, de::MapAccess};
use thiserror::Error;

use crate::{
    buckets::Buckets,
    otlp::{OptionalEndpoint, Share, Signal, Signals},
    redaction::Redaction,
};

/// Defines a group of settings. Each has its help text, how clap reads it, its name (which is also its key in
/// the configuration file), its type, its default, and the type that parses it.
///
/// Two structs come out: one of what a source (flags and environment, or the file) says, in which a setting
/// may be absent, and one of the settings in force.
macro_rules! settings {
    (
        $(#[$options_meta:meta])* $Options:ident,
        $(#[$settings_meta:meta])* $Settings:ident {
            $(
                $(#[doc = $help:literal])+
                #[arg($($arg:tt)+)]
                $name:ident: $Value:ty = $default:expr, parsed as $Parsed:ty;
            )+
        }
    ) => {
        $(#[$options_meta])*
        #[derive(Clone, Debug, Default, PartialEq, Args)]
        pub struct $Options {
            $(
                $(#[doc = $help])+
                #[arg($($arg)+, help = help(concat!($($help),+), &<$Value>::from($default)))]
                pub $name: Option<$Parsed>,
            )+
        }

        $(#[$settings_meta])*
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct $Settings {
            $($(#[doc = $help])+ pub $name: $Value,)+
        }

        impl $Options {
            /// The keys of these settings in the configuration file.
            pub const KEYS: &[&str] = &[$(stringify!($name)),+];

            /// Takes from `other` what is absent here.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self { $($name: self.$name.or(other.$name)),+ }
            }

            /// Gives every setting that is still absent its default.
            #[must_use]
            pub fn settle(self) -> $Settings {
                $Settings { $($name: self.$name.map_or_else(|| $default.into(), Into::into)),+ }
            }

            /// Reads the value of a key from the configuration file. Returns false, having read nothing, if
            /// the key is not one of these settings.
            pub(crate) fn read<'de, A: MapAccess<'de>>(
                &mut self,
                key: &str,
                values: &mut A,
            ) -> Result<bool, A::Error> {
                match key {
                    $(stringify!($name) => self.$name = Some(values.next_value()?),)+
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }

        impl Default for $Settings {
            fn default() -> Self {
                $Options::default().settle()
            }
        }
    };
}

/// The help text of a setting: its doc comment without the full stop, and its default.
fn help(text: &str, default: &impl Display) -> String {
    format!("{} [default: {default}]", text.trim().trim_end_matches('.'))
}

settings! {
    /// What one source says of how to load the kernel side; the same for every command that does.
    ProbeOptions,
    /// How to load the kernel side.
    ProbeSettings {
        /// How to attach the probes; auto is the cheapest mode that the kernel allows.
        #[arg(long, value_enum, value_name = "MODE", env = "HANDSHAKE_ATTACH", help_heading = "Probes")]
        attach: Attach = Attach::Auto, parsed as Attach;

        /// Size of the buffer for records that user space has not read yet.
        #[arg(long, value_name = "KIB", env = "HANDSHAKE_RING_KIB", help_heading = "Probes")]
        ring_kib: u32 = 8192_u32, parsed as Bounded<4, 1_048_576>;

        /// Connections followed at once; each takes about 250 bytes of kernel memory.
        #[arg(long, value_name = "N", env = "HANDSHAKE_MAX_CONNECTIONS", help_heading = "Probes")]
        max_connections: u32 = 262_144_u32, parsed as Bounded<1, { u32::MAX }>;

        /// TLS handshakes to observe on the wire, whatever the library: on (all), off, or those on some
        /// ports, such as 443,8443.
        #[arg(long, value_name = "on|off|PORTS", env = "HANDSHAKE_TLS_WIRE", help_heading = "Probes")]
        tls_wire: TlsWire = TlsWire::On, parsed as TlsWire;

        /// Probe the TLS libraries that the host's processes use.
        #[arg(long, value_enum, value_name = "ON|OFF", env = "HANDSHAKE_TLS_LIBRARIES", help_heading = "Probes")]
        tls_libraries: Switch = Switch::On, parsed as Switch;
    }
}

settings! {
    /// What one source says of the daemon's server and metrics.
    ExporterOptions,
    /// The daemon's server and metrics.
    ExporterSettings {
        /// Address and port of the HTTP server.
        #[arg(long, value_name = "ADDR:PORT", env = "HANDSHAKE_LISTEN")]
        listen: SocketAddr = (Ipv4Addr::LOCALHOST, 9966), parsed as SocketAddr;

        /// Upper bounds of the buckets of all histograms, seconds.
        #[arg(long, value_name = "SECONDS,…", env = "HANDSHAKE_BUCKETS")]
        buckets: Buckets = Buckets::default(), parsed as Buckets;

        /// Histogram label to add; repeatable.
        #[arg(long = "label", value_enum, value_name = "LABEL", value_delimiter = ',', env = "HANDSHAKE_LABELS")]
        labels: Labels = Vec::new(), parsed as Vec<Label>;

        /// Sets of added label values per metric; further ones are counted under `other`.
        #[arg(long, value_name = "N", env = "HANDSHAKE_MAX_SERIES")]
        max_series: u32 = 200_u32, parsed as Bounded<1, 1_000_000>;

        /// Prefix length of the label `remote_net`, IPv4.
        #[arg(long, value_name = "BITS", env = "HANDSHAKE_REMOTE_NET_IPV4")]
        remote_net_ipv4: u32 = 24_u32, parsed as Bounded<0, 32>;

        /// Prefix length of the label `remote_net`, IPv6.
        #[arg(long, value_name = "BITS", env = "HANDSHAKE_REMOTE_NET_IPV6")]
        remote_net_ipv6: u32 = 48_u32, parsed as Bounded<0, 128>;

        /// TLS and passwords of the HTTP server: the web configuration file of Prometheus' exporters,
        /// read anew when it changes.
        #[arg(long, value_name = "FILE", env = "HANDSHAKE_WEB_CONFIG")]
        web_config: OptionalPath = OptionalPath::default(), parsed as OptionalPath;

        /// Folder for records of all connections, compressed; none: no records are written.
        #[arg(long, value_name = "FOLDER", env = "HANDSHAKE_RECORDS")]
        records: OptionalPath = OptionalPath::default(), parsed as OptionalPath;

        /// Size of all files of records; the oldest are deleted.
        #[arg(long, value_name = "MIB", env = "HANDSHAKE_RECORDS_MIB")]
        records_mib: u32 = 1024_u32, parsed as Bounded<1, 16_777_216>;

        /// Age at which files of records are deleted, or none.
        #[arg(long, value_name = "TIME", env = "HANDSHAKE_RECORDS_AGE")]
        records_age: Period = Period::DAYS_7, parsed as Period;

        /// Keep only the records of the last while in memory, such as 15m, and write them to a file at
        /// SIGUSR1.
        #[arg(long, value_name = "TIME", env = "HANDSHAKE_LOOK_BACK")]
        look_back: Period = Period::NONE, parsed as Period;

        /// Collector of OpenTelemetry to which every connection is exported as a trace, such as
        /// `http://127.0.0.1:4318`; `OTEL_EXPORTER_OTLP_ENDPOINT` and the like are read as well.
        #[arg(long, value_name = "URL", env = "HANDSHAKE_OTLP_ENDPOINT")]
        otlp_endpoint: OptionalEndpoint = OptionalEndpoint::default(), parsed as OptionalEndpoint;

        /// What is exported to it: traces (connections), metrics (those of /metrics), or both; repeatable.
        #[arg(
            long = "otlp-signal",
            value_enum,
            value_name = "traces|metrics",
            value_delimiter = ',',
            env = "HANDSHAKE_OTLP_SIGNALS"
        )]
        otlp_signals: Signals = vec![Signal::Traces], parsed as Vec<Signal>;

        /// Share of the connections that are exported, 0 to 1; those that failed or were slow always are.
        #[arg(long, value_name = "SHARE", env = "HANDSHAKE_OTLP_SAMPLE")]
        otlp_sample: Share = Share::ALL, parsed as Share;

        /// Opening, TLS handshake or setup that takes longer is slow, or none.
        #[arg(long, value_name = "TIME", env = "HANDSHAKE_OTLP_SLOW")]
        otlp_slow: Period = Period::SECOND, parsed as Period;

        /// Who may see the page `/`, which has names and addresses: local (this host) or all (whoever reaches
        /// the server).
        #[arg(long, value_enum, value_name = "local|all", env = "HANDSHAKE_PAGE")]
        page: PageFor = PageFor::Local, parsed as PageFor;

        /// What is logged to standard error; -v and `RUST_LOG` override it.
        #[arg(long, value_enum, value_name = "LEVEL", env = "HANDSHAKE_LOG_LEVEL")]
        log_level: LogLevel = LogLevel::Warn, parsed as LogLevel;
    }
}

settings! {
    /// What one source says of what is redacted; the same for every command that shows or writes records.
    RedactOptions,
    /// What is redacted.
    RedactSettings {
        /// What to redact: addr, sni, comm, cgroup (with unit, container and pod), host, each by hash or
        /// drop, addr also by prefix, such as addr=prefix,sni=hash.
        #[arg(long, value_name = "FIELD=WAY,…", env = "HANDSHAKE_REDACT", help_heading = "Privacy")]
        redact: Redaction = Redaction::default(), parsed as Redaction;

        /// The file with the key of the hashes, at least 16 bytes.
        #[arg(long, value_name = "FILE", env = "HANDSHAKE_REDACT_KEY", help_heading = "Privacy")]
        redact_key: OptionalPath = OptionalPath::default(), parsed as OptionalPath;
    }
}

impl ProbeSettings {
    /// Size of the ring buffer: the kernel wants a power of two, and whole pages.
    #[must_use]
    pub fn ring_bytes(&self) -> u32 {
        self.ring_kib.saturating_mul(1024).max(4096).next_power_of_two()
    }
}

/// How programs are attached to tracepoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// BTF-typed raw tracepoints. The cheapest.
    TpBtf,
    /// Perf tracepoints, for kernels that refuse the former.
    Tracepoint,
}

impl AttachMode {
    /// The name in metrics, JSON and the configuration file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// The attach modes to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Attach {
    /// The cheapest that works.
    Auto,
    /// This one only.
    Only(AttachMode),
}

impl ValueEnum for Attach {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Only(AttachMode::TpBtf), Self::Only(AttachMode::Tracepoint)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Auto => PossibleValue::new("auto").help("The cheapest that works"),
            Self::Only(mode @ AttachMode::TpBtf) => {
                PossibleValue::new("tp-btf").alias(mode.as_str()).help("BTF-typed raw tracepoints")
            }
            Self::Only(mode @ AttachMode::Tracepoint) => {
                PossibleValue::new(mode.as_str()).help("Perf tracepoints")
            }
        })
    }
}

impl Serialize for Attach {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl TryFrom<String> for Attach {
    type Error = SettingError;

    fn try_from(text: String) -> Result<Self, SettingError> {
        <Self as ValueEnum>::from_str(&text, false).map_err(|_| SettingError::NoAttachMode(text))
    }
}

impl Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Only(mode) => mode.as_str(),
        })
    }
}

/// Why a value is none for its setting.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SettingError {
    /// An attach mode that does not exist.
    #[error("`{0}` is not one of auto, tp_btf, tracepoint")]
    NoAttachMode(String),
    /// More ports than the kernel side compares.
    #[error("more than {MAX_PORTS} ports; write on for all")]
    TooManyPorts,
    /// Not a choice of handshakes.
    #[error("neither on, off, nor ports such as 443,8443")]
    NoPorts,
    /// Not a number.
    #[error("not a whole number")]
    NoWholeNumber,
    /// A number that is too small or too large.
    #[error("{number} is not between {min} and {max}")]
    OutOfBounds {
        /// The number.
        number: i64,
        /// The smallest that is accepted.
        min: u32,
        /// The largest that is accepted.
        max: u32,
    },
}

/// The TLS handshakes that are observed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum TlsWire {
    /// None.
    Off,
    /// All.
    On,
    /// Those with one of these ports at either end; 0 is none.
    Ports([u16; MAX_PORTS]),
}

impl TlsWire {
    /// The ports in the form of the kernel side: all zero for every port.
    #[must_use]
    pub const fn ports(self) -> [u16; MAX_PORTS] {
        match self {
            Self::Ports(ports) => ports,
            Self::Off | Self::On => [0; MAX_PORTS],
        }
    }
}

impl FromStr for TlsWire {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "on" => return Ok(Self::On),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        // Undocumented, kept because configurations may have it.
        let list = text.strip_prefix("ports").unwrap_or(text);
        let mut ports = [0; MAX_PORTS];
        let mut slots = ports.iter_mut();
        for word in list.split(',') {
            let slot = slots.next().ok_or(SettingError::TooManyPorts)?;
            *slot = match word.trim().parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(SettingError::NoPorts),
            };
        }
        Ok(Self::Ports(ports))
    }
}

impl TryFrom<String> for TlsWire {
    type Error = SettingError;

    fn try_from(text: String) -> Result<Self, SettingError> {
        text.parse()
    }
}

impl Serialize for TlsWire {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Display for TlsWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::Ports(ports) => {
                let ports = ports.iter().filter(|port| **port > 0);
                f.write_str(&ports.map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

/// The path of a file or folder, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub struct OptionalPath(Option<PathBuf>);

impl OptionalPath {
    /// The path.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// The path.
    #[must_use]
    pub fn into_path(self) -> Option<PathBuf> {
        self.0
    }
}

/// An empty path is none.
impl From<PathBuf> for OptionalPath {
    fn from(path: PathBuf) -> Self {
        Self((!path.as_os_str().is_empty()).then_some(path))
    }
}

impl From<OptionalPath> for PathBuf {
    fn from(file: OptionalPath) -> Self {
        file.0.unwrap_or_default()
    }
}

impl FromStr for OptionalPath {
    type Err = Infallible;

    fn from_str(path: &str) -> Result<Self, Infallible> {
        Ok(PathBuf::from(path).into())
    }
}

impl Display for OptionalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => path.display().fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// A time such as 15m or 7d, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period(Option<Duration>);

impl Period {
    /// None.
    pub const NONE: Self = Self(None);
    /// A second.
    pub const SECOND: Self = Self(Some(Duration::from_secs(1)));
    /// A week.
    pub const DAYS_7: Self = Self(Some(Duration::from_hours(7 * 24)));

    /// The time.
    #[must_use]
    pub const fn duration(self) -> Option<Duration> {
        self.0
    }
}

impl FromStr for Period {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        let time = humantime::parse_duration(text)?;
        Ok(Self((!time.is_zero()).then_some(time)))
    }
}

impl TryFrom<String> for Period {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

impl Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(time) => write!(f, "{}", humantime::format_duration(time).to_string().replace(' ', "")),
            None => f.write_str("none"),
        }
    }
}

/// Who may see the page `/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PageFor {
    /// Programs of this host.
    Local,
    /// Whoever reaches the server.
    All,
}

impl Display for PageFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::All => "all",
        })
    }
}

/// What is logged: this and what is more severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What does not work.
    Error,
    /// And what works only in part.
    Warn,
    /// And what is done.
    Info,
    /// And why.
    Debug,
}

impl Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        })
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// A whole number between two bounds, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Bounded<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> TryFrom<i64> for Bounded<MIN, MAX> {
    type Error = SettingError;

    fn try_from(number: i64) -> Result<Self, SettingError> {
        match u32::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(SettingError::OutOfBounds { number, min: MIN, max: MAX }),
        }
    }
}

impl<const MIN: u32, const MAX: u32> FromStr for Bounded<MIN, MAX> {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        text.parse::<i64>().map_err(|_| SettingError::NoWholeNumber)?.try_into()
    }
}

impl<const MIN: u32, const MAX: u32> From<Bounded<MIN, MAX>> for u32 {
    fn from(number: Bounded<MIN, MAX>) -> Self {
        number.0
    }
}

/// A histogram label that has to be asked for, because its number of values is unbounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize, Serialize)]
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
    /// The server name in the client's ClientHello.
    Sni,
    /// The systemd unit of the process.
    Unit,
    /// The container of the process.
    ContainerId,
    /// The Kubernetes pod of the process.
    PodUid,
}

impl Label {
    /// Every label, in the order in which metrics carry them.
    pub const ALL: &[Self] = &[
        Self::Process,
        Self::LocalPort,
        Self::RemoteNet,
        Self::Cgroup,
        Self::Sni,
        Self::Unit,
        Self::ContainerId,
        Self::PodUid,
    ];

    /// The label's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::LocalPort => "local_port",
            Self::RemoteNet => "remote_net",
            Self::Cgroup => "cgroup",
            Self::Sni => "sni",
            Self::Unit => "unit",
            Self::ContainerId => "container_id",
            Self::PodUid => "pod_uid",
        }
    }
}

/// The labels to add: each once, in the order of [`Label::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Labels(Vec<Label>);

impl Labels {
    /// The labels.
    #[must_use]
    pub fn into_vec(self) -> Vec<Label> {
        self.0
    }
}

impl From<Vec<Label>> for Labels {
    fn from(wanted: Vec<Label>) -> Self {
        Self(Label::ALL.iter().copied().filter(|label| wanted.contains(label)).collect())
    }
}

impl Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.0.iter().map(|label| label.as_str()).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_wire_is_on_off_or_a_list_of_ports() {
        assert_eq!("on".parse(), Ok(TlsWire::On));
        assert_eq!("off".parse(), Ok(TlsWire::Off));
        for list in ["443,8443", "443, 8443", "ports 443,8443"] {
            let wire: TlsWire = list.parse().unwrap();
            let TlsWire::Ports(ports) = wire else { panic!("{list}") };
            assert_eq!(ports[..3], [443, 8443, 0]);
            assert_eq!(wire.to_string(), "443,8443");
        }
        let too_many = "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17";
        for bad in ["", "0", "https", "ports", "443,", too_many] {
            assert!(bad.parse::<TlsWire>().is_err(), "{bad}");
        }
    }

    #[test]
    fn attach_accepts_the_spelling_of_the_flag_and_of_the_file() {
        for text in ["tp-btf", "tp_btf"] {
            assert_eq!(Attach::try_from(text.to_owned()), Ok(Attach::Only(AttachMode::TpBtf)));
        }
        assert_eq!(Attach::try_from("auto".to_owned()), Ok(Attach::Auto));
        assert_eq!(Attach::try_from("magic".to_owned()), Err(SettingError::NoAttachMode("magic".to_owned())));
    }

    #[test]
    fn text_is_held_to_the_same_limits_as_the_file() {
        assert_eq!("32".parse(), Ok(Bounded::<0, 32>(32)));
        assert!("33".parse::<Bounded<0, 32>>().is_err());
    }

    #[test]
    fn period_is_a_time_or_none() {
        for (text, period) in [("none", Period::NONE), ("0s", Period::NONE), ("7days", Period::DAYS_7)] {
            assert_eq!(text.parse::<Period>().unwrap(), period);
            assert_eq!(period.to_string().parse::<Period>().unwrap(), period);
        }
        assert!("soon".parse::<Period>().is_err());
    }

    #[test]
    fn help_shows_the_default() {
        assert_eq!(help(" Some number.", &7), "Some number [default: 7]");
    }
}
