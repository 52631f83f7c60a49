"""The command line of the tests' own programs: ROLE ADDRESS PORT [NAME=VALUE …]."""

import socket
import ssl
import sys

TCP_FASTOPEN_CONNECT = 30
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n"


class Settings:
    def __init__(self, arguments):
        self.role, self.address, port, *pairs = arguments
        self.port = int(port)
        self.options = dict(pair.split("=", 1) for pair in pairs)

    def __getattr__(self, name):
        return self.options.get(name)

    @property
    def family(self):
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    def limit_version(self, context):
        version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[self.version]
        context.minimum_version = context.maximum_version = version

    def server(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        self.limit_version(context)
        if self.groups == "P-384":
            context.set_ecdh_curve("secp384r1")
        if self.tickets == "no":
            context.options |= ssl.OP_NO_TICKET
        return context

    def client(self, kind=ssl.SSLContext):
        context = kind(ssl.PROTOCOL_TLS_CLIENT)
        if self.trust:
            context.load_verify_locations(self.trust)
        self.limit_version(context)
        return context

    def listener(self):
        listener = socket.socket(self.family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.fast_open == "yes":
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        listener.bind((self.address, self.port))
        listener.listen()
        return listener

    def connect(self):
        client = socket.socket(self.family)
        if self.nodelay != "no":
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.fast_open == "yes":
            client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        client.connect((self.address, self.port))
        return client


def read():
    return Settings(sys.argv[1:])


def report(taken):
    """One line per connection: the duration of the handshake by this program's clock, in microseconds."""
    print(taken // 1000, flush=True)


def answer(context, connection):
    """One blocking conversation of a server."""
    try:
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(4096)
            tls.sendall(ANSWER)
            # A session without an orderly close is not resumed.
            tls.unwrap()
    except (ssl.SSLError, OSError) as error:
        print(error, file=sys.stderr)
