"""Where a class or function is defined: what its module has under its name now is called, so that it can be patched.

    with mock.patch("shop.outbox.open_ledger"): ...

1. `note` remembers what is found there, when an application is made or a test begins. That is the original, whatever it
   is (a mock alone is none), and while it is there, the registered object is called.
2. Where nothing was noted, the original is the registered object, what was defined there after it, and what a decorator
   made of it: it holds it as `__wrapped__`, as an attribute, or in its closure.
3. Anything else that is found there is called.
"""

import sys
import types
from collections.abc import Iterator
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
        """Take what is found now for the original, unless one is known or it is a mock."""
        found = self._found()
        if self._original is _ABSENT and not _is_mock(found):
            self._original = found

    def current(self) -> object:
        """The registered object, or what was put in its place."""
        found = self._found()
        if found is self._thing or found is self._original or found is _ABSENT:
            if self._original is _ABSENT and found is not _ABSENT:
                self._original = found
            return self._thing
        if self._original is _ABSENT and not _is_mock(found) and self._is_original(found):
            self._original = found
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
    """The callables that an object holds: as attributes, as the function of a partial, or in its closure."""
    held: list[Any] = [getattr(outer, "func", None), *_closure(outer)]
    held += getattr(outer, "__dict__", {}).values()
    for cls in type(outer).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        held += [getattr(outer, name, None) for name in ([slots] if isinstance(slots, str) else slots)]
    yield from (one for one in held if callable(one))


def _closure(outer: Any) -> Iterator[object]:
    for cell in getattr(outer, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            continue
