"""GnuTLS as a client. With TLS 1.2 it sends its data before the server's Finished arrives (RFC 7918); with
TLS 1.3 it hands ChangeCipherSpec and Finished to TCP apart."""

import ctypes
import sys
import time

import settings

CLIENT, FALSE_START = 1 << 1, 1 << 8
CREDENTIALS_CERTIFICATE, NAME_DNS = 1, 1
lib = ctypes.CDLL("libgnutls.so.30")
lib.gnutls_record_send.restype = lib.gnutls_record_recv.restype = ctypes.c_ssize_t
lib.gnutls_record_send.argtypes = lib.gnutls_record_recv.argtypes = [
    ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
]


def call(name, *args):
    result = getattr(lib, name)(*args)
    if result < 0:
        raise OSError(f"{name}: {ctypes.c_char_p(lib.gnutls_strerror(result)).value}")
    return result


def connect(settings_, credentials):
    session = ctypes.c_void_p()
    call("gnutls_init", ctypes.byref(session), CLIENT | FALSE_START)
    priority = f"NORMAL:-VERS-ALL:+VERS-TLS{settings_.version}"
    call("gnutls_priority_set_direct", session, priority.encode(), None)
    call("gnutls_credentials_set", session, CREDENTIALS_CERTIFICATE, credentials)
    connection = settings_.connect()
    lib.gnutls_transport_set_int2(session, connection.fileno(), connection.fileno())
    start = time.monotonic_ns()
    call("gnutls_handshake", session)
    taken = time.monotonic_ns() - start
    call("gnutls_record_send", session, settings.REQUEST, len(settings.REQUEST))
    settings.report(taken)
    answer = ctypes.create_string_buffer(4096)
    while call("gnutls_record_recv", session, answer, len(answer)) > 0:
        pass
    call("gnutls_bye", session, 0)
    lib.gnutls_deinit(session)
    connection.close()


if __name__ == "__main__":
    lib.gnutls_strerror.restype = ctypes.c_void_p
    mine, trust = settings.read(), ctypes.c_void_p()
    call("gnutls_certificate_allocate_credentials", ctypes.byref(trust))
    for _ in sys.stdin:
        connect(mine, trust)
