"""An entry of a schedule: its rule, the call that it enqueues, and what becomes of missed and overlapping times."""

import datetime as dt
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import inspect as mapper_of

from async_task.arguments.encoding import encode
from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.draft import named_draft
from async_task.attempts.options import CallToMake
from async_task.attempts.own_columns import own_values
from async_task.attempts.parsed_call import method_named
from async_task.errors import AsyncTaskError, ConfigurationError
from async_task.schedule.rules import Rule
from async_task.targets.registry import method_of
from async_task.targets.retry import Duration, duration
from async_task.targets.target import Method, call_name

Overlap = Literal["skip", "queue", "allow"]
When: TypeAlias = Callable[[dt.datetime], object]
"""Called with the fire time, in the zone of the entry: whether to enqueue."""
ONE, ALL = 1, 100
"""How many missed times "latest" and "all" enqueue at most."""
MOST = 1_000
"""Times of one entry that are decided together: what was missed earlier has no rows."""
LONGEST_KEY = 200
PER_CALL = {"session", "idempotence_token", "scheduled_at", "delay", "expires_at"}
"""Options that cannot be the same for every occurrence."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`most_missed`: how many times that were missed are enqueued, the last ones; 0: none. `order_key`: shared by all
    its attempts, for `overlap="queue"`."""

    key: str
    rule: Rule
    method: Method
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    model: type[Any] | None
    catch_up: str
    most_missed: int
    overlap: Overlap
    jitter: dt.timedelta
    when: When | None

    @property
    def call(self) -> str:
        """What it calls, as people write it."""
        return call_name(self.method.target.name, self.method.name)

    @property
    def attempt(self) -> dict[str, Any]:
        """The arguments of `Attempt.create` that all its attempts share."""
        made = {"target": self.method.target.name, "method_name": self.method.name, "method_args": self.arguments}
        return made | ({"order_key": f"schedule:{self.key}"} if self.overlap == "queue" else {}) | dict(self.options)

    def check(self, model: type[BaseAttempt]) -> None:
        """Raise ConfigurationError unless its attempts can be written as rows of this model."""
        if self.model is not None and not issubclass(self.model, model):
            of, wanted = (f"{one.__module__}.{one.__qualname__}" for one in (self.model, model))
            raise self.error(
                f"its options are of {of}, and the application writes {wanted}: use {model.__name__}.options"
            )
        try:
            made = named_draft("create", self.attempt)
            own_values(mapper_of(self.model or model), made.columns)
        except AsyncTaskError as error:
            raise self.error(str(error)) from error

    def error(self, words: str) -> ConfigurationError:
        return ConfigurationError(f"schedule entry {self.key!r}: {words}")


def entry_of(
    rule: Rule, *, call: Callable[..., Any] | CallToMake | str, args: Mapping[str, Any] | None, key: str | None,
    catch_up: str, overlap: str, jitter: Duration, when: When | None,
) -> Entry:  # fmt: skip
    """An entry, checked like a call that is written down. Raises ConfigurationError, and of `call` what `Attempt.call`
    raises."""
    made = call if isinstance(call, CallToMake) else None
    function = call.function if isinstance(call, CallToMake) else call
    method = method_named(function) if isinstance(function, str) else method_of(function)
    arguments = _arguments(method, args)
    options = {} if made is None else dict(made.options)
    _check_options(options, overlap)
    _check_when(when)
    return Entry(
        _key(key, method), rule, method, arguments, options, None if made is None else made.model,
        catch_up, _most_missed(catch_up), _overlap(overlap), duration(jitter, name="jitter"), when,
    )  # fmt: skip


def _arguments(method: Method, args: object) -> dict[str, Any]:
    if args is not None and not isinstance(args, Mapping):
        raise ConfigurationError(f"args= takes a mapping of names to values, not {type(args).__name__}")
    arguments = dict(args or {})
    method.signature.check(arguments)
    encode(arguments)
    return arguments


def _check_when(when: object) -> None:
    if when is not None and not callable(when):
        raise ConfigurationError(f"when= takes a function, which is called with the fire time, not {when!r}")
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(kind(one) for kind in kinds for one in (when, getattr(when, "__call__", None))):  # noqa: B004
        raise ConfigurationError(f"when= takes a plain function: a call of {when!r} runs nothing")


def _check_options(options: Mapping[str, Any], overlap: str) -> None:
    for name in sorted(PER_CALL & options.keys()):
        raise ConfigurationError(f"the option {name}= is for one call, and an entry enqueues many")
    if overlap == "queue" and options.get("order_key") is not None:
        raise ConfigurationError('overlap="queue" gives its attempts an order key: leave order_key= out')


def _key(key: object, method: Method) -> str:
    if key is None:
        key = call_name(method.target.name, method.name)
        if len(key) > LONGEST_KEY:
            raise ConfigurationError(f"its call has a name of more than {LONGEST_KEY} characters: give it a key=")
    if not (isinstance(key, str) and 0 < len(key) <= LONGEST_KEY and key.isprintable()):
        raise ConfigurationError(f"key= is a printable text of 1 to {LONGEST_KEY} characters")
    return key


def _most_missed(catch_up: object) -> int:
    words = {"skip": 0, "latest": ONE, "all": ALL}
    if isinstance(catch_up, str) and catch_up in words:
        return words[catch_up]
    found = re.fullmatch(r"all\(([1-9]\d{0,5})\)", catch_up, re.ASCII) if isinstance(catch_up, str) else None
    if found is None or int(found[1]) > MOST:
        raise ConfigurationError(
            f'catch_up is "skip", "latest", "all" (the last {ALL}) or a number like "all(24)" up to {MOST}, '
            f"not {catch_up!r}"
        )
    return int(found[1])


def _overlap(overlap: object) -> Overlap:
    for one in get_args(Overlap):
        if one == overlap:
            return one  # type: ignore[no-any-return]
    raise ConfigurationError(f'overlap is one of "skip", "queue" and "allow", not {overlap!r}')
