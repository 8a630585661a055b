"""The fingerprint of an error: a short id that errors of one cause share, computed once, when their event is written.

It is made of the target, the class of the exception, its message without what differs from call to call, and the
innermost frames of the user's own code: files and functions without line numbers, so that another release of the same
code has the same fingerprint.
"""

import functools
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePath

from async_task.error_text import Failure
from async_task.outcomes import error_alone

LOST = ("crash", "loss")
"""Kinds of event that stand for the exception of a start whose process was lost."""
DIGITS = 12
"""Hexadecimal digits of a fingerprint."""
MOST_FRAMES = 3
"""How many frames count: the innermost ones."""
_UUID = re.compile(r"\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b", re.IGNORECASE)
_WORKER = re.compile(r"[\w.-]+:\d+:[0-9a-f]{8}\b")
_QUOTED = re.compile(r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`""")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:[.,:]\d+)*", re.IGNORECASE)
_EXCEPTION = re.compile(r"([A-Za-z_][\w.<>]*)(?:: (.*)|$)", re.DOTALL)
_FRAME = re.compile(r'^[ |]*File "([^"\n]+)", line \d+, in (.+)$', re.MULTILINE)
_HEAD = "Traceback (most recent call last):"
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]|^<")


def fingerprint_of(target: str, failure: Failure) -> str:
    """Of what a call of `target` raised."""
    exception, message = parsed("error", failure.summary)
    return _digest(target, exception, message, *own_frames(failure.trace))


def fingerprint_of_loss(target: str, kind: str, message: str) -> str:
    """Of a start that was lost with its process; `kind` is one of LOST."""
    return _digest(target, kind, normalised(message))


def own_frames(trace: str) -> list[str]:
    """The innermost frames of the last traceback in `trace` that are neither of this library nor installed nor of
    Python, each as its folder, file and function."""
    last = trace.rpartition(_HEAD)[2] if _HEAD in trace else trace.rpartition("\n\n")[2]
    frames = [f"{_place(file)}:{name}" for file, name in _FRAME.findall(last) if not _is_foreign(file)]
    return list(_without_repeats(frames))[-MOST_FRAMES:]


def parsed(kind: str, message: str | None) -> tuple[str, str]:
    """The exception and the normalised message of an error, from what its event says."""
    first = (message or "").partition("\n")[0]
    if kind in LOST:
        return kind, normalised(first)
    first = error_alone(first)
    found = _EXCEPTION.fullmatch(first)
    return (found[1], normalised(found[2] or "")) if found else ("", normalised(first))


def normalised(message: str) -> str:
    """`message` without what differs from call to call."""
    for pattern, instead in ((_UUID, "UUID"), (_WORKER, "WORKER"), (_QUOTED, "'...'"), (_NUMBER, "N")):
        message = pattern.sub(instead, message)
    return message


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:DIGITS]


def _place(file: str) -> str:
    """The file with its folder: what is above differs between machines and releases."""
    return "/".join(PurePath(file).parts[-2:])


def _is_foreign(file: str) -> bool:
    return _INSTALLED.search(file) is not None or file.startswith(_foreign_folders())


@functools.cache
def _foreign_folders() -> tuple[str, ...]:
    """This library, and Python's own modules."""
    paths = sysconfig.get_paths()
    folders = {str(Path(__file__).parent.parent), paths["stdlib"], paths["platstdlib"]}
    return tuple(f"{one}{os.sep}" for one in folders)


def _without_repeats(frames: list[str]) -> Iterator[str]:
    """A recursion of another depth is the same error."""
    before = None
    for one in frames:
        if one != before:
            yield one
        before = one
