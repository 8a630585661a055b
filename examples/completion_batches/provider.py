"""A provider of LLM completions in batches: an HTTP server in a process of its own. It is slow, and it has faults.

    python -m completion_batches.provider --port 8766 --state provider.json --fail 0.2 --lose 2 --seed 7

POST /batches               {"prompts": {"1": "Why?"}} with an Idempotency-Key: 201 the first time, 200 for a known key
GET /batches/b-1            {"id": "b-1", "status": "in_progress"}; later "ended", or "canceled"
GET /batches/b-1/results    {"results": {"1": "..."}} once it has ended
DELETE /batches/b-1         cancel it
GET /audit                  all requests and batches, at once and without a fault

Each request but the last needs an `Authorization: Bearer ...`. All that it knows is in the state file, so that it can
be killed and started again. It prints its address when it is ready.
"""

import argparse
import contextlib
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, dict[str, Any]]
BUSY: Answer = (503, {"error": "overloaded, try again later"})


@dataclass(frozen=True, slots=True)
class Faults:
    """`takes`: the mean of the seconds until a batch has ended. `delay`: seconds before each answer. `fail`: the share
    of requests that are answered 503, half of them after they were done. `lose`: the numbers of batches that are
    accepted and forgotten. The same seed draws the same."""

    seed: int = 0
    takes: float = 60.0
    delay: float = 0.0
    fail: float = 0.0
    lose: tuple[int, ...] = ()

    def seconds_of(self, batch: int) -> float:
        return self.takes * self._draw(f"batch {batch}").uniform(0.5, 1.5)

    def of_request(self, number: int) -> str:
        """ "before": 503, and nothing is done. "after": done, and 503 all the same. "": none."""
        drawn = self._draw(f"request {number}").random()
        return "" if drawn >= self.fail else "before" if drawn < self.fail / 2 else "after"

    def _draw(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")


@dataclass
class Ledger:
    """What the provider knows, in its file before anything is answered. Every method may be called from any thread."""

    file: Path
    faults: Faults
    requests: list[dict[str, Any]] = field(default_factory=list)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        if self.file.exists():
            known = json.loads(self.file.read_text())
            self.requests, self.batches = known["requests"], known["batches"]

    def received(self, line: str, key: str) -> int:
        """Write a request down, and return its number. Its answer is not known yet."""
        with self._lock:
            self.requests.append({"request": line, "key": key, "answer": None})
            self._save()
            return len(self.requests)

    def answered(self, number: int, status: int) -> None:
        with self._lock:
            self.requests[number - 1]["answer"] = status
            self._save()

    def create(self, key: str, prompts: dict[str, str]) -> Answer:
        """One batch for each key."""
        with self._lock:
            for known, batch in self.batches.items():
                if batch["key"] == key:
                    return 200, {"id": known}
            number = len(self.batches) + 1
            self.batches[f"b-{number}"] = {
                "key": key, "prompts": prompts, "ends_at": time.time() + self.faults.seconds_of(number),
                "is_lost": number in self.faults.lose, "is_canceled": False,
            }  # fmt: skip
            self._save()
            return 201, {"id": f"b-{number}"}

    def show(self, name: str) -> Answer:
        with self._lock:
            batch = self._find(name)
            return (404, _unknown(name)) if batch is None else (200, {"id": name, "status": _status(batch)})

    def results(self, name: str) -> Answer:
        with self._lock:
            batch = self._find(name)
            if batch is None:
                return 404, _unknown(name)
            if _status(batch) != "ended":
                return 409, {"error": f"{name} has no results: it is {_status(batch)}"}
            return 200, {"results": {one: complete(prompt) for one, prompt in batch["prompts"].items()}}

    def cancel(self, name: str) -> Answer:
        with self._lock:
            batch = self._find(name)
            if batch is None:
                return 404, _unknown(name)
            if _status(batch) == "in_progress":
                batch["is_canceled"] = True
                self._save()
            return 200, {"id": name, "status": _status(batch)}

    def audit(self) -> dict[str, Any]:
        with self._lock:
            batches = {name: {**batch, "status": _status(batch)} for name, batch in self.batches.items()}
            return {"requests": [dict(one) for one in self.requests], "batches": batches}

    def _find(self, name: str) -> dict[str, Any] | None:
        batch = self.batches.get(name)
        return None if batch is None or batch["is_lost"] else batch

    def _save(self) -> None:
        """Replaced as a whole, so that a kill leaves the old file or the new one."""
        written = self.file.with_name(self.file.name + ".new")
        written.write_text(json.dumps({"requests": self.requests, "batches": self.batches}))
        written.replace(self.file)


def complete(prompt: str) -> str:
    """What this provider's model says."""
    return f"An answer in {len(prompt.split())} words to {prompt!r}"


def _status(batch: dict[str, Any]) -> str:
    return "canceled" if batch["is_canceled"] else "ended" if batch["ends_at"] <= time.time() else "in_progress"


def _unknown(name: str) -> dict[str, str]:
    return {"error": f"there is no batch {name}"}


class Handler(BaseHTTPRequestHandler):
    """The HTTP interface of the provider."""

    server: "Provider"

    def do_GET(self) -> None:
        ledger = self.server.ledger
        if self.path == "/audit":
            self._answer(200, ledger.audit())
            return
        name, _, more = self.path.removeprefix("/batches/").partition("/")
        self._serve(lambda: (ledger.results if more == "results" else ledger.show)(name))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._serve(lambda: self.server.ledger.create(self._key, body["prompts"]))

    def do_DELETE(self) -> None:
        self._serve(lambda: self.server.ledger.cancel(self.path.rpartition("/")[2]))

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: GET /audit lists the requests."""

    @property
    def _key(self) -> str:
        return self.headers.get("Idempotency-Key", "")

    def _serve(self, work: Callable[[], Answer]) -> None:
        ledger = self.server.ledger
        number = ledger.received(f"{self.command} {self.path}", self._key)
        fault = ledger.faults.of_request(number)
        status, body = BUSY if fault == "before" else work() if self._is_known else (401, {"error": "no key"})
        if fault == "after":
            status, body = BUSY
        time.sleep(ledger.faults.delay)
        ledger.answered(number, status)
        self._answer(status, body)

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization", "").startswith("Bearer ")

    def _answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        with contextlib.suppress(ConnectionError):  # the caller has died
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)


class Provider(ThreadingHTTPServer):
    """The server, on loopback only. `port` 0 takes any free port."""

    daemon_threads = True

    def __init__(self, port: int, ledger: Ledger) -> None:
        self.ledger = ledger
        super().__init__(("127.0.0.1", port), Handler)


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    options = argparse.ArgumentParser(prog="python -m completion_batches.provider", description="A faulty provider.")
    options.add_argument("--port", type=int, default=8766, help="0 takes any free port; the default is 8766")
    options.add_argument("--state", type=Path, default=Path("provider.json"), help="the file of what it knows")
    options.add_argument("--takes", type=float, default=60, metavar="SECONDS", help="the mean time of a batch")
    options.add_argument("--delay", type=float, default=0, metavar="SECONDS", help="the time before each answer")
    options.add_argument("--fail", type=float, default=0, metavar="SHARE", help="requests answered 503, from 0 to 1")
    options.add_argument("--lose", type=int, default=[], nargs="*", metavar="N", help="forget the N-th batch")
    options.add_argument("--seed", type=int, default=0, help="the same seed draws the same faults")
    given = options.parse_args()
    faults = Faults(given.seed, given.takes, given.delay, given.fail, tuple(given.lose))
    try:
        provider = Provider(given.port, Ledger(given.state, faults))
    except (OSError, ValueError, TypeError, KeyError) as error:  # the port is in use, or the file is of something else
        sys.exit(f"The provider cannot start with port {given.port} and {given.state}: {error}")
    print(f"http://127.0.0.1:{provider.server_address[1]}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        provider.serve_forever()


if __name__ == "__main__":
    main()
