"""The warehouse of the demo: a process that the demo starts, tells how to behave, and asks what it received."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from async_task_cli.faults import UNEXPECTED, Refusal

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Warehouse:
    """A running warehouse. `url`, `pid`."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.pid = process.pid
        self.url = url

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        """Run it in a process of its own, which ends with this block and, in any case, with this process."""
        command = [sys.executable, "-m", "shop.warehouse", "--until-stdin-closes"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                if not url:
                    raise Refusal("the demo's warehouse did not start", UNEXPECTED)
                yield cls(process, url)
            finally:
                process.terminate()

    def will(self, number: int, **behaviour: Any) -> None:
        """How to answer requests for this order from now on: `fail=2` or `hang=True`."""
        self._ask(f"/orders/{number}/behaviour", behaviour)

    def received(self, number: int) -> list[dict[str, Any]]:
        """The requests for this order, first to last."""
        return [entry for entry in self._ask("/received") if entry["number"] == number]

    def parcels(self) -> list[int]:
        """The numbers of the orders that were packed."""
        parcels: list[int] = self._ask("/parcels")
        return parcels

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the address is the one that it printed
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            method="GET" if body is None else "PUT",
        )
        with _opener.open(request, timeout=10) as answer:
            return json.load(answer)
