"""What a call says for itself, in the place of its target's policy: how it is retried, and its time limit.

It stands in the column `call_settings` of its row, as JSON with durations in seconds, which only this module reads:

    {"retry": {"delays": "every", "interval": 60.0, "max_attempts": 5}, "timeout": 30.0}
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from async_task.errors import ConfigurationError, InvalidArguments
from async_task.targets.policies import Policy
from async_task.targets.retry import Delays, Every, Exponential, Listed, Never, Retry, duration
from async_task.targets.target import Method


@dataclass(frozen=True, slots=True)
class CallSettings:
    """None: as the policy says."""

    retry: Retry | None = None
    timeout: dt.timedelta | None = None


NOTHING = CallSettings()


def settings_text(method: Method, retry: object, timeout: object) -> str | None:
    """These settings of a call of `method`, checked, as its row holds them; None without any. Raises InvalidArguments
    for what a policy would refuse too, and for a Retry that a row cannot hold."""
    given: Any = {name: value for name, value in (("retry", retry), ("timeout", timeout)) if value is not None}
    if not given:
        return None
    try:
        policy = Policy.of(given)
        if policy.timeout is not None:
            method.refuse_endless_timeout(policy.timeout)
    except ConfigurationError as error:
        raise InvalidArguments(str(error)) from None
    written = {} if policy.retry is None else {"retry": _written(policy.retry)}
    return json.dumps(written if policy.timeout is None else written | {"timeout": policy.timeout.total_seconds()})


def settings_of(text: str | None) -> CallSettings:
    """The settings that a row holds. Raises ConfigurationError for what this version does not know: it parks the
    attempt, uncharged."""
    return NOTHING if text is None else _read(text)


def settings_in_words(text: str | None) -> dict[str, str]:
    """The same for people, by name."""
    try:
        found = settings_of(text)
    except ConfigurationError as error:
        return {"call_settings": str(error)}
    told = {} if found.retry is None else {"retry": _told(found.retry)}
    return told if found.timeout is None else told | {"timeout": span(found.timeout)}


def _told(retry: Retry) -> str:
    match retry.delays:
        case Exponential(first, factor, cap):
            words = f"exponential from {span(first)}, times {factor:g}, at most {span(cap)}"
        case Every(interval):
            words = f"every {span(interval)}"
        case Listed(waits):
            words = f"schedule of {', '.join(map(span, waits)) or 'nothing'}"
        case _:
            words = retry.name
    most = "" if retry.max_attempts is None else f", at most {retry.max_attempts} errors"
    return f"{words}{most}{'' if retry.until is None else f', until {span(retry.until)}'}"


def span(length: dt.timedelta) -> str:
    """A length of time in its largest whole unit: `90 s`, `2 h`, `4 d`."""
    units = {"d": 86_400, "h": 3600, "min": 60}
    seconds = length.total_seconds()
    unit, size = next(((name, size) for name, size in units.items() if seconds and seconds % size == 0), ("s", 1))
    return f"{seconds / size:g} {unit}"


def _written(retry: Retry) -> dict[str, Any]:
    limits = {"max_attempts": retry.max_attempts, "until": None if retry.until is None else retry.until.total_seconds()}
    shape = {**_shape(retry.delays), "jitter": retry.jitter}
    return shape | {name: value for name, value in limits.items() if value is not None}


def _shape(delays: object) -> dict[str, Any]:
    match delays:
        case Exponential(first, factor, cap):
            seconds = {"first": first.total_seconds(), "cap": cap.total_seconds()}
            return {"delays": "exponential", "factor": factor, **seconds}
        case Every(interval):
            return {"delays": "every", "interval": interval.total_seconds()}
        case Listed(waits):
            return {"delays": "schedule", "waits": [one.total_seconds() for one in waits]}
        case Never():
            return {"delays": "never"}
    raise InvalidArguments(
        "retry: a row cannot hold a Retry with a function of your own: make it with Retry.exponential, .every, "
        ".schedule or .never, or set it in @target(retry=...)"
    )


@lru_cache(maxsize=1024)
def _read(text: str) -> CallSettings:
    try:
        stored = json.loads(text)
        retry, timeout = stored.pop("retry", None), stored.pop("timeout", None)
        if stored:
            raise ValueError(text)
        read: Any = {} if retry is None else {"retry": _retry(retry)}
        policy = Policy.of(read if timeout is None else read | {"timeout": timeout})
    except (ValueError, TypeError, KeyError, AttributeError, ConfigurationError):
        pass
    else:
        return CallSettings(policy.retry, policy.timeout)
    raise ConfigurationError(
        "the settings that the call was written with (column call_settings) are not known to this version of "
        "async-task: a newer one may have written them, and can perform it"
    )


def _retry(stored: Mapping[str, Any]) -> Retry:
    own = dict(stored)
    name, jitter = own.pop("delays"), own.pop("jitter")
    max_attempts, until = own.pop("max_attempts", None), own.pop("until", None)
    age = None if until is None else duration(until, name="until")
    return Retry(_KINDS[name](**_values(own)), jitter, max_attempts, age, name)


def _values(own: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the delays, as their class takes them."""
    values = dict(own)
    for name in ("first", "cap", "interval"):
        if name in values:
            values[name] = duration(values[name], name=name)
    if "waits" in values:
        values["waits"] = tuple(duration(one, name="waits") for one in values["waits"])
    return values


_KINDS: dict[str, Callable[..., Delays]] = {
    "exponential": Exponential, "every": Every, "schedule": Listed, "never": Never,
}  # fmt: skip
