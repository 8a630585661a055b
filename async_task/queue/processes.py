"""Processes: what tells one from a later one with the same id, and whether it runs."""

import os
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process of some machine; `started` tells it from a later one with the same id."""

    host: str
    pid: int
    started: str


def process_started(pid: int) -> str | None:
    """What tells a process from a later one with the same id; None if there is no such process.

    Linux: boot, start time in clock ticks, and namespace of process ids. Elsewhere the empty string: only the id is
    known there.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        # The command's name stands in parentheses and may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return f"{_boot_id()}:{fields[19]}:{_namespace()}"
    except OSError:
        return ""


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    """Of process ids: containers of one machine may have one host name, and each has a process 1."""
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def has_ended(process: Process) -> bool:
    """Whether a process has certainly ended; False for one that this process cannot see."""
    return is_running(process) is False


def is_running(process: Process) -> bool | None:
    """Whether a process runs; None for one that this process cannot see."""
    try:
        boot, _, namespace = process.started.split(":")
        is_seen = (boot, namespace) == (_boot_id(), _namespace())
    except (OSError, ValueError):
        return None
    return process_started(process.pid) == process.started if is_seen else None
