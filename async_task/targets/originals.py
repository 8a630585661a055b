"""What a target had when it was registered. A test may patch its methods; their signatures and policies stay these."""

import inspect
import types
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from async_task.targets.functions import class_attributes, own_attributes

_ABSENT: Any = object()


class Originals:
    """The attributes that a class, module or instance had when it was registered. No property is read for them."""

    __slots__ = ("_of_class", "_own", "_thing")

    def __init__(self, thing: object) -> None:
        self._thing = thing
        kind = thing if inspect.isclass(thing) else type(thing)
        is_plain = inspect.isroutine(thing) or inspect.ismodule(thing)
        self._of_class = {} if is_plain else class_attributes(kind)
        self._own = {} if inspect.isroutine(thing) or inspect.isclass(thing) else dict(own_attributes(thing))

    def static(self, name: str) -> Any:
        """The attribute as its class, module or instance held it, not bound; what is there now if there was none."""
        found = self._held(name)
        return inspect.getattr_static(self._thing, name, None) if found is _ABSENT else found

    def value(self, name: str) -> Any:
        """The attribute as it was read from the target; None for a property, which would run code, and without one."""
        held = self.static(name)
        if isinstance(held, (property, cached_property)):
            return None
        if not self._is_replaced(name):
            return getattr(self._thing, name, None)
        if name in self._own or not hasattr(type(held), "__get__"):
            return held
        thing = self._thing
        return held.__get__(None, thing) if inspect.isclass(thing) else held.__get__(thing, type(thing))

    def names(self, function: object, current: object) -> Iterator[str]:
        """The names of the public attributes in whose place `function` is now. `current`: what is there in the place of
        the whole target."""
        for name in {**self._of_class, **self._own}:
            if name.startswith("_") or not (current is not self._thing or self._is_replaced(name)):
                continue
            if not isinstance(self.static(name), (property, cached_property)):
                found = getattr(current, name, None)
                if found is function or (type(found) is types.MethodType and found == function):
                    yield name

    def _held(self, name: str) -> Any:
        return self._own[name] if name in self._own else self._of_class.get(name, _ABSENT)

    def _is_replaced(self, name: str) -> bool:
        held = self._held(name)
        return held is not _ABSENT and inspect.getattr_static(self._thing, name, _ABSENT) is not held
