"""The warehouse: an HTTP server in a process of its own. It can be told to fail, or to let callers wait.

    python -m shop.warehouse --port 8765

POST /orders, /couriers   {"number": 7, ...} with an Idempotency-Key: 201 the first time, 200 for a known key
PUT /orders/7/behaviour   {"fail": 2}: answer 503 twice; {"hang": true}: pack, but do not answer until {"hang": false}
GET /received             every request, first to last
GET /parcels              the numbers of the packed orders, first to last

It prints its address when it is ready. With --until-stdin-closes it ends with the process that started it.
"""

import argparse
import contextlib
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Books:
    """The records of the warehouse. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._received: list[dict[str, Any]] = []
        self._parcels: dict[str, int] = {}
        self._failures: dict[int, int] = {}
        self._hanging: set[int] = set()

    def receive(self, path: str, number: int, key: str) -> dict[str, Any]:
        """Record a request. Its `answer` is not known yet."""
        with self._changed:
            entry = {"path": path, "number": number, "key": key, "answer": None}
            self._received.append(entry)
            return entry

    def handle(self, entry: dict[str, Any]) -> int:
        """Pack once for each key, and return the HTTP status. Blocks while the order hangs."""
        number, key = entry["number"], entry["key"]
        with self._changed:
            if self._failures.get(number, 0) > 0:
                self._failures[number] -= 1
                return 503
            is_known = key in self._parcels
            self._parcels.setdefault(key, number)
            self._changed.wait_for(lambda: number not in self._hanging)
            return 200 if is_known else 201

    def behave(self, number: int, wish: dict[str, Any]) -> None:
        with self._changed:
            self._failures[number] = int(wish.get("fail", 0))
            (self._hanging.add if wish.get("hang") else self._hanging.discard)(number)
            self._changed.notify_all()

    def received(self) -> list[dict[str, Any]]:
        with self._changed:
            return [dict(entry) for entry in self._received]

    def parcels(self) -> list[int]:
        with self._changed:
            return list(self._parcels.values())


class Handler(BaseHTTPRequestHandler):
    """The HTTP interface of the warehouse."""

    server: "Warehouse"

    def do_GET(self) -> None:
        answers = {"/received": self.server.books.received, "/parcels": self.server.books.parcels}
        if self.path in answers:
            self._answer(200, answers[self.path]())
        else:
            self._answer(404, {"error": f"there is no {self.path}"})

    def do_PUT(self) -> None:
        _, _, number, _ = self.path.split("/")
        self.server.books.behave(int(number), self._body())
        self._answer(200, {})

    def do_POST(self) -> None:
        entry = self.server.books.receive(
            self.path, int(self._body()["number"]), self.headers.get("Idempotency-Key", "")
        )
        entry["answer"] = status = self.server.books.handle(entry)
        self._answer(status, {"number": entry["number"]})

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: GET /received lists the requests."""

    def _body(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return read

    def _answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except ConnectionError:
            pass  # the caller has died


class Warehouse(ThreadingHTTPServer):
    """The server. `port` 0 takes any free port."""

    daemon_threads = True

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.books = Books()
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m shop.warehouse", description="The warehouse of the example shop.")
    options.add_argument("--port", type=int, default=0, help="0, the default, takes any free port")
    options.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    options.add_argument("--until-stdin-closes", action="store_true")
    return options


def main() -> None:
    """Serve until SIGINT, SIGTERM or, with --until-stdin-closes, the end of standard input."""
    given = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # as the first process of a container it would ignore it
    warehouse = Warehouse(given.port, given.host)
    if given.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    print(warehouse.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        warehouse.serve_forever()


def _end_with_stdin() -> None:
    # Not through sys.stdin: at exit its lock would still belong to this waiting thread.
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
