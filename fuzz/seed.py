#!/usr/bin/env python3
"""Writes the handshakes of handshake-common/tests/corpus as seeds of both targets: then `cargo fuzz run walk`."""
from pathlib import Path

here = Path(__file__).parent
for target in ("walk", "hello"):
    (here / "corpus" / target).mkdir(parents=True, exist_ok=True)
for file in (here.parent / "handshake-common/tests/corpus").glob("*.txt"):
    streams, packets, acked = {">": b"", "<": b""}, [], {}
    for line in file.read_text().splitlines()[1:]:
        way, _, _, ack, payload = line.split(" ")
        payload = bytes.fromhex(payload.strip("-"))
        streams[way] += payload
        flags = (way == ">") | (2 if acked.get(way) != ack else 0)
        acked[way] = ack
        packets.append(bytes([flags, 0]) + len(payload).to_bytes(2, "big") + payload)
    for local in (0, 4):
        data = b"".join(packets)
        (here / f"corpus/walk/{file.stem}-{local}").write_bytes(bytes([data[0] | local]) + data[1:])
    for way, name in ((">", "client"), ("<", "server")):
        (here / f"corpus/hello/{file.stem}-{name}").write_bytes(b"\x20" + streams[way])
