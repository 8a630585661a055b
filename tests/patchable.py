"""Targets whose names tests patch. `said` is what they were called with."""

import functools
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from async_task import target

said: list[Any] = []


@target("patchable.warehouse", redact=["token"])
class Warehouse:
    @staticmethod
    def fulfill(number: int, token: str = "") -> None:
        said.append(("fulfill", number))

    @classmethod
    def ship(cls, number: int) -> None:
        said.append(("ship", number))

    @staticmethod
    async def fulfill_later(number: int) -> None:
        said.append(("later", number))


class Printer:
    def send(self, number: int) -> None:
        said.append(("print", number))


printer = target(Printer(), name="patchable.printer")


@target("patchable.open_ledger")
def open_ledger(session: Session, number: int) -> None:
    said.append(("ledger", number))


def shout(word: str) -> None:
    said.append(word.upper())


@target("patchable.brief", timeout=5)
async def brief(number: int) -> None:
    said.append(("brief", number))


def loud(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        said.append("loud")
        return function(*args, **kwargs)

    return called


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: said.append("plain") or function(*args, **kwargs)


class Command:
    """As the objects that click, Celery and others make of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.callback = function

    def __call__(self) -> None:
        said.append("command")


@loud
@target("patchable.loudly")
def loudly(number: int) -> None:
    said.append(("loudly", number))


@plain
@target("patchable.plainly")
def plainly(number: int) -> None:
    said.append(("plainly", number))


@Command
@loud
@target("patchable.command")
def command(number: int) -> None:
    said.append(("command", number))


class Signal:
    """A decorator that keeps the function in a list."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.listeners = [function]

    def __call__(self, **arguments: Any) -> None:
        said.append("signal")


@Signal
@target("patchable.signalled")
def signalled(number: int) -> None:
    said.append(("signalled", number))


def nothing(function: Callable[..., Any]) -> None:
    """A decorator that keeps the function elsewhere, and returns nothing."""


@nothing
@target("patchable.unnamed")
def unnamed(number: int) -> None:
    said.append(("unnamed", number))


@target("patchable.twice.first")
def twice(number: int) -> None:
    said.append(("first", number))


@target("patchable.twice.second")  # type: ignore[no-redef]
def twice(number: int) -> None:  # noqa: F811
    said.append(("second", number))
