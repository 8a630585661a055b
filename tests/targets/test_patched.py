"""A target that a test has patched: what is in its place now is called, and checked as the original."""

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, InvalidArguments, Succeeded, UnknownMethod, UnknownTarget, target
from async_task.targets.registry import method_of, note_definitions, target_named, target_of
from registrable import module_named

Write = Callable[..., Attempt]
pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def shop() -> Iterator[Any]:
    """The module of the targets, loaded for this test alone: nothing has been noted of it."""
    sys.modules.pop("patchable", None)
    yield importlib.import_module("patchable")
    sys.modules.pop("patchable", None)


def called(name: str, method_name: str | None = None) -> Any:
    return target_named(name).method(method_name).callable


def test_a_patched_method_is_what_is_called_and_written(shop: Any, app: AsyncTask, write: Write, sessions: Any) -> None:
    with mock.patch.object(shop.Warehouse, "fulfill") as fulfill, sessions.begin() as session:
        fulfill.return_value = None
        attempt = Attempt.options(session=session).call(shop.Warehouse.fulfill, 1, token="secret")
        assert (attempt.target, attempt.method_name) == ("patchable.warehouse", "fulfill")
        assert dict(attempt.method_args) == {"number": 1, "token": "secret"}
        session.flush()
        ids = attempt.id
    with mock.patch.object(shop.Warehouse, "fulfill") as fulfill:
        assert app.perform(ids) == Succeeded(ids)
    fulfill.assert_called_once_with(number=1, token="secret")
    assert shop.said == []
    assert app.perform(write(shop.Warehouse, "fulfill", {"number": 2}).id).__class__ is Succeeded
    assert shop.said == [("fulfill", 2)]


@pytest.mark.parametrize("options", [{}, {"autospec": True}], ids=["plain", "autospec"])
@pytest.mark.parametrize("name", ["fulfill", "ship", "fulfill_later"])
def test_each_kind_of_method_can_be_patched(shop: Any, name: str, options: dict[str, Any]) -> None:
    with mock.patch.object(shop.Warehouse, name, **options):
        function = getattr(shop.Warehouse, name)
        assert called("patchable.warehouse", name) == function
        assert method_of(function).name == name
    assert called("patchable.warehouse", name) == getattr(shop.Warehouse, name)
    with pytest.raises(UnknownTarget):
        method_of(function)


def test_a_class_method_put_in_the_place_of_one_is_found(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(cls: type[Any], number: int) -> None: ...

    monkeypatch.setattr(shop.Warehouse, "ship", classmethod(fake))
    assert method_of(shop.Warehouse.ship).name == "ship"
    assert called("patchable.warehouse", "ship") == shop.Warehouse.ship


def test_the_methods_of_an_instance_and_of_its_class_can_be_patched(shop: Any) -> None:
    with mock.patch.object(shop.printer, "send") as send:
        assert called("patchable.printer", "send") is send
        assert method_of(shop.printer.send).name == "send"
    with mock.patch.object(shop.Printer, "send") as send:
        assert called("patchable.printer", "send") is send
        assert method_of(shop.printer.send).name == "send"
    called("patchable.printer", "send")(number=1)
    assert shop.said == [("print", 1)]


def test_a_function_of_a_module_can_be_patched(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target(shop, name="patchable")
    monkeypatch.setattr(shop, "shout", lambda word: None)
    assert called("patchable", "shout") is shop.shout
    assert method_of(shop.shout).target.name == "patchable"


def test_a_method_that_is_first_used_while_it_is_patched_has_the_original_signature(shop: Any) -> None:
    target(shop.Warehouse, name="foreign")
    with mock.patch.object(shop.Warehouse, "ship") as ship:
        method = target_named("foreign").method("ship")
        assert (method.signature.names, method.signature.is_async) == (["number"], False)
        with Session() as session, pytest.raises(InvalidArguments, match="no argument is named 'nmber'"):
            Attempt.create(target="foreign", method_name="ship", method_args={"nmber": 1}, session=session)
        assert method.callable is ship
    target(printer := shop.Printer(), name="other")
    with mock.patch.object(shop.Printer, "send"):
        assert target_of(printer).method("send").signature.names == ["number"]


def test_a_patch_allows_nothing_that_was_not_allowed(shop: Any) -> None:
    made = module_named("offers", run=Session)
    made.__dict__["run"] = importlib.import_module("subprocess").run
    target(made, name="offers")

    class Asked:
        @property
        def balance(self) -> Any:
            raise AssertionError("it was read")

    asked = target(Asked(), name="asked")
    with mock.patch.object(made, "run"), pytest.raises(UnknownMethod, match="only imported there"):
        target_of(made).method("run")
    with mock.patch.object(Asked, "balance"), pytest.raises(UnknownMethod):
        target_of(asked).method("balance")
    with mock.patch.object(shop.Warehouse, "_hidden", create=True), pytest.raises(UnknownMethod):
        target_of(shop.Warehouse).method("_hidden")
    with pytest.raises(UnknownTarget):
        method_of(mock.Mock())


@pytest.mark.parametrize("has_app", [True, False], ids=["noted", "first used while patched"])
@pytest.mark.parametrize("fake", [mock.MagicMock(), mock.create_autospec(lambda number: None), lambda number: None])
def test_a_function_that_is_patched_by_name_is_what_is_called(
    shop: Any, fake: Any, has_app: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_app:
        note_definitions()
    with monkeypatch.context() as patched:
        patched.setattr(shop, "brief", fake)
        assert called("patchable.brief") is fake
        assert method_of(shop.brief).target.name == "patchable.brief"
        assert method_of(shop.brief).signature.is_async
        assert target_of(shop.brief).name == "patchable.brief"
    assert called("patchable.brief") is shop.brief is not fake


def test_a_class_that_is_patched_by_name_is_what_is_called(shop: Any) -> None:
    with mock.patch("patchable.Warehouse") as fake:
        assert called("patchable.warehouse", "fulfill") is fake.fulfill
        assert method_of(shop.Warehouse.ship).name == "ship"
        with Session() as session:
            made = Attempt.create(
                target=shop.Warehouse, method_name="fulfill", method_args={"number": 1}, session=session
            )
        assert made.target == "patchable.warehouse"


def test_outside_of_a_test_the_registered_function_is_called_whatever_hides_it(
    shop: Any, app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [write(f"patchable.{name}", None, {"number": 1}) for name in ("brief", "signalled", "unnamed")]
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(shop, "brief", importlib.import_module("subprocess").run)
    assert [app.perform(attempt.id) for attempt in attempts] == [Succeeded(attempt.id) for attempt in attempts]
    assert shop.said == [("brief", 1), ("signalled", 1), ("unnamed", 1)]
    with mock.patch("patchable.brief") as fake:
        assert called("patchable.brief") is fake


def test_a_fake_that_is_there_when_an_application_is_made_is_called(
    shop: Any, engine: Any, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write("patchable.brief", None, {"number": 1})
    monkeypatch.setattr(shop, "brief", lambda number: shop.said.append(("fake", number)))
    assert AsyncTask(engine, modules=["patchable"]).perform(attempt.id) == Succeeded(attempt.id)
    assert shop.said == [("fake", 1)]


def test_what_cannot_be_called_in_the_place_of_a_method_is_an_error_of_each_try(
    shop: Any, app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, function = write(shop.Warehouse, "ship", {"number": 1}), write("patchable.brief", None, {"number": 1})
    monkeypatch.setattr(shop.Warehouse, "ship", None)
    monkeypatch.setattr(shop, "brief", 3)
    for attempt in (method, function):
        outcome: Any = app.perform(attempt.id)
        assert "cannot be called: a " in outcome.error
        assert "has been put in its place" in outcome.error
    assert app.attempts.get(method.id).num_errors == 1


@pytest.mark.parametrize("has_app", [True, False])
@pytest.mark.parametrize("name", ["loudly", "plainly", "command", "signalled"])
def test_a_decorator_above_a_target_is_not_called(shop: Any, name: str, has_app: bool) -> None:
    if has_app:
        note_definitions()
    called(f"patchable.{name}")(number=1)
    assert shop.said == [(name, 1)]
    with mock.patch(f"patchable.{name}") as fake:  # once it was seen, a mock in its place is called
        assert called(f"patchable.{name}") is fake


def test_a_spy_that_holds_the_original_is_called_once_the_original_was_noted(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_definitions()
    monkeypatch.setattr(shop, "open_ledger", shop.loud(shop.open_ledger))
    called("patchable.open_ledger")(None, number=1)
    assert shop.said == ["loud", ("ledger", 1)]


def test_a_function_that_another_of_its_name_follows_is_still_called(shop: Any) -> None:
    for name in ("first", "second"):
        called(f"patchable.twice.{name}")(number=1)
    assert shop.said == [("first", 1), ("second", 1)]


def test_what_hides_a_function_in_its_module_when_an_application_is_made_is_not_called(shop: Any) -> None:
    shop.brief = importlib.import_module("subprocess").run
    note_definitions()
    assert called("patchable.brief").__name__ == "brief"
    with mock.patch("patchable.brief") as fake:
        assert called("patchable.brief") is fake


def test_a_mock_is_not_taken_for_the_original(shop: Any) -> None:
    with mock.patch("patchable.brief") as fake:
        note_definitions()
        assert called("patchable.brief") is fake
    assert called("patchable.brief") is shop.brief


def test_a_function_that_was_deleted_from_its_module_is_called(shop: Any) -> None:
    note_definitions()
    del shop.brief
    assert called("patchable.brief").__name__ == "brief"


@pytest.mark.slow
def test_a_plain_fake_of_a_coroutine_function_works_and_a_coroutine_of_a_plain_one(
    shop: Any, app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ship(number: int) -> None:
        shop.said.append(("awaited", number))

    def note(number: int) -> None:
        shop.said.append(number)

    monkeypatch.setattr(shop.Warehouse, "fulfill_later", staticmethod(note))
    monkeypatch.setattr(shop, "brief", note)
    monkeypatch.setattr(shop.Warehouse, "ship", ship)
    one, two, three = (
        write(shop.Warehouse, "fulfill_later", {"number": 1}),
        write("patchable.brief", None, {"number": 2}),
        write(shop.Warehouse, "ship", {"number": 3}),
    )
    assert {app.perform(attempt.id).__class__ for attempt in (one, two, three)} == {Succeeded}
    assert shop.said == [1, 2, ("awaited", 3)]


def test_what_a_patch_raises_when_it_is_read_is_an_error_of_the_call(shop: Any, app: AsyncTask, write: Write) -> None:
    attempt = write(shop.Warehouse, "fulfill", {"number": 1})
    with mock.patch("patchable.Warehouse", spec=[]):
        outcome: Any = app.perform(attempt.id)
    assert "AttributeError" in outcome.error
