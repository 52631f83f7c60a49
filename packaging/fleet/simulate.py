"""Makes a day of many hosts out of the records of one, and measures what the engines do with it.

    simulate.py duckdb|clickhouse|none RECORDED HOSTS CONNECTIONS FOLDER

Every connection is one of the recorded ones, with all its records: on another host, at another time of the day, with
another port, peer and process, and with durations up to a fifth longer or shorter. Half of them have TLS. FOLDER gets
one file a host, unless it exists. `cargo xtask fleet`
runs it, with the engines installed.
"""

import collections
import datetime
import gzip
import json
import pathlib
import random
import sys
import time

import ask

FORM = "%Y-%m-%dT%H:%M:%S.%fZ"
# Yesterday: a table deletes what is old.
DAY = datetime.datetime.combine(datetime.date.today(), datetime.time()) - datetime.timedelta(days=1)


def recorded(file):
    """Connections: their records, with the time of each from the first of them on."""
    connections = collections.defaultdict(list)
    with gzip.open(file, "rt") as lines:
        for line in lines:
            record = json.loads(line)
            connections[record["id"]].append((datetime.datetime.strptime(record["time"], FORM), record))
    return [[(at - records[0][0], record) for at, record in records] for records in connections.values()]


def varied(value, numbers):
    """The same with other durations."""
    if not isinstance(value, dict):
        return value
    return {
        key: round(inner * numbers.uniform(0.8, 1.2)) if key.endswith("_us") and inner else varied(inner, numbers)
        for key, inner in value.items()
    }


def elsewhere(records, begin, host, number, numbers):
    """A connection of another host at another time."""
    peer = f"10.{numbers.randrange(64)}.{numbers.randrange(256)}.{numbers.randrange(1, 255)}"
    port = numbers.randrange(32768, 61000)
    pid = numbers.randrange(1000, 100000)
    for later, record in records:
        at = begin + later
        made = varied(record, numbers) | {
            "time": at.strftime(FORM),
            "host": f"host{host:06}",
            "boot_id": f"00000000-0000-4000-8000-{host:012x}",
            "id": f"{number:x}",
        }
        if "remote" in made:
            made["remote"]["addr"] = peer
            made["local" if record.get("role") == "client" else "remote"]["port"] = port
        if "process" in made:
            made["process"]["pid"] = pid
        yield at, made


def make(connections, hosts, count, folder):
    numbers = random.Random(1)
    with_tls = [it for it in connections if any("tls" in record for _, record in it)]
    kinds = [with_tls, [it for it in connections if it not in with_tls]]
    for host in range(hosts):
        own = count * (host + 1) // hosts - count * host // hosts
        made = []
        for number in range(own):
            begin = DAY + datetime.timedelta(seconds=numbers.random() * 86400)
            made += elsewhere(numbers.choice(kinds[number % 2]), begin, host, number, numbers)
        made.sort(key=lambda it: it[0])
        with gzip.open(folder / f"host{host:06}.jsonl.gz", "wt", compresslevel=6) as file:
            for _, record in made:
                file.write(json.dumps(record, separators=(",", ":")) + "\n")


def size(files):
    """Records, and bytes before compression."""
    count = total = 0
    for file in files:
        with gzip.open(file) as lines:
            for line in lines:
                count += 1
                total += len(line)
    return count, total


def main(engine, file, hosts, count, folder):
    folder = pathlib.Path(folder)
    if not folder.exists():
        folder.mkdir(parents=True)
        make(recorded(file), int(hosts), int(count), folder)
    files = sorted(folder.glob("*.jsonl.gz"))
    records, plain = size(files)
    packed = sum(file.stat().st_size for file in files)
    print(f"{count} connections of {len(files)} hosts: {records} records, "
          f"{plain / records:.0f} bytes each, {packed / records:.0f} compressed")

    if engine == "none":
        return
    begin = time.monotonic()
    asked = {"duckdb": ask.DuckDb, "clickhouse": ask.ClickHouse}[engine](f"{folder}/*.jsonl.gz")
    took = time.monotonic() - begin
    if engine == "clickhouse":
        asked.session.query("OPTIMIZE TABLE handshake.records FINAL")
        parts = asked.ask("SELECT sum(rows) AS rows, sum(bytes_on_disk) AS bytes FROM system.parts "
                          "WHERE active AND database = 'handshake' AND table = 'records'")[0]
        assert parts["rows"] == records, f"{parts['rows']} rows"
        print(f"clickhouse: loaded in {took:.1f} s, {records / took:.0f} records/s; "
              f"{parts['bytes'] / records:.1f} bytes a record on disk")
    for name, query in ask.statements("queries.sql", ""):
        begin = time.monotonic()
        rows = len(asked.ask(query))
        print(f"{engine}: {name}: {time.monotonic() - begin:.2f} s, {rows} rows")


if __name__ == "__main__":
    main(*sys.argv[1:])
