"""Python's ssl on blocking sockets. A client connects once for every line of its standard input."""

import ssl
import sys
import time

import settings


def serve(settings_):
    context = settings_.server()
    listener = settings_.listener()
    while True:
        connection, _ = listener.accept()
        settings.answer(context, connection)


def connect(settings_):
    context, session = settings_.client(), None
    for _ in sys.stdin:
        connection = settings_.connect()
        start = time.monotonic_ns()
        try:
            with context.wrap_socket(connection, server_hostname="example.org", session=session) as tls:
                settings.report(time.monotonic_ns() - start)
                tls.sendall(settings.REQUEST)
                while tls.recv(4096):
                    pass
                session = tls.session
                tls.unwrap()
        except (ssl.SSLError, OSError) as error:
            print(error, flush=True)


if __name__ == "__main__":
    mine = settings.read()
    serve(mine) if mine.role == "server" else connect(mine)
