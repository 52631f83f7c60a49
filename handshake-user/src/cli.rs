//! The command line.

use std::{ffi::OsString, fmt, net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, error::ErrorKind};
use handshake_common::{Role, Stage};
use ipnet::IpNet;
use thiserror::Error;

use crate::{
    aggregate::Grouping,
    filter::{self, Filter, NetNs},
    output::table::Column,
    settings::{ExporterOptions, ProbeOptions, RedactOptions, Switch, TlsWire},
    untrusted::Untrusted,
};

/// How long TCP and TLS handshakes and TCP closes take for every connection of this host, timed in the
/// kernel.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None, arg_required_else_help = true)]
#[command(after_help = "Examples:
  handshake trace                       every TCP open, TLS handshake and TCP close, live
  handshake trace --port 443 --stage open --slower-than 100ms
  handshake trace --output json | jq .open.rtt_us
  handshake top                         full screen: by process, service or network of the peer
  handshake record                      into a file, for later or for another host
  handshake explain records.jsonl       each connection as a ladder, and what would save round trips
  handshake report records.jsonl        what happened to many connections, as text or a page
  handshake daemon --listen 127.0.0.1:9966
  handshake check                       what works on this kernel")]
pub struct Cli {
    /// Log more to standard error (-v: what is attached, -vv: why not); `RUST_LOG` overrides it.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Refuses a command line that is well-formed but could never show anything.
    ///
    /// # Errors
    /// A usage error that says why.
    pub fn possible(self) -> Result<Self, clap::Error> {
        let never = match &self.command {
            Command::Trace(args) => args.never(),
            Command::Top(args) => args.filters.never(&args.probes),
            Command::Record(args) => args.filters.never(&args.probes),
            Command::Report(args) if args.duration.is_some() => args.filters.never(&args.probes),
            _ => None,
        };
        match never {
            Some(why) => Err(Self::command().error(ErrorKind::ArgumentConflict, why)),
            None => Ok(self),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show connections live, one line per stage, and a summary at the end.
    Trace(TraceArgs),
    /// Show who opens connections, how fast and how well, full screen: by process, service or network.
    Top(TopArgs),
    /// Export metrics to Prometheus until SIGTERM or SIGINT.
    Daemon(DaemonArgs),
    /// Report what this kernel and host offer; the exit status says whether tracing would work.
    Check(CheckArgs),
    /// Draw the connections in records as ladders of their segments, and list what would save round trips.
    Explain(ExplainArgs),
    /// Record into a compressed file, for `trace`, `explain` and `report`, on this host or another.
    Record(RecordArgs),
    /// Tell the story of many connections: percentiles, failures, what settings would save, the slowest.
    Report(ReportArgs),
}

/// `PID_MAX_LIMIT` of `include/linux/threads.h`.
const PID_MAX: i64 = 4_194_304;

/// `handshake trace`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  handshake trace --port 443                          one service, both roles
  handshake trace --remote 10.0.0.0/8 --role client   connections of this host to a network
  handshake trace --stage close --slower-than 1s      slow closes
  handshake trace --comm nginx --duration 30s         half a minute of one program, then the summary
  handshake trace --count 100 --output json > out.jsonl
  handshake trace --columns remote,result,duration,details
  handshake trace --port 443 --output ladder          each connection as a ladder, when it closes
  handshake trace -r records/ --slower-than 100ms     records in files, of any number of hosts

A filter does not match what is unknown.")]
pub struct TraceArgs {
    /// Read records from these files, and the files in these folders, compressed or not, instead of tracing;
    /// - is standard input.
    #[arg(short, long, value_name = "FILE", num_args = 1.., conflicts_with = "duration")]
    pub read: Vec<PathBuf>,
    /// Which records to show.
    #[command(flatten)]
    pub filters: FilterOptions,
    /// What to hide of them.
    #[command(flatten)]
    pub redact: RedactOptions,
    /// Default: table on a terminal, json (one object a line) otherwise.
    #[arg(long, value_enum)]
    pub output: Option<Output>,
    /// Columns of the table, in this order. Default: as many as the terminal has room for, the important ones
    /// first.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "COLUMNS")]
    pub columns: Vec<Column>,
    /// End after this time, such as 30s.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// End after this many records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// How to load the kernel side.
    #[command(flatten)]
    pub probes: ProbeOptions,
}

impl TraceArgs {
    /// Why no record could ever pass these filters. Returns `None` if one could.
    fn never(&self) -> Option<&'static str> {
        if !self.columns.is_empty() && self.output.is_some_and(|output| output != Output::Table) {
            return Some("--columns is for --output table");
        }
        if !self.read.is_empty() {
            return None;
        }
        self.filters.never(&self.probes)
    }
}

/// Conditions on records, all of which must hold. A filter does not match what is unknown.
#[derive(Clone, Debug, Default, Args)]
pub struct FilterOptions {
    /// Id of a connection, as records and `ss -e` have it (`sk:`); repeatable.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub id: Vec<String>,
    /// Name of the host whose record it is; repeatable.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub host: Vec<String>,
    /// Local or remote port; repeatable.
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Vec<u16>,
    /// Network of the peer, such as 10.0.0.0/8 or `2001:db8::/32`; repeatable.
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    pub remote: Vec<IpNet>,
    /// Process id, in the host's PID namespace.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=PID_MAX))]
    pub pid: Option<u32>,
    /// Full name of the process; the kernel keeps its first 15 bytes.
    #[arg(long)]
    pub comm: Option<String>,
    /// Only connections in which this host has this role.
    #[arg(long, value_parser = ["client", "server"])]
    pub role: Option<String>,
    /// Only this stage.
    #[arg(long, value_parser = ["open", "tls", "close"])]
    pub stage: Option<String>,
    /// Only stages that took at least this long, such as 100ms or 1s.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub slower_than: Option<Duration>,
    /// Network namespace: a name of `ip netns`, a path such as /proc/PID/ns/net, or an inode.
    #[arg(long, value_name = "NETNS", value_parser = NetNs::parse)]
    pub netns: Option<NetNs>,
    /// Systemd unit of the process, such as nginx.service.
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// Container of the process: its id or the beginning of it.
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub container: Option<String>,
    /// Kubernetes pod of the process: its uid.
    #[arg(long, value_name = "UID")]
    pub pod: Option<String>,
}

impl FilterOptions {
    /// Reads what a user types in a running program: the same flags.
    ///
    /// # Errors
    /// Why not, in a line.
    pub fn parse(line: &str) -> Result<Self, String> {
        let words = shlex::split(line).ok_or("a quotation mark is missing")?;
        let parsed = FilterLine::try_parse_from(words).map_err(|error| {
            let said = error.to_string();
            let line = said.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        })?;
        Ok(parsed.filters)
    }

    /// The role asked for.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.role.as_deref()?.parse().ok()
    }

    /// The stage asked for.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        self.stage.as_deref()?.parse().ok()
    }

    /// The records asked for.
    #[must_use]
    pub fn filter(&self) -> Filter {
        Filter {
            ids: self.id.iter().map(|id| id.as_str().into()).collect(),
            hosts: self.host.iter().map(|host| host.as_str().into()).collect(),
            ports: self.port.clone(),
            remotes: self.remote.clone(),
            pid: self.pid,
            comm: self.comm.as_deref().map(filter::kept),
            role: self.role(),
            stage: self.stage(),
            slower_than: self.slower_than,
            netns: self.netns,
            unit: self.unit.as_deref().map(Untrusted::from),
            container: self.container.as_deref().map(Untrusted::from),
            pod: self.pod.as_deref().map(Untrusted::from),
        }
    }

    /// Why no record could ever pass. Returns `None` if one could.
    fn never(&self, probes: &ProbeOptions) -> Option<&'static str> {
        let probes = probes.clone().settle();
        let blind = probes.tls_wire == TlsWire::Off && probes.tls_libraries == Switch::Off;
        (blind && self.stage() == Some(Stage::Tls))
            .then_some("--stage tls needs one of the two views: --tls-wire on, --tls-libraries on")
    }

    /// What the filters do that the user may not expect, one line each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.comm.as_deref().and_then(filter::note_on_comm).into_iter().collect()
    }
}

/// The flags as [`FilterOptions::parse`] takes them; nothing for no filter.
impl fmt::Display for FilterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, host, port, remote, pid, comm, role, stage, slower_than, netns, unit, container, pod } =
            self;
        // A zero byte cannot be on a command line.
        let quoted = |flag, name| format!("--{flag} {}", shlex::try_quote(name).unwrap_or_default());
        let named = [("comm", comm), ("unit", unit), ("container", container), ("pod", pod)];
        let named = named.into_iter().filter_map(|(flag, name)| Some(quoted(flag, name.as_deref()?)));
        let flags = id
            .iter()
            .map(|id| quoted("id", id))
            .chain(host.iter().map(|host| quoted("host", host)))
            .chain(port.iter().map(|port| format!("--port {port}")))
            .chain(remote.iter().map(|net| format!("--remote {net}")))
            .chain(pid.map(|pid| format!("--pid {pid}")))
            .chain(named)
            .chain(role.as_ref().map(|role| format!("--role {role}")))
            .chain(stage.as_ref().map(|stage| format!("--stage {stage}")))
            .chain(slower_than.map(|least| {
                format!("--slower-than {}", humantime::format_duration(least).to_string().replace(' ', ""))
            }))
            .chain(netns.map(|netns| format!("--netns {}", netns.0)));
        f.write_str(&flags.collect::<Vec<_>>().join(" "))
    }
}

/// The flags alone.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, arg_required_else_help = false)]
struct FilterLine {
    #[command(flatten)]
    filters: FilterOptions,
}

/// `handshake top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  handshake top                         by process; p, s, n: by process, service, network of the peer
  handshake top --by service --role client
  handshake top --port 443 --window 5m
  handshake top --tls-libraries off     the wire alone: starts faster

Keys: ? lists them. docs/top.md says what the columns are.")]
pub struct TopArgs {
    /// What a row is.
    #[arg(long, value_enum, default_value = "process")]
    pub by: Grouping,
    /// The time that rates and percentiles look back, such as 30s.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_window)]
    pub window: Duration,
    /// Which records to count.
    #[command(flatten)]
    pub filters: FilterOptions,
    /// What to hide of them.
    #[command(flatten)]
    pub redact: RedactOptions,
    /// How to load the kernel side.
    #[command(flatten)]
    pub probes: ProbeOptions,
}

/// From 5 s to a day.
fn parse_window(text: &str) -> Result<Duration, String> {
    let window = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(5)..=Duration::from_hours(24)).contains(&window) {
        Ok(window)
    } else {
        Err("between 5s and 24h".to_owned())
    }
}

/// `handshake daemon`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  handshake daemon                                    http://127.0.0.1:9966/metrics
  handshake daemon --config /etc/handshake/handshake.toml
  handshake daemon --config handshake.toml --check-config
  handshake daemon --label process --label local_port --max-series 500
  HANDSHAKE_LISTEN=[::]:9966 handshake daemon         every address; see --web-config

A flag takes precedence over its environment variable, that over the file, the file over the default.")]
pub struct DaemonArgs {
    /// Settings in TOML, such as /etc/handshake/handshake.toml; config/handshake.toml documents its keys.
    #[arg(long, value_name = "FILE", env = "HANDSHAKE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Only say whether the settings of file, environment and flags are valid: exit status 0 if so.
    #[arg(long)]
    pub check_config: bool,
    /// The server and the metrics.
    #[command(flatten)]
    pub exporter: ExporterOptions,
    /// What to hide.
    #[command(flatten)]
    pub redact: RedactOptions,
    /// How to load the kernel side.
    #[command(flatten)]
    pub probes: ProbeOptions,
}

/// `handshake check`.
#[derive(Clone, Copy, Debug, Args)]
#[command(after_help = "Examples:
  sudo handshake check                  tries everything, and leaves nothing behind
  handshake check --json | jq '.sysctls[] | {name, value}'

Exit status: 0 if tracing would work, 1 if not.")]
pub struct CheckArgs {
    /// One JSON object, for programs (docs/json-schema.md).
    #[arg(long)]
    pub json: bool,
}

/// `handshake explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  handshake trace --output json > records.jsonl       one record a line
  handshake explain records.jsonl
  handshake trace --port 443 --count 30 --output json | handshake explain
  handshake explain --id 1007 web-1/ web-2/           a connection at both ends: folders of two hosts
  handshake explain --slower-than 1s monday.jsonl.gz
  jq -c 'select(.setup.round_trips > 1)' records.jsonl | handshake explain -

docs/explain.md says how to read a ladder. Exit status: 0, or 1 if a line was not a record or a compressed file ends too early.")]
pub struct ExplainArgs {
    /// Records as `trace --output json` writes them, compressed or not: files, and folders of files; - is
    /// standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub files: Vec<PathBuf>,
    /// Which connections to draw: those of which a record passes.
    #[command(flatten)]
    pub filters: FilterOptions,
    /// What to hide of them.
    #[command(flatten)]
    pub redact: RedactOptions,
}

/// `handshake record`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  handshake record                                    until Ctrl-C, into handshake-TIME.jsonl.gz
  handshake record -o curl.jsonl.gz -- curl -s https://example.org
  handshake record --port 443 --duration 10m
  handshake record --keep 15m -o /var/tmp/look-back   kept in memory; SIGUSR1 or the end writes a file there
  handshake report curl.jsonl.gz                      what was recorded; zcat shows the records

The file can be read while it is written. docs/record.md says more. Exit status: that of COMMAND, else 0.")]
pub struct RecordArgs {
    /// The file, which must not exist; compressed if the name ends with .gz. With --keep the folder.
    /// Default: handshake-TIME.jsonl.gz in the current folder.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Keep only the records of the last while, such as 15m, in memory, and write them to a file at SIGUSR1
    /// and at the end.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub keep: Option<Duration>,
    /// End after this time, such as 30s.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Which records to keep.
    #[command(flatten)]
    pub filters: FilterOptions,
    /// What to hide of them.
    #[command(flatten)]
    pub redact: RedactOptions,
    /// How to load the kernel side.
    #[command(flatten)]
    pub probes: ProbeOptions,
    /// A command to run: recording ends with it. Connections of other programs are recorded as well.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `handshake report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  handshake trace --output json > records.jsonl       one record a line
  handshake report records.jsonl
  handshake report --html report.html monday.jsonl tuesday.jsonl
  handshake report --port 443 records.jsonl.gz        compressed by gzip or zstd
  handshake report /var/log/handshake web-2/          the files in folders, of two hosts
  handshake report --duration 1m --json | jq .savings

docs/report.md says what is in it. Exit status: 0, or 1 if a line was not a record or a compressed file ends too early.")]
pub struct ReportArgs {
    /// Records as `trace --output json` writes them, compressed or not: files, and folders of files; - is
    /// standard input.
    #[arg(value_name = "FILE", required_unless_present = "duration")]
    pub files: Vec<PathBuf>,
    /// Trace for this time, such as 30s, instead of reading files.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "files")]
    pub duration: Option<Duration>,
    /// One JSON object, for programs (docs/report.md).
    #[arg(long, conflicts_with = "html")]
    pub json: bool,
    /// Write one HTML page that needs no other file; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Which records to count.
    #[command(flatten)]
    pub filters: FilterOptions,
    /// What to hide of them.
    #[command(flatten)]
    pub redact: RedactOptions,
    /// How to load the kernel side, with --duration.
    #[command(flatten)]
    pub probes: ProbeOptions,
}

/// Output formats of `trace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns for people.
    Table,
    /// Each connection as a ladder of its segments, when it closes.
    Ladder,
    /// One JSON object per line, for programs.
    Json,
}

/// A text is no network.
#[derive(Debug, Error)]
#[error("not an address or a network; write 10.0.0.0/8, 192.0.2.1, 2001:db8::/32")]
struct NoNetwork;

/// A network, or an address as a network of one address.
fn parse_network(text: &str) -> Result<IpNet, NoNetwork> {
    let network =
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| NoNetwork)?;
    Ok(unmapped(network).unwrap_or(network))
}

/// The IPv4 network of a v4-mapped one: records have the address that is on the wire.
fn unmapped(network: IpNet) -> Option<IpNet> {
    let IpNet::V6(mapped) = network else { return None };
    let address = mapped.addr().to_ipv4_mapped()?;
    IpNet::new(IpAddr::V4(address), mapped.prefix_len().checked_sub(96)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_filters_are_usage_errors() {
        for bad in [
            vec!["--remote", "10.0.0.0/33"],
            vec!["--port", "0"],
            vec!["--port", "https"],
            vec!["--slower-than", "fast"],
            vec!["--role", "peer"],
            vec!["--count", "0"],
            vec!["--netns", "no-such-namespace"],
            vec!["--pid", "0"],
            vec!["--pid", "4194305"],
            vec!["--columns", "remote,size"],
            vec!["--columns", "remote", "--output", "json"],
            vec!["--stage", "tls", "--tls-wire", "off", "--tls-libraries", "off"],
        ] {
            let line = ["handshake", "trace"].into_iter().chain(bad.iter().copied());
            let error = Cli::try_parse_from(line).and_then(Cli::possible).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
        for bad in [
            vec!["--window", "1s"],
            vec!["--by", "port"],
            vec!["--stage", "tls", "--tls-wire", "off", "--tls-libraries", "off"],
        ] {
            let line = ["handshake", "top"].into_iter().chain(bad.iter().copied());
            let error = Cli::try_parse_from(line).and_then(Cli::possible).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn typed_filters_are_the_flags() {
        let line = "--id 1007.2 --host 'web 1' --port 443 --port 8443 --remote 10.0.0.0/8 --pid 12 --comm 'Web Content' --role client \
                    --stage tls --slower-than 1m1s500ms --netns 4026531840";
        let options = FilterOptions::parse(line).unwrap();
        assert_eq!(options.to_string(), line);
        let filter = options.filter();
        assert_eq!(
            (filter.ports, filter.slower_than),
            (vec![443, 8443], Some(Duration::from_millis(61_500)))
        );
        assert_eq!(FilterOptions::parse(" ").unwrap().to_string(), "");
        for (bad, why) in [
            ("--port https", "invalid value 'https' for '--port"),
            ("--comm 'a", "quotation mark"),
            ("--output json", "unexpected argument '--output'"),
            ("443", "unexpected argument '443'"),
        ] {
            let said = FilterOptions::parse(bad).unwrap_err();
            assert!(said.contains(why) && !said.contains('\n'), "{bad}: {said}");
        }
    }

    #[test]
    fn address_is_a_network_of_one() {
        assert_eq!(parse_network("192.0.2.1").unwrap().prefix_len(), 32);
        assert_eq!(parse_network("2001:db8::1").unwrap().prefix_len(), 128);
    }

    #[test]
    fn notes_explain_surprising_filters() {
        let notes = |arguments: &[&str]| {
            let line = ["handshake", "trace"].iter().chain(arguments);
            let Command::Trace(args) = Cli::parse_from(line).command else { panic!() };
            args.filters.notes()
        };
        assert!(notes(&["--comm", "NetworkManager-dispatcher"])[0].contains("\"NetworkManager-\""));
        assert_eq!(notes(&["--comm", "NetworkManager", "--role", "client", "--stage", "open"]), [""; 0]);
    }

    #[test]
    fn mapped_and_unaligned_networks_match() {
        let contains = |network: &str, address: &str| {
            parse_network(network).unwrap().contains(&address.parse::<IpAddr>().unwrap())
        };
        assert!(contains("10.9.9.9/8", "10.0.0.1"), "bits behind the prefix do not count");
        // On the wire these are IPv4.
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3") && !contains("::ffff:10.0.0.0/104", "11.0.0.1"));
        assert!(contains("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(contains("::/0", "2001:db8::1"));
    }
}
