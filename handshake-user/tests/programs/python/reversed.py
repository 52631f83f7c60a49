"""Roles reversed: the end that dials is the TLS server, as in active FTP over TLS. A dialler connects once for
every line of its standard input."""

import ssl
import sys
import time

import settings


def accept(settings_):
    context, listener = settings_.client(), settings_.listener()
    while True:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_hostname="example.org") as tls:
                tls.sendall(settings.REQUEST)
                while tls.recv(4096):
                    pass
        except (ssl.SSLError, OSError) as error:
            print(error, file=sys.stderr)


def dial(settings_):
    context = settings_.server()
    for _ in sys.stdin:
        connection = settings_.connect()
        start = time.monotonic_ns()
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                settings.report(time.monotonic_ns() - start)
                tls.recv(4096)
                tls.sendall(settings.ANSWER)
        except (ssl.SSLError, OSError) as error:
            print(error, flush=True)


if __name__ == "__main__":
    mine = settings.read()
    accept(mine) if mine.role == "server" else dial(mine)
