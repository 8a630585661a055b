"""Which tests run on which database, and with which kind of engine: the pairs of a test."""

import itertools
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

import databases

PAIR = ("database", "door")
EVERY_PAIR = ("test_performer", "test_worker")
"""The modules about how calls are performed: these run with each kind of engine on each database."""


def check_markers(function: pytest.Function) -> None:
    """End the collection at a marker that cannot be meant."""
    for marker in function.iter_markers("only_on"):
        if not marker.args or marker.kwargs or set(marker.args) - set(databases.NAMES):
            pytest.fail(f"{function.name}: only_on takes names out of {databases.NAMES}, not {marker}", pytrace=False)
    for name in ("only_on", "in_turns", "slow"):
        if function.get_closest_marker(name) and "database" not in function.fixturenames:
            pytest.fail(f"{function.name}: {name} is for tests that take a database", pytrace=False)


def wanted(items: Iterable[Any]) -> set[Any]:
    """The tests that are to run. The others are taken out of the collection and not skipped: a skip asks to be mended,
    and a skip that is always there hides the one that is new."""
    named = (item for item in items if _is_on_its_database(item) and not _is_one_pair_too_many(item))
    return set(itertools.chain.from_iterable(map(_in_turns, _by_function(named))))


def for_test_long(items: Iterable[Any]) -> set[Any]:
    """Of the tests that are wanted, those that `make test` leaves to `make test-long`: a `slow` one runs each of its
    cases once in `make test`, where all slow tests take turns in their pairs, and here in its other pairs."""
    slow = (item for item in items if item.get_closest_marker("slow"))
    return set(itertools.chain.from_iterable(_but_one_pair(_by_case(same)) for same in _by_function(slow)))


def _by_function(items: Iterable[Any]) -> Iterable[list[Any]]:
    found = defaultdict(list)
    for item in items:
        found[item.path, item.cls, _name(item)].append(item)
    return found.values()


def _name(item: Any) -> str:
    return str(getattr(item, "originalname", item.name))


def _by_case(items: Iterable[Any]) -> Iterable[list[Any]]:
    found = defaultdict(list)
    for item in items:
        found[_case(item)].append(item)
    return found.values()


def _but_one_pair(cases: Iterable[list[Any]]) -> list[Any]:
    found = []
    for same in cases:
        stays = (_turn(same[0]) + zlib.crc32(_name(same[0]).encode())) % len(same)
        found += same[:stays] + same[stays + 1 :]
    return found


def _is_on_its_database(item: Any) -> bool:
    return all(item.callspec.params["database"] in marker.args for marker in item.iter_markers("only_on"))


def _is_one_pair_too_many(item: Any) -> bool:
    """A test runs on each database with the Engine. With the AsyncEngine it runs on PostgreSQL alone, and every other
    one of its cases: one body of code serves both kinds of engine, so that the other pairs show nothing new."""
    params = _params(item)
    if params.get("door") != "async" or _asks_for_doors(item):
        return False
    if item.path.stem not in EVERY_PAIR and params.get("database") in ("mysql", "sqlite"):
        return True
    return _turn(item) % 2 == 1 and not _takes_turns(item)


def _asks_for_doors(item: Any) -> bool:
    return any(marker.args[0] == "door" for marker in item.iter_markers("parametrize"))


def _in_turns(items: list[Any]) -> list[Any]:
    """Of a test `in_turns`, each case once: its cases take turns in the pairs that they have."""
    if not _takes_turns(items[0]):
        return items
    used: Counter[tuple[str, str]] = Counter()
    found = []
    for same in _by_case(items):
        first = _turn(same[0]) % len(same)
        found.append(min(same[first:] + same[:first], key=lambda item: used[_pair(item)]))
        used[_pair(found[-1])] += 1
    if missing := {_pair(item) for item in items} - set(used):
        raise pytest.UsageError(f"{items[0].name}: in_turns has too few cases for {sorted(missing)}")
    return found


def _takes_turns(item: Any) -> bool:
    return item.get_closest_marker("in_turns") is not None


def _pair(item: Any) -> tuple[str, str]:
    params = _params(item)
    return str(params.get("database", "")), str(params.get("door", ""))


def _turn(item: Any) -> int:
    """The sum of the places of a case in each of its parametrizations. So each value of one takes all turns, if another
    one has several."""
    given = getattr(item, "callspec", None)
    if given is None:
        return 0
    places = {name: at for name, at in given.indices.items() if name not in PAIR}
    for marker in item.iter_markers("parametrize"):
        names = marker.args[0]
        for one in [name.strip() for name in names.split(",")][1:] if isinstance(names, str) else names[1:]:
            places.pop(one, None)  # its place is that of the first name
    return sum(places.values())


def _case(item: Any) -> tuple[Any, ...]:
    values = ((name, value) for name, value in _params(item).items() if name not in PAIR)
    return tuple((name, value if isinstance(value, str) else id(value)) for name, value in values)


def _params(item: Any) -> dict[str, Any]:
    given = getattr(item, "callspec", None)
    return given.params if given else {}
