"""Python's asyncio: the library has memory BIOs, never the socket."""

import asyncio
import ssl
import sys
import time

import settings


class Resuming(ssl.SSLContext):
    """asyncio has no parameter for a session to resume."""

    saved = None

    def wrap_bio(self, *args, **kwargs):
        return super().wrap_bio(*args, session=self.saved, **kwargs)


async def serve(settings_):
    async def answer(reader, writer):
        await reader.read(4096)
        writer.write(settings.ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, sock=settings_.listener(), ssl=settings_.server())
    await server.serve_forever()


async def connect(settings_):
    context = settings_.client(Resuming)
    for _ in sys.stdin:
        connection = settings_.connect()
        connection.setblocking(False)
        start = time.monotonic_ns()
        try:
            reader, writer = await asyncio.open_connection(
                sock=connection, ssl=context, server_hostname="example.org"
            )
            settings.report(time.monotonic_ns() - start)
            writer.write(settings.REQUEST)
            await reader.read()
            context.saved = writer.get_extra_info("ssl_object").session
            writer.close()
            await writer.wait_closed()
        except (ssl.SSLError, OSError) as error:
            print(error, flush=True)


if __name__ == "__main__":
    mine = settings.read()
    asyncio.run(serve(mine) if mine.role == "server" else connect(mine))
