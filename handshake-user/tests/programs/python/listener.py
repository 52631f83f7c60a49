"""A server with a listening socket, which sends each client the id of the process that accepted it.

listener.py single|mptcp|prefork|daemonize|activate ADDRESS PORT

single: one process, in a group (SO_REUSEPORT). mptcp: the same with Multipath TCP. prefork: two forked
workers, which call themselves otherwise, accept. daemonize: the process that called listen() ends after
fork(). activate: it passes the socket to another program, as systemd does, and keeps it.

All of them end with their standard input.
"""

import os
import socket
import sys
import threading


def end_with_input():
    while os.read(0, 1):
        pass
    os._exit(0)


def be_called(name):
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)


def serve(listener):
    threading.Thread(target=end_with_input, daemon=True).start()
    while True:
        connection, _ = listener.accept()
        connection.sendall(str(os.getpid()).encode())
        # The client closes first, so that its port is the one in TIME_WAIT.
        connection.recv(1)
        connection.close()


def listen(address, port, protocol):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if address == "::":
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((address, int(port)))
    listener.listen(16)
    return listener


mode = sys.argv[1]
if mode == "activated":
    assert os.environ["LISTEN_FDS"] == "1"
    be_called("activated")
    serve(socket.socket(fileno=3))
listener = listen(*sys.argv[2:4], socket.IPPROTO_MPTCP if mode == "mptcp" else socket.IPPROTO_TCP)
if mode in ("single", "mptcp"):
    serve(listener)
elif mode == "prefork":
    for _ in range(2):
        if os.fork() == 0:
            be_called("a worker")
            serve(listener)
    end_with_input()
elif mode == "daemonize":
    if os.fork() == 0:
        serve(listener)
elif mode == "activate":
    if os.fork() == 0:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.execve(sys.executable, [sys.executable, sys.argv[0], "activated"], {**os.environ, "LISTEN_FDS": "1"})
    end_with_input()
