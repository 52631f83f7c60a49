"""A client of GnuTLS that does not block: it calls the library again whenever bytes have come.

usage: gnutls.py HOST PORT
"""

import ctypes
import select
import socket
import sys

CLIENT, NONBLOCK = 1 << 1, 1 << 3
CRD_CERTIFICATE = 1
AGAIN = -28

gnutls = ctypes.CDLL("libgnutls.so.30")
gnutls.gnutls_transport_set_int2.restype = None


def check(result):
    if result < 0:
        sys.exit(f"GnuTLS: {result}")


connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.setblocking(False)
session, credentials = ctypes.c_void_p(), ctypes.c_void_p()
check(gnutls.gnutls_init(ctypes.byref(session), CLIENT | NONBLOCK))
check(gnutls.gnutls_certificate_allocate_credentials(ctypes.byref(credentials)))
check(gnutls.gnutls_credentials_set(session, CRD_CERTIFICATE, credentials))
check(gnutls.gnutls_set_default_priority(session))
gnutls.gnutls_transport_set_int2(session, connection.fileno(), connection.fileno())
while (result := gnutls.gnutls_handshake(session)) == AGAIN:
    select.select([connection], [], [], 60)
check(result)
check(gnutls.gnutls_bye(session, 1))
connection.close()
gnutls.gnutls_deinit(session)
