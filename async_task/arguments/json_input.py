"""Arguments that a person wrote as plain JSON. Nothing is changed silently: what would be is refused."""

import contextlib
import decimal
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from async_task.arguments.decoding import decode
from async_task.errors import InvalidArguments

Path = tuple[str | int, ...]
"""Where a value is: the argument's name, then names in objects and positions in lists."""


class _Refused(Exception):
    """Why a text is refused. Its message holds nothing of the text."""


def read_json(text: str) -> tuple[dict[str, object], dict[str, object]]:
    """The arguments in a JSON object, by name: the decoded ones, and the plain ones.

    An argument with a `$` somewhere in it is in the form of `encode`, and is decoded; the others stay as JSON has them.
    Raises InvalidArguments, without anything of the text, also for a name twice in one object and for a number that a
    float would change.
    """
    try:
        arguments = json.loads(text, parse_float=_exact_float, object_pairs_hook=_object)
        stored = {name: value for name, value in arguments.items() if _holds_tag(value)}
        plain = {name: value for name, value in arguments.items() if name not in stored}
        return decode(json.dumps(stored)), plain
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg}, in line {error.lineno}, column {error.colno}"
    except AttributeError:
        message = "not a JSON object: write the arguments by name, {...}"
    except RecursionError:
        message = "nested too deeply"
    except _Refused as error:
        message = str(error)
    except ValueError:
        message = "a number has too many digits"
    raise InvalidArguments(message)  # outside of the handlers: a context would drag the text along


def _exact_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused('a number is too large for a float: for a Decimal write it as text, "..."')
    if decimal.Decimal(text, _NO_ERRORS) != decimal.Decimal(repr(number)):
        raise _Refused('a number has more digits than a float holds: for a Decimal write it as text, "..."')
    return number


_NO_ERRORS = decimal.Context(traps=[])  # an exponent out of range gives NaN, which equals nothing


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Refused("an object has a name twice, and only one of its values would be used")
    return made


def _holds_tag(value: object) -> bool:
    if isinstance(value, dict):
        return "$" in value or any(map(_holds_tag, value.values()))
    return isinstance(value, list) and any(map(_holds_tag, value))


def refuse_booleans_as_numbers(plain: Mapping[str, object], made: Any, dump: Callable[[Any], Any], label: str) -> None:
    """Raise InvalidArguments where `made` has a number for a true or false of `plain`. `dump` turns `made` into JSON.

    A bool is an int, so even in strict mode pydantic takes `true` for the member 1 of an IntEnum.
    """
    if not (paths := list(_paths_of_booleans(plain))):
        return
    dumped = dump(made)
    for path in paths:
        found: Any = dumped
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for step in path:
                found = found[step]
            if type(found) is int:
                raise InvalidArguments(f"{label}: {path[0]}: true and false are not numbers")


def _paths_of_booleans(value: object, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _paths_of_booleans(part, (*path, name))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _paths_of_booleans(part, (*path, index))
    elif isinstance(value, bool):
        yield path
