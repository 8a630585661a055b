"""Things that tests register as targets."""

import functools
import types
from collections.abc import Callable
from typing import Any


class Plain:
    """Not registered; the tests do that."""

    @staticmethod
    def static(number: int) -> None: ...

    @classmethod
    def of_class(cls, number: int) -> None: ...

    @staticmethod
    async def later(number: int) -> None: ...

    def of_instance(self, number: int) -> None: ...

    @staticmethod
    def _hidden() -> None: ...

    class Inner: ...

    constant = 7


class Child(Plain):
    @staticmethod
    def own(number: int) -> None: ...


def function(number: int) -> None: ...


class Mailer:
    """An instance is registered."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.asked = 0

    def send(self, to: str) -> None: ...

    def __call__(self, to: str) -> None: ...

    @property
    def balance(self) -> Callable[[], None]:
        self.asked += 1
        return lambda: None

    @functools.cached_property
    def cached(self) -> Callable[[], None]:
        self.asked += 1
        return lambda: None


def module_named(name: str, **contents: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(contents)
    return made
