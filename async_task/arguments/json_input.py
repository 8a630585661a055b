"""Arguments as a person wrote them, in plain JSON: read, and made what the annotations say without losing a digit."""

import contextlib
import decimal
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Self

from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.errors import InvalidArguments

Arguments = Mapping[str, object]
Place = tuple[str | int, ...]
"""Where a value stands: the argument's name, and then names in objects and numbers in lists."""


class Written(float):
    """A number with a point or an exponent, and the `text` that it was written as: a float has 17 digits at most."""

    text: str

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)
        if not math.isfinite(made):
            raise Unreadable("a number out of range: a Decimal may be written as a text")
        made.text = text
        return made


class Unreadable(Exception):
    """Why a text cannot be read; nothing of it is in the words."""


def read_by_hand(text: str) -> tuple[dict[str, object], dict[str, object]]:
    """The arguments in a JSON object that a person wrote, by name: those that are in the form of `encode` somewhere,
    decoded; and the others, as JSON has them, numbers as Written. Raises InvalidArguments, without anything of the
    text."""
    try:
        arguments = json.loads(text, parse_float=Written, object_pairs_hook=_each_once)
        stored = {name: value for name, value in arguments.items() if _holds_tag(value)}
        plain = {name: value for name, value in arguments.items() if name not in stored}
        return decode(json.dumps(stored)), plain
    except json.JSONDecodeError as error:
        message = f"no JSON: {error.msg}, in line {error.lineno}, column {error.colno}"
    except AttributeError:
        message = "no JSON object: write the arguments by name, {...}"
    except RecursionError:
        message = "nested too deeply"
    except Unreadable as error:
        message = str(error)
    except ValueError:
        message = "a number with too many digits"
    raise InvalidArguments(message)  # outside of the handlers: a context would drag the text along


def made_of(
    plain: Arguments, make: Callable[[Arguments], dict[str, Any]], dump: Callable[[Any], Any]
) -> dict[str, Any]:
    """What `make`, which may raise InvalidArguments, makes of plain JSON, but that a Decimal has the digits that were
    written, and true is no number. `dump`: back to what JSON has. Raises Unreadable."""
    made = make(plain)
    places = dict(_places(plain))
    _refuse_numbers(made, [place for place, value in places.items() if isinstance(value, bool)], dump)
    numbers = {place: value for place, value in places.items() if isinstance(value, Written)}
    return _with_digits(plain, made, numbers, make) if numbers else made


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    held = dict(pairs)
    if len(held) < len(pairs):
        raise Unreadable("an object has a name twice: only one of its values would be taken")
    return held


def _holds_tag(value: object) -> bool:
    if isinstance(value, dict):
        return "$" in value or any(map(_holds_tag, value.values()))
    return isinstance(value, list) and any(map(_holds_tag, value))


def _places(value: object, place: Place = ()) -> Iterator[tuple[Place, object]]:
    if isinstance(value, Mapping | list):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, part in parts:
            yield from _places(part, (*place, name))
    else:
        yield place, value


def _refuse_numbers(made: dict[str, Any], places: Collection[Place], dump: Callable[[Any], Any]) -> None:
    # A bool is an int, and so pydantic finds the member of an IntEnum by it, also when strict.
    dumped = dump(made) if places else {}
    for place in places:
        found: Any = dumped
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for step in place:
                found = found[step]
            if type(found) is int:
                raise Unreadable(f"{place[0]}: true and false are no numbers")


def _with_digits(
    plain: Arguments, made: dict[str, Any], numbers: Mapping[Place, Written], make: Callable[[Arguments], Any]
) -> dict[str, Any]:
    # Pydantic reads a number as a float, and a text digit by digit. Where the text makes a Decimal of what was one
    # anyway, it is the text that is taken: whatever holds it, and however it is named there.
    outline, _ = _outline(made)
    texts: dict[Place, str] = {}
    for tried in [list(numbers), *([place] for place in numbers)]:
        with contextlib.suppress(InvalidArguments):
            more = {**texts, **{place: numbers[place].text for place in tried}}
            exact = make(_replaced(plain, more))
            if _outline(exact)[0] == outline:
                made, texts = exact, more
        if len(texts) == len(numbers):
            return made
    for place in numbers.keys() - texts.keys():
        if _would_change(numbers[place]) and _is_decimal(plain, place, numbers[place], make):
            words = 'a number would lose digits here: write it as {"$": "decimal", "v": "..."}'
            raise Unreadable(f"{place[0]}: {words}")
    return made


def _would_change(number: Written) -> bool:
    return str(decimal.Decimal(number.text)) != str(decimal.Decimal(repr(number).removesuffix(".0")))


def _is_decimal(plain: Arguments, place: Place, number: float, make: Callable[[Arguments], Any]) -> bool:
    """Whether a Decimal is made of this number: then another number makes another one. Yes, where it is not known."""
    with contextlib.suppress(InvalidArguments):
        other = make(_replaced(plain, {place: math.nextafter(number, 0)}))
        return _outline(other)[1] != _outline(make(plain))[1]
    return True


def _replaced(value: Any, others: Mapping[Place, object], place: Place = ()) -> Any:
    """`value` with these others at their places."""
    if isinstance(value, Mapping):
        return {name: _replaced(part, others, (*place, name)) for name, part in value.items()}
    if isinstance(value, list):
        return [_replaced(part, others, (*place, number)) for number, part in enumerate(value)]
    return others.get(place, value)


def _outline(made: dict[str, Any]) -> tuple[object, list[str]]:
    """What is stored, without the digits of Decimals; and these, in order."""
    decimals: list[str] = []

    def blank(stored: dict[str, Any]) -> dict[str, Any]:
        if stored.get("$") == "decimal":
            decimals.append(stored.pop("v"))
        return stored

    return json.loads(encode(made), object_hook=blank), decimals
