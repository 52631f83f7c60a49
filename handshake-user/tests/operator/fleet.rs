//! The queries of packaging/fleet, by the engines themselves, over records of real connections: their answers
//! are those that the test computes from the JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use ipnet::IpNet;
use nix::{
    libc,
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};
use serde_json::{Map, Value, json};

use crate::{
    agreed::post_quantum,
    program::{Running, TRACING, program, tls_server::TlsServer},
    prometheus::file,
    traffic::{Tls, close_late, overflow_accept_queue},
};

type Row = Map<String, Value>;
type Records<'a> = &'a [&'a Value];
/// Its name, the column by which the largest rows come first, and its answer by hand.
type Query = (&'static str, &'static str, fn(Records<'_>) -> Vec<Row>);

#[test]
fn queries_answer_what_the_records_say() {
    let folder = tempfile::tempdir().unwrap();
    let records = of_three_hosts(&record(folder.path()));
    write(folder.path(), &records);
    let connections: Vec<_> = records.iter().filter(|record| is_end(record)).collect();
    assert!(connections.len() < records.len(), "no connection has more than one record");
    let files = format!("{}/*.jsonl.gz", folder.path().display());
    let tools = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools/python");
    assert!(
        tools.join("duckdb").exists(),
        "there is no DuckDB in {}: run `cargo xtask test`",
        tools.display()
    );
    // ClickHouse is large: `cargo xtask fleet` installs it.
    for engine in ["duckdb", "clickhouse"].into_iter().filter(|engine| tools.join(engine).exists()) {
        let answers = ask(engine, &tools.join(engine), &files);
        let names: BTreeSet<_> = answers.keys().map(String::as_str).collect();
        assert_eq!(names, QUERIES.iter().map(|(name, ..)| *name).collect(), "{engine}");
        for (name, order, expected) in QUERIES {
            let expected = expected(&connections);
            assert!(!expected.is_empty(), "{name}: nothing to find");
            if let Err(difference) = compare(&rows(&answers[*name]), &expected, order) {
                panic!("{engine}, {name}: {difference}");
            }
        }
        println!("{engine}: {} records", records.len());
    }
}

const QUERIES: &[Query] = &[
    ("slowest_services", "p99_ms", slowest_services),
    ("round_trips_to_save", "hours", round_trips_to_save),
    ("old_tls", "handshakes", old_tls),
    ("not_post_quantum", "handshakes", not_post_quantum),
    ("port_exhaustion", "failures", port_exhaustion),
    ("resets_by_peer", "resets", resets_by_peer),
    ("lost_syns", "retransmits", lost_syns),
    ("slow_closers", "p99_ms", slow_closers),
    ("tls_failures", "handshakes", tls_failures),
    ("accept_wait", "connections", accept_wait),
];
/// How many rows each shows.
const SHOWN: usize = 20;

fn slowest_services(records: Records<'_>) -> Vec<Row> {
    grouped(records, |it| !it["setup"]["duration_us"].is_null(), |it| vec![service(it), it["role"].clone()])
        .map(|(key, group)| {
            let percentile = |path, p| json!(percentile(&numbers(&group, path), p).map(|it| it / 1e3));
            row(
                &["service", "role"],
                key,
                [
                    ("connections", json!(group.len())),
                    ("p50_ms", percentile("/setup/duration_us", 0.5)),
                    ("p99_ms", percentile("/setup/duration_us", 0.99)),
                    ("p99_excess_ms", percentile("/setup/excess_us", 0.99)),
                    (
                        "most_round_trips",
                        group.iter().map(|it| it["setup"]["round_trips"].as_u64()).max().into(),
                    ),
                ],
            )
        })
        .collect()
}

fn round_trips_to_save(records: Records<'_>) -> Vec<Row> {
    let is_wanted = |it: &Value| {
        it["setup"]["round_trips"].as_u64().is_some_and(|it| it > 2) && it["open"]["rtt_us"].is_u64()
    };
    let key = |it: &Value| {
        let reason = match (&it["tls"]["hello_retry"], it["tls"]["version"].as_str()) {
            (Value::Bool(true), _) => "the server wants another group (HelloRetryRequest)",
            (_, Some("1.0" | "1.1" | "1.2")) => "TLS 1.2 or older",
            _ => "other",
        };
        vec![json!(it["time"].as_str().unwrap()[..10]), service(it), it["role"].clone(), json!(reason)]
    };
    grouped(records, is_wanted, key)
        .map(|(key, group)| {
            let saved = |it: &Value| it["setup"]["round_trips"].as_f64().unwrap() - 2.0;
            let hours: f64 =
                group.iter().map(|it| saved(it) * it["open"]["rtt_us"].as_f64().unwrap() / 3600e6).sum();
            row(
                &["day", "service", "role", "reason"],
                key,
                [
                    ("connections", json!(group.len())),
                    ("round_trips", json!(group.iter().map(|it| saved(it)).sum::<f64>())),
                    ("hours", json!(hours)),
                ],
            )
        })
        .collect()
}

fn old_tls(records: Records<'_>) -> Vec<Row> {
    let is_old = |it: &Value| {
        it["tls"]["outcome"] == "completed" && ["1.0", "1.1"].iter().any(|old| it["tls"]["version"] == *old)
    };
    let key = |it: &Value| {
        vec![
            service(it),
            it["role"].clone(),
            it["host"].clone(),
            it["process"]["comm"].clone(),
            it["tls"]["version"].clone(),
        ]
    };
    grouped(records, is_old, key)
        .map(|(key, group)| {
            row(
                &["service", "role", "host", "program", "version"],
                key,
                [("handshakes", json!(group.len())), ("last", json!(times(&group).max()))],
            )
        })
        .collect()
}

fn not_post_quantum(records: Records<'_>) -> Vec<Row> {
    let is_wanted = |it: &Value| {
        let group = it["tls"]["group"].as_str();
        it["tls"]["outcome"] == "completed"
            && group.is_some_and(|name| !name.contains("MLKEM") && !name.contains("Kyber"))
    };
    let key = |it: &Value| vec![service(it), it["role"].clone(), it["tls"]["group"].clone()];
    grouped(records, is_wanted, key)
        .map(|(key, group)| {
            row(
                &["service", "role", "key_exchange"],
                key,
                [("handshakes", json!(group.len())), ("hosts", json!(hosts(&group)))],
            )
        })
        .collect()
}

fn port_exhaustion(records: Records<'_>) -> Vec<Row> {
    let key = |it: &Value| {
        vec![
            it["host"].clone(),
            it["netns"].clone(),
            it["process"]["comm"].clone(),
            it["remote"]["addr"].clone(),
            it["remote"]["port"].clone(),
        ]
    };
    grouped(records, |it| it["open"]["outcome"] == "no_local_port", key)
        .map(|(key, group)| {
            row(
                &["host", "netns", "program", "peer", "port"],
                key,
                [
                    ("failures", json!(group.len())),
                    ("first", json!(times(&group).min())),
                    ("last", json!(times(&group).max())),
                ],
            )
        })
        .collect()
}

fn resets_by_peer(records: Records<'_>) -> Vec<Row> {
    let has_style = |it: &Value| it["close"]["style"].is_string();
    grouped(records, has_style, |it| vec![service(it), it["role"].clone()])
        .filter_map(|(key, group)| {
            let resets = group.iter().filter(|it| it["close"]["style"] == "reset_received").count();
            let values = [
                ("resets", json!(resets)),
                ("connections", json!(group.len())),
                ("percent", json!(100.0 * ratio(resets, group.len()))),
            ];
            (resets > 0).then(|| row(&["service", "role"], key, values))
        })
        .collect()
}

fn lost_syns(records: Records<'_>) -> Vec<Row> {
    let is_wanted = |it: &Value| it["role"] == "client" && it["open"]["syn_retransmits"].is_u64();
    grouped(records, is_wanted, |it| vec![network(it)])
        .filter_map(|(key, group)| {
            let retransmits = |it: &Value| it["open"]["syn_retransmits"].as_u64().unwrap();
            let all: u64 = group.iter().map(|it| retransmits(it)).sum();
            let lossy = group.iter().filter(|it| retransmits(it) > 0).count();
            let p99 = percentile(&numbers(&group, "/open/duration_us"), 0.99);
            let values = [
                ("openings", json!(group.len())),
                ("retransmits", json!(all)),
                ("percent", json!(100.0 * ratio(lossy, group.len()))),
                ("p99_ms", json!(p99.map(|it| it / 1e3))),
            ];
            (all > 0).then(|| row(&["network"], key, values))
        })
        .collect()
}

fn slow_closers(records: Records<'_>) -> Vec<Row> {
    let key = |it: &Value| {
        let slow = match &it["close"]["initiator"] {
            local if local == "local" => json!("the peer"),
            _ => comm(it),
        };
        vec![service(it), it["role"].clone(), slow]
    };
    grouped(records, |it| it["close"]["app_wait_us"].is_u64(), key)
        .filter_map(|(key, group)| {
            let waits = numbers(&group, "/close/app_wait_us");
            let [p50, p99] = [0.5, 0.99].map(|p| percentile(&waits, p).unwrap() / 1e3);
            let values = [("closings", json!(group.len())), ("p50_ms", json!(p50)), ("p99_ms", json!(p99))];
            (p99 > 100.0).then(|| row(&["service", "role", "slow_program"], key, values))
        })
        .collect()
}

fn tls_failures(records: Records<'_>) -> Vec<Row> {
    let has_failed = |it: &Value| it["tls"]["outcome"] == "failed" || it["tls"]["outcome"] == "abandoned";
    let key = |it: &Value| {
        let tls = ["outcome", "alert", "alert_from", "error"].map(|name| it["tls"][name].clone());
        [vec![service(it), it["role"].clone()], tls.to_vec()].concat()
    };
    grouped(records, has_failed, key)
        .map(|(key, group)| {
            row(
                &["service", "role", "outcome", "alert", "alert_from", "error"],
                key,
                [("handshakes", json!(group.len())), ("hosts", json!(hosts(&group)))],
            )
        })
        .collect()
}

fn accept_wait(records: Records<'_>) -> Vec<Row> {
    let is_full = |it: &Value| {
        let queue = &it["open"]["listener"];
        queue["accept_queue"].as_u64() > queue["accept_queue_limit"].as_u64()
    };
    let is_wanted =
        |it: &Value| it["open"]["accept_wait_us"].is_u64() || it["open"]["listener"]["accept_queue"].is_u64();
    grouped(records, is_wanted, |it| vec![it["host"].clone(), service(it), it["role"].clone()])
        .filter_map(|(key, group)| {
            let p99 = percentile(&numbers(&group, "/open/accept_wait_us"), 0.99);
            let full = group.iter().filter(|it| is_full(it)).count();
            let values = [
                ("connections", json!(group.len())),
                ("p99_accept_wait_ms", json!(p99.map(|it| it / 1e3))),
                ("met_a_full_queue", json!(full)),
            ];
            let is_shown = full > 0 || p99.is_some_and(|it| it > 10_000.0);
            is_shown.then(|| row(&["host", "service", "role"], key, values))
        })
        .collect()
}

/// Whether a record stands for its connection.
fn is_end(record: &Value) -> bool {
    match record["event"].as_str().unwrap() {
        "close" => true,
        "open" => record["open"]["outcome"] != "established",
        "tls" => record["id"].as_str().unwrap().starts_with("tls-"),
        _ => false,
    }
}

fn service(record: &Value) -> Value {
    let at = |end: &str, name: &str| json!(format!("{name}:{}", record[end]["port"]));
    match (&record["tls"]["sni"], record["role"].as_str()) {
        (Value::String(name), _) => json!(name),
        (_, Some("client")) => at("remote", record["remote"]["addr"].as_str().unwrap()),
        (_, Some("server")) => at("local", comm(record).as_str().unwrap()),
        _ => Value::Null,
    }
}

fn comm(record: &Value) -> Value {
    json!(record["process"]["comm"].as_str().unwrap_or("unknown"))
}

fn network(record: &Value) -> Value {
    let address: IpAddr = record["remote"]["addr"].as_str().unwrap().parse().unwrap();
    let network = IpNet::new(address, if address.is_ipv4() { 24 } else { 48 }).unwrap();
    json!(network.trunc().to_string())
}

fn grouped<'a>(
    records: &[&'a Value],
    is_wanted: impl Fn(&Value) -> bool,
    key: impl Fn(&Value) -> Vec<Value>,
) -> impl Iterator<Item = (Vec<Value>, Vec<&'a Value>)> {
    let mut groups = BTreeMap::<String, (Vec<Value>, Vec<&Value>)>::new();
    for record in records.iter().copied().filter(|record| is_wanted(record)) {
        let key = key(record);
        groups.entry(json!(key).to_string()).or_insert_with(|| (key, Vec::new())).1.push(record);
    }
    groups.into_values()
}

fn row<const N: usize>(columns: &[&str], key: Vec<Value>, values: [(&str, Value); N]) -> Row {
    let keys = columns.iter().map(|column| (*column).to_owned()).zip(key);
    keys.chain(values.map(|(column, value)| (column.to_owned(), value))).collect()
}

fn numbers(group: Records<'_>, path: &str) -> Vec<f64> {
    group.iter().filter_map(|record| record.pointer(path)?.as_f64()).collect()
}

/// Interpolated between the two nearest values (type 7 of Hyndman and Fan).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a short list")]
fn percentile(values: &[f64], p: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let place = p * (f64::from(u32::try_from(values.len()).unwrap()) - 1.0);
    let below = values.get(place.floor() as usize)?;
    let above = values.get(place.ceil() as usize)?;
    Some((above - below).mul_add(place.fract(), *below))
}

fn ratio(part: usize, whole: usize) -> f64 {
    f64::from(u32::try_from(part).unwrap()) / f64::from(u32::try_from(whole).unwrap())
}

/// As SQL writes them.
fn times(group: Records<'_>) -> impl Iterator<Item = String> {
    group.iter().map(|record| record["time"].as_str().unwrap().trim_end_matches('Z').replace('T', " "))
}

fn hosts(group: Records<'_>) -> usize {
    group.iter().map(|record| record["host"].as_str().unwrap()).collect::<BTreeSet<_>>().len()
}

fn rows(answer: &Value) -> Vec<Row> {
    answer.as_array().unwrap().iter().map(|row| row.as_object().unwrap().clone()).collect()
}

/// Whether these are the first of the expected rows.
fn compare(found: &[Row], expected: &[Row], order: &str) -> Result<(), String> {
    if found.len() != expected.len().min(SHOWN) {
        return Err(format!("{} rows, not {}: {found:#?}\n{expected:#?}", found.len(), expected.len()));
    }
    let value = |row: &Row| row[order].as_f64().unwrap();
    if !found.is_sorted_by(|one, next| value(one) >= value(next)) {
        return Err(format!("not in the order of {order}: {found:#?}"));
    }
    let mut left: Vec<_> = expected.iter().collect();
    for row in found {
        let Some(place) = left.iter().position(|other| are_equal(row, other)) else {
            return Err(format!("{row:#?} is not among {left:#?}"));
        };
        left.remove(place);
    }
    let smallest = found.last().map_or(0.0, value);
    match left.iter().find(|row| value(row) > smallest * (1.0 + 1e-9)) {
        Some(row) => Err(format!("not shown: {row:#?}")),
        None => Ok(()),
    }
}

/// But for the last digits of fractions.
fn are_equal(one: &Row, other: &Row) -> bool {
    one.len() == other.len()
        && one.iter().all(|(column, value)| {
            let Some(expected) = other.get(column) else { return false };
            match (value.as_f64(), expected.as_f64()) {
                (Some(value), Some(expected)) => (value - expected).abs() <= expected.abs() * 1e-9,
                _ => value == expected,
            }
        })
}

/// The answers of an engine.
fn ask(engine: &str, packages: &Path, files: &str) -> Row {
    let mut script = Command::new("/usr/bin/python3");
    script.arg(file("packaging/fleet/ask.py")).args([engine, files]);
    let output = script.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Records of connections with every fault that the queries ask for, as `handshake record` writes them.
fn record(folder: &Path) -> Vec<Value> {
    let path = folder.join("recorded");
    let named = path.with_extension("jsonl.gz");
    let recorder =
        Running::start(&mut program(&["record", "-o", named.to_str().unwrap()]), TRACING, |_| (), |_| ());
    let recorder = recorder.unwrap_or_else(|reason| panic!("{reason}"));
    // In a network namespace of its own: its records are told from those of other programs by that.
    let netns = thread::spawn(traffic).join().unwrap();
    // What the ring holds is read at the end; the last sockets are destroyed a moment after their closing.
    thread::sleep(Duration::from_millis(500));
    let (status, _) = recorder.end(Signal::SIGTERM);
    assert!(status.success(), "{status}");
    let file = BufReader::new(MultiGzDecoder::new(File::open(&named).unwrap()));
    let records = file.lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let records = records.filter(|record| record["netns"] == netns).collect();
    fs::remove_file(named).unwrap();
    records
}

/// Returns the inode of the network namespace that it makes.
fn traffic() -> u64 {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let old = Tls::start(2, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    let classic = Tls::start(2, &["-tls1_3", "-groups", "X25519"]);
    let new = Tls::start_with(
        Box::leak(post_quantum().into_boxed_path()),
        2,
        &["-tls1_3", "-groups", "X25519MLKEM768"],
    );
    let expired = Tls::start(-1, &["-tls1_3"]);
    for (server, times) in [(&old, 2), (&classic, 3), (&new, 2), (&expired, 2)] {
        (0..times).for_each(|_| drop(server.connect()));
    }
    let other_group = TlsServer::start(2, &["-tls1_3", "-groups", "P-256"]);
    let mut client = Command::new("openssl");
    client.args(["s_client", "-groups", "X25519:P-256", "-servername", "example.org", "-connect"]);
    client.arg(other_group.address.to_string()).stdin(Stdio::null());
    assert!(client.output().unwrap().status.success());

    be_reset();
    close_late();
    overflow_accept_queue();
    exhaust_ports();
    fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

fn be_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for lingers in [true, false, false] {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        if lingers {
            socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(server);
        // The end, or the reset.
        let _ = client.read(&mut [0]);
    }
}

fn exhaust_ports() {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40001").unwrap();
    let listener = TcpListener::bind("127.0.0.1:9").unwrap();
    let address = listener.local_addr().unwrap();
    let _held = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
}

/// The same connections on three hosts: the second has peers in networks of IPv6, the third is at another day
/// and has a kernel that tells how long connections wait for `accept()`, which this one may not.
fn of_three_hosts(records: &[Value]) -> Vec<Value> {
    let mut all = Vec::new();
    for (number, host) in ["web1", "web2", "db1"].into_iter().enumerate() {
        for (place, record) in records.iter().enumerate() {
            let mut record = record.clone();
            record["host"] = json!(host);
            record["boot_id"] = json!(format!("0d4c0a4e-54a5-4a0c-8a0e-00000000000{number}"));
            if number == 1 {
                record["family"] = json!("ipv6");
                // Few services, for the queries show twenty; and networks in every way to write them.
                let addresses = ["2001:db8:0:7::1", "2001:db8:1:2:3:4:5:6", "2001:db8::1", "fd00::2"];
                let address = if record["tls"].is_null() { addresses[place % 4] } else { addresses[0] };
                record["remote"]["addr"] = json!(address);
            }
            if number == 2 {
                let (day, time) = record["time"].as_str().unwrap().split_once('T').unwrap();
                assert_ne!(day, "2031-01-01");
                record["time"] = json!(format!("2031-01-01T{time}"));
                if record["role"] == "server" && record["event"] == "close" {
                    record["open"]["accept_wait_us"] = json!(20_000 + place);
                }
            }
            all.push(record);
        }
    }
    all
}

/// One file a host, as they are collected: of many parts, each compressed by itself.
fn write(folder: &Path, records: &[Value]) {
    let mut hosts = BTreeMap::<&str, Vec<&Value>>::new();
    for record in records {
        hosts.entry(record["host"].as_str().unwrap()).or_default().push(record);
    }
    for (host, records) in hosts {
        let mut file = File::create(folder.join(format!("{host}.jsonl.gz"))).unwrap();
        for part in records.chunks(100) {
            let mut encoder = GzEncoder::new(file, Compression::fast());
            for record in part {
                writeln!(encoder, "{record}").unwrap();
            }
            file = encoder.finish().unwrap();
        }
    }
}
