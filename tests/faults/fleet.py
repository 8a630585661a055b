"""The processes of one part: workers of three kinds, producers, a batch now and then, and the proxy."""

import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from faults import application
from faults.places import Place

LEASE = 2.0
GRACE = 8
PROGRAM = pathlib.Path(sys.executable).parent / "async-task"
TESTS = pathlib.Path(__file__).parents[1]
CLOCK = """#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    int failed = syscall(SYS_clock_gettime, id, t);
    if (!failed && id == CLOCK_REALTIME && getenv("CLOCK_OFF")) t->tv_sec += atol(getenv("CLOCK_OFF"));
    return failed; }"""
"""A library that shifts the wall clock of one process."""


class Fleet:
    """`folder`: for logs and marks. `is_broken`: the control, whose fence is broken."""

    def __init__(self, place: Place, folder: pathlib.Path, *, is_broken: bool, seed: int) -> None:
        self.place = place
        self.folder = folder
        self.marks = folder / "marks"
        for name in ("marks", "marks.void"):
            (folder / name).touch()
        self.environment = {
            **os.environ, "PYTHONPATH": str(TESTS), application.URL: place.url, application.MARKS: str(self.marks),
            application.LEASE: str(LEASE), **({application.IS_BROKEN: "1"} if is_broken else {}),
        }  # fmt: skip
        self._seed = seed
        self._is_broken = is_broken
        self.proxy = None if place.port is None else self._start_proxy(place.port)
        self.can_shift_clocks = place.port is not None and self._make_clock()
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.producers: list[subprocess.Popen[bytes]] = []
        self.is_over = threading.Event()
        self._batches = threading.Thread(target=self._run_batches)

    # Starting.

    def begin(self, rate: float, num_poison: int) -> None:
        """Start the workers, the producers and the batches."""
        self.fill()
        for number in range(2 if self.place.port is None else 3):
            words = [number, rate, num_poison if number == 0 else 0, self._seed]
            name = f"producer {number}"
            self.producers.append(self._start(name, sys.executable, "-m", "faults.producer", *map(str, words)))
        self._batches.start()

    def fill(self) -> None:
        """Start each worker that does not run."""
        for name, (words, environment) in self._recipes().items():
            if name not in self.workers or self.workers[name].poll() is not None:
                self.workers[name] = self._start(name, *words, environment=environment)

    def _recipes(self) -> dict[str, tuple[list[str], dict[str, str]]]:
        work = [str(PROGRAM), "worker", "--app", "faults.application:app", "--grace", f"{GRACE}s"]
        asynchronous = {application.IS_ASYNC: "1", application.URL: self.place.async_url}
        through = {} if self.proxy is None else {application.URL: self._through_proxy()}
        return {
            "supervised": ([*work, "--processes", "2", "--concurrency", "3"], {}),
            "proxied": (work, {**through, **self._clock_off(-1)}),
            "asynchronous": (work, {**asynchronous, **self._clock_off(1)}),
        }

    def _through_proxy(self) -> str:
        return re.sub(r":\d+/", f":{self._proxy_port}/", self.place.url)

    def _clock_off(self, hours: int) -> dict[str, str]:
        if not self.can_shift_clocks:
            return {}
        return {"LD_PRELOAD": f"{self.folder}/clock.so", "CLOCK_OFF": str(hours * 3600)}

    def _start(self, name: str, *words: str, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env=self.environment | (environment or {}),
            )  # fmt: skip

    def _start_proxy(self, port: int) -> "subprocess.Popen[str]":
        with self.log("proxy").open("ab") as log:
            proxy = subprocess.Popen(
                [sys.executable, "-m", "faults.proxy", str(port)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment,
            )  # fmt: skip
        self._proxy_port = int(_piped(proxy.stdout).readline())
        return proxy

    def _make_clock(self) -> bool:
        command = ["cc", "-xc", "-shared", "-fPIC", "-", "-o", f"{self.folder}/clock.so"]
        with contextlib.suppress(OSError):
            return subprocess.run(command, input=CLOCK, text=True, capture_output=True, check=False).returncode == 0
        return False

    def _run_batches(self) -> None:
        while not self.is_over.wait(12):
            self._start("run-batch", str(PROGRAM), "run-batch", "--app", "faults.application:app").wait()

    # Looking.

    def log(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.log"

    def single_pids(self) -> list[int]:
        """The workers without a supervisor."""
        return [one.pid for name, one in self.workers.items() if name != "supervised" and one.poll() is None]

    def child_pids(self) -> list[int]:
        """The worker processes of the supervisor: they have threads, which it has not."""
        found = self.descendants(self.workers["supervised"].pid)
        return [pid for pid in found if len(_listed(f"/proc/{pid}/task")) > 1]

    def descendants(self, pid: int) -> list[int]:
        children = [int(one) for one in _read(f"/proc/{pid}/task/{pid}/children").split()]
        return [*children, *(one for child in children for one in self.descendants(child))]

    def left(self) -> list[int]:
        """The processes of this fleet that still live."""
        pids = [int(one) for one in _listed("/proc") if one.isdigit() and int(one) != os.getpid()]
        return [pid for pid in pids if f"{application.MARKS}={self.marks}" in _read(f"/proc/{pid}/environ")]

    # Ending.

    def say(self, words: str) -> None:
        """To the proxy."""
        if self.proxy is not None:
            pipe = _piped(self.proxy.stdin)
            pipe.write(f"{words}\n")
            pipe.flush()

    def stop_producing(self) -> None:
        """End the producers, wherever they are, and the batches."""
        self.is_over.set()
        for producer in self.producers:
            producer.kill()
            producer.wait()
        if self._batches.ident is not None:
            self._batches.join()

    def end(self) -> list[str]:
        """End all processes; returns what did not end as it should."""
        self.stop_producing()
        odd = [sentence for name in self.workers for sentence in self.terminate(name, wait=False)]
        odd += [sentence for name in self.workers for sentence in self.await_end(name)]
        if self.proxy is not None:
            self.proxy.kill()
            self.proxy.communicate()
        for pid in self.left():
            odd.append(f"a process is left: {_read(f'/proc/{pid}/cmdline')[:80]!r}")
            send(pid, signal.SIGKILL)
        return odd

    def terminate(self, name: str, *, wait: bool = True) -> list[str]:
        self.workers[name].terminate()
        return self.await_end(name) if wait else []

    def await_end(self, name: str) -> list[str]:
        worker = self.workers[name]
        has_begun = f":{worker.pid}:" in _read(str(self.log(name)))  # before that it handles no signal
        try:
            code = worker.wait(GRACE + 30)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            return [f"the {name} worker does not end within {GRACE + 30} s of SIGTERM, and its grace is {GRACE} s"]
        # A poison may have ended it just before.
        expected = {128 + signal.SIGTERM, -signal.SIGKILL, application.POISONED}
        return [f"the {name} worker ended with {code} after SIGTERM"] if has_begun and code not in expected else []


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def chosen(pids: list[int]) -> list[int]:
    """One of them, if there are any."""
    return [random.choice(pids)] if pids else []


def _piped(pipe: IO[str] | None) -> Any:
    assert pipe is not None
    return pipe


def _read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _listed(path: str) -> list[str]:
    try:
        return [one.name for one in pathlib.Path(path).iterdir()]
    except OSError:
        return []
