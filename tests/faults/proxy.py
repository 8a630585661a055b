"""A TCP proxy in front of the database: `python -m faults.proxy PORT` prints its own port.

On standard input: `cut` resets all connections. `stall` forwards nothing more on the open ones, and `resume` does
again. `deaf N` lets the next N COMMITs through, and drops the connection instead of their answers.
"""

import asyncio
import contextlib
import socket
import struct
import sys


class Link:
    """One client and its connection to the server."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.is_deaf = False
        self.may_pass = asyncio.Event()
        self.may_pass.set()

    def reset(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):  # it is closed already
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    def __init__(self, port: int) -> None:
        self._port = port
        self._links: set[Link] = set()
        self._num_deaf = 0

    async def live(self) -> None:
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        print(listening.sockets[0].getsockname()[1], flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while words := (await reader.readline()).decode().split():
            self._obey(*words)

    def _obey(self, word: str, number: str = "1") -> None:
        if word == "deaf":
            self._num_deaf += int(number)
            return
        for link in tuple(self._links):
            {"cut": link.reset, "stall": link.may_pass.clear, "resume": link.may_pass.set}[word]()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, to_server)
        self._links.add(link)
        await asyncio.gather(self._to_server(link, reader, to_server), self._to_client(link, from_server, writer))
        self._links.discard(link)

    async def _to_server(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for data in _chunks(reader):
            await link.may_pass.wait()
            writer.write(data)
            if self._num_deaf and b"COMMIT" in data.upper():
                self._num_deaf -= 1
                link.is_deaf = True
        writer.close()

    async def _to_client(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for data in _chunks(reader):
            await link.may_pass.wait()
            if link.is_deaf:
                link.reset()
                return
            writer.write(data)
        writer.close()


async def _chunks(reader: asyncio.StreamReader):  # type: ignore[no-untyped-def]
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            yield data


if __name__ == "__main__":
    asyncio.run(Proxy(int(sys.argv[1])).live())
