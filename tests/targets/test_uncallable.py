"""What can never be called is refused when it is registered, with what to write instead."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from async_task import ConfigurationError, target

pytestmark = pytest.mark.usefixtures("registered")


class Shop:
    @staticmethod
    def close(hour: int) -> None: ...

    @classmethod
    def open(cls, hour: int) -> None: ...

    @property
    def owner(self) -> str:
        return "Ada"

    def sell(self, number: int) -> None: ...


class OnlyMethods:
    def sell(self, number: int) -> None: ...


class Empty:
    """Its methods may be set later."""


def send(path: pathlib.Path) -> None: ...


def send_later(path: pathlib.Path = pathlib.Path()) -> None: ...


@dataclasses.dataclass
class Upload:
    path: pathlib.Path


def upload(session: Session, upload: Upload) -> None: ...


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: target(vars(Shop)["close"], name="test.no"), "@target stands above @staticmethod"),
    (lambda: target("test.no")(vars(Shop)["open"]), "@target stands above @classmethod"),
    (lambda: target(vars(Shop)["owner"], name="test.no"), "@target stands above @property"),
    (lambda: target(Shop.sell), "Shop.sell needs an instance, which no row can hold"),
    (lambda: target(Shop.sell, name="test.no"), r"target\(instance, name=...\)"),
    (lambda: target(OnlyMethods), "OnlyMethods has methods, and all need an instance"),
    (lambda: target(send), r"send: path can never be given: a Path cannot be stored: pass str\(path\)"),
    (lambda: target(upload), r"upload: upload can never be given: Upload.path: a Path cannot be stored: pass str"),
]


@pytest.mark.parametrize(("register", "why"), REFUSED)
def test_what_can_never_be_called_is_refused(register: Callable[[], Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        register()


@pytest.mark.parametrize("thing", [Shop, Empty, Shop.close, Shop.open, Shop().sell, send_later])
def test_what_can_be_called_is_registered(thing: Any) -> None:
    assert target(thing, name="test.yes") is thing
