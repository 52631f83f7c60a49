"""Python's ssl as a server that takes its time, `milliseconds`: before it looks at a connection, or in a
callback in the middle of the handshake, where it computes, sleeps, or computes and sleeps for a moment."""

import time

import settings


def compute(milliseconds):
    end = time.monotonic() + milliseconds / 1000
    while time.monotonic() < end:
        pass


def compute_and_sleep(milliseconds):
    compute(milliseconds / 2)
    time.sleep(0.001)
    compute(milliseconds / 2)


def sleep(milliseconds):
    time.sleep(milliseconds / 1000)


CALLBACKS = {"computing": compute, "computing-and-sleeping": compute_and_sleep, "sleeping": sleep}


def serve(mine):
    milliseconds = int(mine.milliseconds)
    context = mine.server()
    if mine.how in CALLBACKS:
        context.sni_callback = lambda *_: CALLBACKS[mine.how](milliseconds)
    listener = mine.listener()
    while True:
        connection, _ = listener.accept()
        if mine.how == "waiting":
            sleep(milliseconds)
        settings.answer(context, connection)


if __name__ == "__main__":
    serve(settings.read())
