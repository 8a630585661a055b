"""The search box: `target:OrderClient status:failed error:Timeout tries:>=3`, as filters of a list."""

import re
from dataclasses import dataclass
from typing import Any

from async_task.errors import near
from async_task.reading.filters import STATES
from async_task.schema.states import Status
from async_task.web.requests.query import Query
from async_task.web.security.refusal import Refused

QUALIFIERS = ("type", "status", "target", "method", "queue", "token", "error", "user", "tries", "since", "until")
WORDS = (*(one.value for one in Status), *STATES)
"""The states of attempts."""
ROW_STATES = ("queued", "running", "failing", "expired", "waiting", "not_submitted", "processed", "canceled")
"""Those of rows that are their own jobs."""
ANY_STATES = dict.fromkeys((*WORDS, *ROW_STATES))
PART = re.compile(r'(?:(\w+):)?("[^"]*"|\S+)')
TRIES = re.compile(r"(?:>=)?(\d{1,6})", re.ASCII)
IDENTIFIER = re.compile(r"[0-9a-fA-F]{8}(?:[0-9a-fA-F-]{0,28})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Search:
    """`given`: values by qualifier, from the search box and from parameters of the same names. `words`: what belongs to
    no qualifier, as a part of an error. `identifier`: what looks like the id of a job, or the end of one."""

    given: dict[str, str]
    words: str
    identifier: str | None

    @property
    def statuses(self) -> tuple[str, ...]:
        return tuple(one for one in self.given.get("status", "").split(",") if one)

    @property
    def is_of_rows(self) -> bool:
        """Whether no attempt can be meant: a user is given, or states that only rows have."""
        return "user" in self.given or bool({*self.statuses} - {*WORDS})

    def filters(self) -> dict[str, Any]:
        """The keyword arguments of `outbox.attempts.list`, but the status."""
        names = ("target", "method", "queue", "token")
        found: dict[str, Any] = {name: self.given[name] for name in names if name in self.given}
        if error := self.given.get("error") or self.words:
            found["error"] = error
        if "tries" in self.given:
            found["tries"] = int(self.given["tries"].removeprefix(">="))
        for name in ("since", "until"):
            if name in self.given:
                found[name] = Query([(name, self.given[name])]).moment(name)
        return found


def search_of(query: Query) -> Search:
    """What is searched for. Raises Refused for an unknown qualifier or state, with the nearest."""
    text = query.text("q") or ""
    given = {name: value for name in QUALIFIERS if (value := query.text(name)) is not None}
    if states := query.choices("status", ANY_STATES):
        given["status"] = ",".join(states)
    words = []
    for name, value in PART.findall(text):
        plain = value.strip('"')
        if not name:
            words.append(plain)
        elif name not in QUALIFIERS:
            known, quoted = ", ".join(QUALIFIERS), f'"{name}:{plain}"'
            words_of_it = f"There is no qualifier {name!r}{near(name, QUALIFIERS)}: {known}."
            raise Refused(400, f"{words_of_it} To search errors for this text, quote it: {quoted}.")
        elif plain and name == "status" and name in given:
            given[name] += f",{plain}"
        elif plain:
            given[name] = plain
    _check(given)
    alone = words[0] if len(words) == 1 and not given and IDENTIFIER.fullmatch(words[0]) else None
    return Search(given, " ".join(words), alone)


def _check(given: dict[str, str]) -> None:
    for one in given.get("status", "").split(","):
        if one and one not in ANY_STATES:
            known = ", ".join(ANY_STATES)
            raise Refused(400, f"status is one of {known}: it was {one[:60]!r}{near(one, ANY_STATES)}.")
    states = {one for one in given.get("status", "").split(",") if one}
    if states & ({*WORDS} - {*ROW_STATES}) and states - {*WORDS}:
        raise Refused(400, "States of attempts and states of rows cannot be searched for together.")
    if "tries" in given and not TRIES.fullmatch(given["tries"]):
        raise Refused(400, f"tries takes a number, tries:>=3, not {given['tries'][:60]!r}.")
