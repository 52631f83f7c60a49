"""Measures connections of many hosts on their way as traces, through a collector into ClickHouse.

    collector.py ROTEL SENDER FOLDER RATE

FOLDER has a file of records for each host, as simulate.py makes them. SENDER (handshake-user/examples/otlp-fleet.rs)
exports them as the hosts' daemons would, RATE connections a second of each host, or 0: as fast as it goes. ROTEL is
the collector. ClickHouse is within this process, behind an HTTP server that takes what the collector inserts.
`cargo xtask fleet --collector` runs it, with all of them installed.
"""

import http.server
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

TICKS = os.sysconf("SC_CLK_TCK")
MAP = "Map(LowCardinality(String), String)"
# The columns of the OpenTelemetry collector's exporter to ClickHouse, in the order in which rotel inserts them.
COLUMNS = f"""Timestamp DateTime64(9), TraceId String, SpanId String, ParentSpanId String, TraceState String,
    SpanName LowCardinality(String), SpanKind LowCardinality(String), ServiceName LowCardinality(String),
    ResourceAttributes {MAP}, ScopeName String, ScopeVersion String, SpanAttributes {MAP}, Duration UInt64,
    StatusCode LowCardinality(String), StatusMessage String,
    `Events.Timestamp` Array(DateTime64(9)), `Events.Name` Array(LowCardinality(String)), `Events.Attributes` Array({MAP}),
    `Links.TraceId` Array(String), `Links.SpanId` Array(String), `Links.TraceState` Array(String),
    `Links.Attributes` Array({MAP})"""
TABLE = f"""CREATE TABLE otel.otel_traces ({COLUMNS}) ENGINE = MergeTree PARTITION BY toDate(Timestamp)
    ORDER BY (ServiceName, SpanName, toDateTime(Timestamp)) SETTINGS default_compression_codec = 'ZSTD(1)'"""
# Some of queries.sql, to the spans.
QUESTIONS = {
    "slowest_services": """SELECT SpanAttributes['server.address'] AS service, SpanKind AS role, count() AS connections,
        quantileExactInclusive(0.99)(toUInt64(SpanAttributes['handshake.setup.duration_us'])) / 1000 AS p99_ms
        FROM otel.otel_traces WHERE SpanAttributes['handshake.setup.duration_us'] != ''
        GROUP BY service, role ORDER BY p99_ms DESC LIMIT 20""",
    "resets_by_peer": """SELECT SpanAttributes['server.address'] AS service, SpanKind AS role,
        countIf(SpanAttributes['handshake.close.style'] = 'reset_received') AS resets, count() AS connections
        FROM otel.otel_traces WHERE SpanAttributes['handshake.close.style'] != ''
        GROUP BY service, role HAVING resets > 0 ORDER BY resets DESC LIMIT 20""",
}


class Engine:
    """ClickHouse, for one question or insertion at a time."""

    def __init__(self, folder):
        from chdb import session

        self.folder = folder
        self.session = session.Session(f"{folder}/clickhouse")
        self.session.query("CREATE DATABASE otel")
        self.session.query("USE otel")
        self.session.query(TABLE)
        self.lock = threading.Lock()
        self.inserts = 0
        self.inserting = 0.0
        # Insertions whose answer the collector did not wait for.
        self.unheard = 0

    def insert(self, query, rows):
        """Inserts rows of RowBinary as the collector asked for it: "INSERT INTO table (columns) FORMAT RowBinary"."""
        into = query.split("FORMAT")[0]
        with self.lock:
            begin = time.monotonic()
            file = pathlib.Path(self.folder, "rows")
            file.write_bytes(rows)
            self.session.query(f"{into} SELECT * FROM file('{file}', RowBinary, $${COLUMNS}$$)")
            self.inserts += 1
            self.inserting += time.monotonic() - begin

    def ask(self, query):
        with self.lock:
            return json.loads(str(self.session.query(
                query + " SETTINGS output_format_json_quote_64bit_integers = 0", "JSON")))["data"]


def serve(engine):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["query"][0]
            rows = self.body()
            try:
                engine.insert(query, rows)
                status, text = 200, b""
            except Exception as error:
                print(f"collector.py: {error}", file=sys.stderr)
                status, text = 500, str(error).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                engine.unheard += 1

        def body(self):
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers["Content-Length"]))
            rows = b""
            while length := int(self.rfile.readline(), 16):
                rows += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return rows

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def cpu_seconds(pid):
    """User and system time."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def free_ports(count):
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for it in sockets:
        it.bind(("127.0.0.1", 0))
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


def main(rotel, sender, folder, rate):
    hosts = len(list(pathlib.Path(folder).iterdir()))
    # Of each host a file and a connection are open, at both ends.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(dir=pathlib.Path(folder).parent) as place:
        engine = Engine(place)
        server = serve(engine)
        grpc, port = free_ports(2)
        collector = subprocess.Popen(
            [rotel, "start", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--otlp-http-endpoint", f"127.0.0.1:{port}",
             "--exporter", "clickhouse", "--clickhouse-exporter-compression", "none",
             "--clickhouse-exporter-async-insert", "false",
             "--clickhouse-exporter-endpoint", f"http://127.0.0.1:{server.server_port}"],
            stdout=subprocess.DEVNULL)
        try:
            time.sleep(1)
            measure(engine, collector, [sender, f"http://127.0.0.1:{port}", folder, rate], hosts)
        finally:
            collector.terminate()
            collector.wait()
            engine.session.close()


def measure(engine, collector, sender, hosts):
    own = cpu_seconds(os.getpid())
    begin = time.monotonic()
    process = subprocess.Popen(sender, stdout=subprocess.PIPE)
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, f"{sender[0]}: {status}"
    sent = json.loads(said)
    count = "SELECT uniqExact(TraceId, SpanId) AS spans, count() AS rows FROM otel.otel_traces"
    # What is still in the collector.
    spans, last = 0, time.monotonic()
    while time.monotonic() - last < 10 and spans < sent["spans"] - sent["dropped"]:
        time.sleep(0.25)
        before, spans = spans, engine.ask(count)[0]["spans"]
        if spans != before:
            last = time.monotonic()
    took = last - begin
    # What comes twice comes later.
    time.sleep(2)
    twice = engine.ask(count)[0]["rows"] - spans
    assert spans, "nothing arrived"
    million = 1e6 / sent["connections"]
    print(f"collector: {sent['connections']} connections of {hosts} hosts: {sent['spans']} spans, {sent['dropped']} not "
          f"taken; {spans} in ClickHouse after {took:.1f} s ({sent['seconds']:.1f} s to send), {spans / took:.0f} spans/s, "
          f"{engine.inserts} inserts, of {engine.unheard} of which the collector did not wait for the end; {twice} spans twice")
    print(f"collector: CPU seconds a million connections: hosts {(used.ru_utime + used.ru_stime) * million:.0f}, "
          f"collector {cpu_seconds(collector.pid) * million:.0f}, "
          f"ClickHouse {(cpu_seconds(os.getpid()) - own) * million:.0f} (of the time, inserting {engine.inserting:.1f} s); "
          f"memory of the collector: {resident_mib(collector.pid):.0f} MiB")
    with engine.lock:
        engine.session.query("OPTIMIZE TABLE otel.otel_traces FINAL")
    size = engine.ask("SELECT sum(rows) AS rows, sum(bytes_on_disk) AS bytes FROM system.parts "
                      "WHERE active AND database = 'otel'")[0]
    print(f"collector: {size['bytes'] / size['rows']:.1f} bytes a span on disk, "
          f"{size['bytes'] / sent['connections']:.0f} a connection")
    for name, query in QUESTIONS.items():
        begin = time.monotonic()
        answer = len(engine.ask(query))
        print(f"collector: {name}: {time.monotonic() - begin:.2f} s, {answer} rows")


if __name__ == "__main__":
    main(*sys.argv[1:])
