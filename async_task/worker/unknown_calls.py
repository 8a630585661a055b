"""Calls that this process cannot make and another one can: their target, encryptor or key is not known here, because
they are of a newer release, or of a program that imports more, or because a new key has not come here yet.

1. A claim of such a call is released at once, uncharged and where it stood, so that another process can make the call.
2. From then on claims, polls and batches of this process leave out what is unknown, until it is known here.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from async_task.encryption.ciphers import STORED_HEAD, problem_with_key
from async_task.encryption.encryptors import NullEncryptor, encryptor_named
from async_task.errors import AsyncTaskError, UnknownEncryptor, UnknownTarget
from async_task.queue.claim import Claim
from async_task.queue.left_out import LeftOut
from async_task.targets.registry import is_known, problem_with

logger = logging.getLogger("async_task")
MOST = 1_000
"""How many of a kind are left out at most: each makes the statements longer."""
RECHECK = 1.0
"""Seconds after which it is checked again whether a call is known by now."""
RECHECK_KEYS = 5.0
"""The same for encryptors and keys: installed packages are searched, and a source of keys may be asked."""


class UnknownCalls:
    """Of one worker or batch. Thread-safe."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._guard = threading.Lock()
        self._left_out = LeftOut()
        """Each part in the order in which it was found."""
        self._reported: set[Hashable] = set()
        self._check_at = {"calls": 0.0, "encryptors": 0.0, "keys": 0.0}

    def found_in(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims whose calls cannot be made here: what they lack is left out from now on."""
        lacks = {need for need in {need for one in claims for need in _needs(one)} if not _is_known(*need)}
        if not lacks:
            return []
        with self._guard:
            for part, name in lacks:
                named = dict.fromkeys((*getattr(self._left_out, part), name))
                self._left_out = self._left_out._replace(**{part: tuple(named)[-MOST:]})
        for lack in lacks:
            self._report(*lack)
        return [one for one in claims if not lacks.isdisjoint(_needs(one))]

    def left_out(self) -> LeftOut:
        """What a claim is to leave out."""
        for part in self._left_out.parts:
            if self._is_time_for(part):
                # Not under the guard: a source of keys may take its time.
                known = {name for name in getattr(self._left_out, part) if _is_known(part, name)}
                with self._guard:
                    still = tuple(name for name in getattr(self._left_out, part) if name not in known)
                    self._left_out = self._left_out._replace(**{part: still})
        return self._left_out

    def _is_time_for(self, part: str) -> bool:
        """Whether this part is to be checked again, by the thread that asks."""
        with self._guard:
            now = time.monotonic()
            is_time = now >= self._check_at[part]
            if is_time:
                self._check_at[part] = now + (RECHECK if part == "calls" else RECHECK_KEYS)
            return is_time

    def _report(self, part: str, name: Any) -> None:
        """Once for each target, method that a known target lacks, encryptor, and key."""
        problem = _PROBLEMS[part](name)
        subject = name[0] if isinstance(problem, UnknownTarget) else name
        with self._guard:
            is_reported = (part, subject) in self._reported
            self._reported.add((part, subject))
        if not is_reported:
            what = f"of {name[0]}" if part == "calls" else "with encrypted arguments"
            logger.warning("worker %s leaves calls %s to other workers: %s", self._worker, what, problem)


def _needs(claim: Claim) -> Iterator[tuple[str, Any]]:
    """What must be known of this claim, by the parts of `LeftOut`."""
    yield "calls", (claim.target, claim.method_name)
    if claim.encryptor != NullEncryptor.name:
        yield "encryptors", claim.encryptor
        yield "keys", (claim.encryptor, claim.encoded_args[:STORED_HEAD])


def _is_known(part: str, name: Any) -> bool:
    return is_known(*name) if part == "calls" else _PROBLEMS[part](name) is None


def _encryptor_problem(name: str) -> object:
    try:
        encryptor_named(name)
    except UnknownEncryptor as error:
        return error
    except Exception:
        return None  # installed, and broken here: its calls are parked, with the reason
    return None


def _key_problem(key: tuple[str, str]) -> object:
    """None too if the encryptor is unknown, or its keys cannot be read: that is another problem."""
    try:
        return problem_with_key(encryptor_named(key[0]), key[1])
    except AsyncTaskError:
        return None


_PROBLEMS: dict[str, Callable[[Any], object]] = {
    "calls": lambda call: problem_with(*call),
    "encryptors": _encryptor_problem,
    "keys": _key_problem,
}
