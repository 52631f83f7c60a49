"""Python's ssl as a server that takes its time, `milliseconds`: before it looks at a connection, or computing
in the middle of the handshake."""

import time

import settings


def compute(milliseconds):
    end = time.monotonic() + milliseconds / 1000
    while time.monotonic() < end:
        pass


def serve(mine):
    milliseconds = int(mine.milliseconds)
    context = mine.server()
    if mine.how == "computing":
        context.sni_callback = lambda *_: compute(milliseconds)
    listener = mine.listener()
    while True:
        connection, _ = listener.accept()
        if mine.how == "waiting":
            time.sleep(milliseconds / 1000)
        settings.answer(context, connection)


if __name__ == "__main__":
    serve(settings.read())
