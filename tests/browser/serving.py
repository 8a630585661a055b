"""ASGI applications that answer on loopback, on a thread of this process."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import uvicorn

from elsewhere import await_

T = TypeVar("T")


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address, without a slash at its end."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, ws="none", lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
        thread.start()
        try:
            await_(lambda: server.started or not thread.is_alive(), "the server answers")
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive(), "the server does not end"


def apart(work: Callable[[], T]) -> T:
    """What `work` returns, on a thread of its own: for verbs, which refuse to block the event loop of Playwright."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
