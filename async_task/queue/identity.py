"""Identifiers made here, before the database sees the row: UUIDv7, and the name of this process."""

import os
import secrets
import socket
from pathlib import Path
from typing import NamedTuple


def worker_name() -> str:
    """A readable name for this process that no other has: host, process id, and eight random hexadecimal digits."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"


class Process(NamedTuple):
    """A process of some machine; `started` tells it from a later one with the same id."""

    host: str
    pid: int
    started: str


def process_started(pid: int) -> str | None:
    """What tells a process from a later one with the same id; None where there is no such process.

    Linux: boot and start time in clock ticks. Elsewhere the empty string: only the id is known there.
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
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + ":" + fields[19]
    except OSError:
        return ""
