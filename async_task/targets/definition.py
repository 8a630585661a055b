"""Where a class or function is defined: a test may put something in its place there, by the name.

    with mock.patch("shop.outbox.open_ledger"): ...

1. A mock that is found there is called.
2. While a test of pytest runs, so is anything else, but for the original: what `note` found there before the first
   test; else the registered object, what was defined there after it, and what a decorator made of it, which holds it
   as `__wrapped__`, as an attribute, or in its closure.
3. Otherwise the registered object is called, whatever hides it in its module.
"""

import os
import sys
import types
from collections.abc import Collection, Iterator
from typing import Any

_ABSENT: Any = object()
_DEEPEST = 4
"""How many decorators are looked through."""


class Definition:
    """The place of a class or function with this module and qualified name."""

    __slots__ = ("_module", "_original", "_path", "_thing")

    def __init__(self, thing: Any) -> None:
        self._thing = thing
        self._module: str = thing.__module__
        self._path = tuple(thing.__qualname__.split("."))
        self._original: object = _ABSENT

    def note(self) -> None:
        """Take what is found now for the original, unless it is a mock."""
        found = self._found()
        if found is not _ABSENT and not _is_mock(found):
            self._original = found

    def current(self) -> object:
        """The registered object, or what a test has put in its place."""
        found = self._found()
        if found is self._thing or found is self._original or found is _ABSENT:
            return self._thing
        if _is_mock(found):
            return found
        if not is_testing() or (self._original is _ABSENT and self._is_original(found)):
            return self._thing
        return found

    def _is_original(self, found: Any) -> bool:
        place = (getattr(found, "__module__", None), getattr(found, "__qualname__", None))
        return place == (self._module, self._thing.__qualname__) or _is_made_of(found, self._thing)

    def _found(self) -> Any:
        found: Any = sys.modules.get(self._module, _ABSENT)
        for name in self._path:
            found = getattr(found, name, _ABSENT)
        return found


def is_testing() -> bool:
    """Whether a test of pytest runs, in this process or in the one that has started it."""
    return "PYTEST_CURRENT_TEST" in os.environ


def definition_of(thing: object) -> Definition | None:
    """None for what has no such place: a module, an instance, a bound method, and what a function has defined."""
    if not (isinstance(thing, type) or type(thing) in (types.FunctionType, types.BuiltinFunctionType)):
        return None
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "<")
    return Definition(thing) if isinstance(module, str) and "<" not in qualname else None


def _is_mock(found: object) -> bool:
    mocks = sys.modules.get("unittest.mock")
    # With autospec= a function is put there, which has the mock as an attribute.
    return mocks is not None and any(
        issubclass(type(one), mocks.NonCallableMock) for one in (found, getattr(found, "mock", None))
    )


def _is_made_of(found: object, thing: object) -> bool:
    """Whether `found` holds `thing`, or a decorator that does."""
    layer = [found]
    for _ in range(_DEEPEST):
        layer = [one for outer in layer for one in _parts(outer)]
        if any(one is thing for one in layer):
            return True
    return False


def _parts(outer: Any) -> Iterator[object]:
    """The callables that an object holds: as attributes or in these, in a partial, or in its closure."""
    held: list[Any] = [getattr(outer, "func", None), *_closure(outer)]
    held += getattr(outer, "__dict__", {}).values()
    for cls in type(outer).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        held += [getattr(outer, name, None) for name in ([slots] if isinstance(slots, str) else slots)]
    for one in held:
        yield from (inner for inner in _items(one) if callable(inner))


def _items(held: Any) -> Collection[object]:
    if isinstance(held, dict):
        return held.values()
    return held if isinstance(held, (list, tuple, set, frozenset)) else (held,)


def _closure(outer: Any) -> Iterator[object]:
    for cell in getattr(outer, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            continue
