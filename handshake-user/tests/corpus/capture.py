#!/usr/bin/env python3
"""Captures the corpus again: real handshakes of real programs, as packets on a loopback device of its own.

Run as root: `unshare --net ./capture.py [NAME …]`. Needs openssl, gnutls-bin, curl and psql; OPENSSL35 is the
command of an OpenSSL 3.5 or newer (else the post-quantum files are left as they are).

One file per connection, one line per packet: direction (> from the client), microseconds, sequence and acknowledgement
number of the payload (both relative to the first byte of each stream), payload in hex or `-`.
"""
import contextlib, ctypes, fcntl, os, socket, ssl, struct, subprocess, sys, tempfile, threading, time
from pathlib import Path

HERE = Path(__file__).parent
PORT = 4433
SO_TIMESTAMPNS = 35
OPENSSL35 = os.environ.get("OPENSSL35")
work = Path(tempfile.mkdtemp())


def sh(command):
    return subprocess.run(command, shell=True, cwd=work, stdin=subprocess.DEVNULL, timeout=20,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def loopback():
    """Up, with packets as small as on Ethernet: ETHTOOL_STSO, _SGSO and _SGRO off."""
    sh("ip link set lo mtu 1500 up")
    with socket.socket() as s:
        for command in (0x1F, 0x24, 0x2C):
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(s, 0x8946, struct.pack("16sQ", b"lo", ctypes.addressof(value)))


class Capture(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self.socket.bind(("lo", 0x0800))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.packets, self.begin = [], None

    def run(self):
        while True:
            packet, [(_, _, stamp)], _, address = self.socket.recvmsg(65536, 64)
            if address[2] == socket.PACKET_HOST and packet[9] == 6:
                seconds, nanoseconds = struct.unpack("qq", stamp)
                self.packets.append((seconds * 1_000_000 + nanoseconds // 1000, packet))

    def write(self, name, title):
        """Keeps the last connection to PORT."""
        time.sleep(0.2)
        rows, first, zero, peer = [], {}, 0, None
        for at, packet in self.packets:
            tcp = packet[(packet[0] & 15) * 4:struct.unpack(">H", packet[2:4])[0]]
            source, target, seq, ack, offset, flags = struct.unpack(">HHIIBB", tcp[:14])
            if PORT not in (source, target):
                continue
            syn = flags & 2
            if syn and not flags & 16:
                rows, first, zero, peer = [], {">": seq + 1}, at, source
            if peer not in (source, target):
                continue
            direction, other = ("<", ">") if source == PORT else (">", "<")
            if syn:
                first[direction] = seq + 1
            payload = tcp[(offset >> 4) * 4:]
            if flags & 6 and not payload:
                continue
            seq, ack = (seq + bool(syn) - first[direction]) % 2**32, (ack - first.get(other, ack)) % 2**32
            rows.append(f"{direction} {at - zero} {seq} {ack} {payload.hex() or '-'}")
        assert rows, name
        (HERE / f"{name}.txt").write_text(f"# {title}\n" + "\n".join(rows) + "\n")


def serve(command, port=PORT):
    process = subprocess.Popen(command, shell=True, cwd=work, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, preexec_fn=os.setsid)
    for _ in range(100):
        time.sleep(0.05)
        sockets = [line.split() for table in ("tcp", "tcp6") for line in open(f"/proc/net/{table}")]
        if any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in sockets):
            return process
    raise TimeoutError(f"nothing listens on port {port}: {command}")


def stop(process):
    os.killpg(process.pid, 9)
    process.wait()
    time.sleep(0.1)


def stub(answer, greeting=b"", before=0, tls=True):
    """A plaintext server of one connection that answers `before` requests and then speaks TLS."""
    listener = socket.create_server(("127.0.0.1", PORT))

    def run():
        peer, _ = listener.accept()
        listener.close()
        peer.sendall(greeting)
        for _ in range(before):
            peer.recv(4096)
            peer.sendall(answer)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(work / "cert.pem", work / "key.pem")
            try:
                with context.wrap_socket(peer, server_side=True) as inner:
                    inner.recv(4096)
            except OSError:
                pass
        peer.close()

    threading.Thread(target=run, daemon=True).start()


def far_away(command):
    """A server 20 ms away: only then does a client have the time for a false start."""
    running.append(serve(command.replace(f"{PORT}", f"{PORT + 1}"), PORT + 1))
    listener = socket.create_server(("127.0.0.1", PORT))

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(0.02)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def run():
        client, _ = listener.accept()
        listener.close()
        server = socket.create_connection(("127.0.0.1", PORT + 1))
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        pump(server, client)

    threading.Thread(target=run, daemon=True).start()


def false_start():
    """GnuTLS sends application data before the server's Finished with GNUTLS_ENABLE_FALSE_START."""
    tls = ctypes.CDLL("libgnutls.so.30")
    session, credentials = ctypes.c_void_p(), ctypes.c_void_p()
    tls.gnutls_certificate_allocate_credentials(ctypes.byref(credentials))
    tls.gnutls_init(ctypes.byref(session), (1 << 1) | (1 << 8))
    tls.gnutls_priority_set_direct(session, b"NORMAL:-VERS-ALL:+VERS-TLS1.2", None)
    tls.gnutls_credentials_set(session, 1, credentials)
    with socket.create_connection(("127.0.0.1", PORT)) as peer:
        tls.gnutls_transport_set_int2(session, peer.fileno(), peer.fileno())
        assert tls.gnutls_handshake(session) == 0
        tls.gnutls_record_send(session, b"GET / HTTP/1.0\r\n\r\n", 18)
        time.sleep(0.3)


S = "openssl s_server -quiet -port 4433 -cert cert.pem -key key.pem"
C = "(sleep 0.3; echo Q; sleep 0.1) | timeout 5 openssl s_client -connect 127.0.0.1:4433 -servername example.org"
ONCE = f"{C} -sess_out session.pem"
AGAIN = f"{C} -sess_in session.pem"
EARLY = f"{AGAIN} -early_data early.txt"


def older():
    """Backdates the session file: the server then accepts the session, but no early data (RFC 8446 §8.3)."""
    import base64
    lines = (work / "session.pem").read_text().splitlines()
    data = bytearray(base64.b64decode("".join(lines[1:-1])))
    for back in range(10):
        stamp = struct.pack(">I", int(time.time()) - back)
        if (at := data.find(stamp)) >= 0:
            data[at:at + 4] = struct.pack(">I", int(time.time()) - back - 100)
            break
    text = base64.b64encode(data).decode()
    (work / "session.pem").write_text("\n".join([lines[0], *[text[i:i + 64] for i in range(0, len(text), 64)],
                                                 lines[-1], ""]))


def fresh_early(server):
    """Restarts the server between the two connections."""
    return [ONCE, lambda: stop(running.pop()), lambda: running.append(serve(server)), EARLY]


running = []
# name: what it is, server, clients in turn (the last connection is kept)
CASES = {
    "tls12_full": ("TLS 1.2 full, openssl, ALPN", f"{S} -tls1_2 -alpn h2", [f"{C} -tls1_2 -alpn h2,http/1.1"]),
    "tls12_ticket": ("TLS 1.2 resumed by a ticket", f"{S} -tls1_2", [f"{C} -tls1_2 -reconnect"]),
    "tls12_session_id": ("TLS 1.2 resumed by its session id", f"{S} -tls1_2 -no_ticket",
                         [f"{C} -tls1_2 -no_ticket -reconnect"]),
    "tls12_ticket_refused": ("TLS 1.2, ticket of another server", f"{S} -tls1_2",
                             [f"{ONCE} -tls1_2", lambda: stop(running.pop()),
                              lambda: running.append(serve(f"{S} -tls1_2")), f"{AGAIN} -tls1_2"]),
    "tls12_client_cert": ("TLS 1.2 with a client certificate", f"{S} -tls1_2 -Verify 1",
                          [f"{C} -tls1_2 -cert cert.pem -key key.pem"]),
    "tls12_fragments": ("TLS 1.2, records of 512 bytes", f"{S} -tls1_2 -max_send_frag 512",
                        [f"{C} -tls1_2 -max_send_frag 512"]),
    "tls12_rsa": ("TLS 1.2, RSA key exchange, CBC", f"{S} -tls1_2", [f"{C} -tls1_2 -cipher AES128-SHA"]),
    "tls12_gnutls": ("TLS 1.2, gnutls-cli, session id resumed",
                     "gnutls-serv -q -p 4433 --x509certfile cert.pem --x509keyfile key.pem",
                     ["(sleep 0.2; echo) | timeout 5 gnutls-cli --insecure -r -p 4433 127.0.0.1 "
                      "--priority NORMAL:-VERS-ALL:+VERS-TLS1.2"]),
    "tls12_false_start": ("TLS 1.2 false start, GnuTLS", lambda: far_away(f"{S} -tls1_2"), [false_start]),
    "tls13_full": ("TLS 1.3 full, openssl", S, [C]),
    "tls13_curl": ("TLS 1.3 full, curl", f"{S} -www",
                   ["curl -sk --resolve example.org:4433:127.0.0.1 https://example.org:4433/"]),
    "tls13_gnutls": ("TLS 1.3 resumed, gnutls-cli",
                     "gnutls-serv -q -p 4433 --x509certfile cert.pem --x509keyfile key.pem",
                     ["(sleep 0.3; echo) | timeout 5 gnutls-cli --insecure -r --waitresumption -p 4433 127.0.0.1"]),
    "tls13_no_compat": ("TLS 1.3 full without ChangeCipherSpec", f"{S} -no_middlebox", [f"{C} -no_middlebox"]),
    "tls13_hello_retry": ("TLS 1.3 HelloRetryRequest", f"{S} -groups P-384", [f"{C} -groups X25519:P-384"]),
    "tls13_hello_retry_no_compat": ("TLS 1.3 HelloRetryRequest without ChangeCipherSpec",
                                    f"{S} -groups P-384 -no_middlebox",
                                    [f"{C} -groups X25519:P-384 -no_middlebox"]),
    "tls13_client_cert": ("TLS 1.3 with a client certificate", f"{S} -Verify 1",
                          [f"{C} -cert cert.pem -key key.pem"]),
    "tls13_no_client_cert": ("TLS 1.3, the client has no certificate", f"{S} -verify 1", [C]),
    "tls13_psk": ("TLS 1.3 resumed", S, [ONCE, AGAIN]),
    "tls13_aes128": ("TLS 1.3 full, TLS_AES_128_GCM_SHA256", S, [f"{C} -ciphersuites TLS_AES_128_GCM_SHA256"]),
    "tls13_ccm8": ("TLS 1.3 resumed, TLS_AES_128_CCM_8_SHA256, tags of 8 bytes",
                   f"{S} -ciphersuites TLS_AES_128_CCM_8_SHA256 -cipher ALL:@SECLEVEL=0",
                   [f"{C} -ciphersuites TLS_AES_128_CCM_8_SHA256 -cipher ALL:@SECLEVEL=0"]),
    "tls13_fragments": ("TLS 1.3, records of 512 bytes", f"{S} -max_send_frag 512", [f"{C} -max_send_frag 512"]),
    "early_data_accepted": ("TLS 1.3 early data accepted", f"{S} -early_data", [ONCE, EARLY]),
    "early_data_rejected": ("TLS 1.3 early data rejected, session resumed", f"{S} -early_data -no_anti_replay",
                            [ONCE, older, EARLY]),
    "early_data_rejected_full": ("TLS 1.3 early data rejected with the session", f"{S} -early_data",
                                 fresh_early(f"{S} -early_data")),
    "early_data_hello_retry": ("TLS 1.3 early data rejected by HelloRetryRequest", f"{S} -early_data -groups P-384",
                               [f"{ONCE} -groups X25519:P-384", f"{EARLY} -groups X25519:P-384"]),
    "smtp_starttls": ("SMTP STARTTLS", lambda: stub(b"250-me\r\n250 STARTTLS\r\n", b"220 me ESMTP\r\n", 2),
                      [f"{C} -starttls smtp"]),
    "postgresql": ("PostgreSQL SSLRequest, psql", lambda: stub(b"S", before=1),
                   ["timeout 5 psql 'host=127.0.0.1 port=4433 user=u dbname=d sslmode=require'"]),
    "alert_version": ("alert protocol_version", f"{S} -tls1_3", [f"{C} -tls1_2"]),
    "alert_unknown_ca_12": ("TLS 1.2, the client does not trust the server", f"{S} -tls1_2",
                            [f"{C} -tls1_2 -verify_return_error"]),
    "alert_unknown_ca_13": ("TLS 1.3, the client does not trust the server", S, [f"{C} -verify_return_error"]),
    "alert_no_cipher": ("alert handshake_failure", f"{S} -tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256",
                        [f"{C} -tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384"]),
    "http_to_tls": ("plain HTTP to a TLS port", S, ["timeout 2 curl -s http://127.0.0.1:4433/"]),
    "tls_to_http": ("TLS to a plain HTTP port", lambda: stub(b"HTTP/1.1 400 Bad Request\r\n\r\n", before=1, tls=False),
                    [C]),
}
if OPENSSL35:
    S35, C35 = S.replace("openssl", OPENSSL35, 1), C.replace("openssl", OPENSSL35, 1)
    CASES |= {
        "post_quantum": ("TLS 1.3, X25519MLKEM768, ClientHello in two segments", S35, [C35]),
        "post_quantum_fragments": ("TLS 1.3, X25519MLKEM768, hellos in records of 512 bytes",
                                   f"{S35} -max_send_frag 512", [f"{C35} -max_send_frag 512"]),
    }


def main():
    loopback()
    sh("openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 3650 -subj /CN=example.org")
    (work / "early.txt").write_text("GET / HTTP/1.0\r\n\r\n")
    capture = Capture()
    capture.start()
    for name in sys.argv[1:] or CASES:
        title, server, clients = CASES[name]
        capture.packets.clear()
        if callable(server):
            server()
        else:
            running.append(serve(server))
        for client in clients:
            client() if callable(client) else sh(client)
        capture.write(name, title)
        while running:
            stop(running.pop())


if __name__ == "__main__":
    main()
