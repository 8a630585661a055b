"""The allow-list: what is registered, under which name, and how a function finds its target."""

import functools
import math
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from async_task import Attempt, ConfigurationError, UnknownTarget, target
from async_task.targets.policies import Limit
from async_task.targets.registry import coroutine_calls, limits, method_of, registered_targets, target_named, target_of
from registrable import Child, Mailer, Plain, function, module_named

pytestmark = pytest.mark.usefixtures("registered")


def test_a_class_is_registered_under_its_module_and_name() -> None:
    assert target(Plain) is Plain
    assert target_of(Plain).name == "registrable:Plain"
    assert target_named("registrable:Plain").thing is Plain


def test_a_decorated_function_stays_what_it_is() -> None:
    assert target(function) is function
    assert target_of(function).method(None).name == "__call__"
    assert target()(Child) is Child


def test_a_name_and_its_aliases_survive_a_rename() -> None:
    target("new.name", aliases=["old.name", "older.name"])(Plain)
    named = [target_named(one) for one in ("new.name", "old.name", "older.name")]
    assert [one.name for one in named] == ["new.name"] * 3
    assert [one.name for one in registered_targets() if one.thing is Plain] == ["new.name"]
    with Session() as session:
        made = Attempt.create(target="old.name", method_name="static", method_args={"number": 1}, session=session)
        assert made.target == "new.name"


def test_a_target_that_no_worker_could_import_needs_a_name() -> None:
    def local() -> None: ...

    with pytest.raises(ConfigurationError, match=r"local is defined in a function.*@target\('name'\)"):
        target(local)
    target("local")(local)
    main = types.FunctionType(function.__code__, {"__name__": "__main__"}, "function")
    main.__module__ = "__main__"
    with pytest.raises(ConfigurationError, match="is defined in __main__"):
        target(main)
    with pytest.raises(ConfigurationError, match="is defined in a function"):
        target(lambda: None)


@pytest.mark.parametrize("name", ["taken", "alias"])
def test_a_name_in_use_is_refused_and_stays_with_its_target(name: str) -> None:
    target("taken", aliases=["alias"])(Plain)
    with pytest.raises(ConfigurationError, match="another target is already registered as"):
        target(name)(function)
    with pytest.raises(ConfigurationError, match="another target is already registered as"):
        target("free", aliases=[name])(function)
    assert target_named(name).thing is Plain
    with pytest.raises(UnknownTarget):
        target_named("free")


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_name_has_1_to_255_characters(name: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 255 characters"):
        target("good", aliases=[name])(Plain)


def test_a_reloaded_module_replaces_its_targets() -> None:
    source = "from async_task import target\n@target\ndef work(number: int) -> None: ...\n"
    made = module_named("loaded_twice")
    exec(source, vars(made))  # noqa: S102 - what importlib.reload does
    first = target_named("loaded_twice:work")
    exec(source.replace("number", "other"), vars(made))  # noqa: S102
    again = target_named("loaded_twice:work")
    assert again.thing is not first.thing
    assert list(again.method(None).signature.hints) == ["other"]


def test_nothing_is_imported_because_a_row_names_it() -> None:
    assert "antigravity" not in sys.modules
    for name in ("antigravity", "antigravity:fly", "os:system", "os", "builtins:eval"):
        with pytest.raises(UnknownTarget):
            target_named(name)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (lambda: Plain.static, ("plain", "static")),
        (lambda: Plain.of_class, ("plain", "of_class")),
        (lambda: Plain.later, ("plain", "later")),
        (lambda: function, ("function", "__call__")),
    ],
)
def test_a_function_finds_its_target(called: Callable[[], Any], expected: tuple[str, str]) -> None:
    target("plain")(Plain)
    target("function")(function)
    found = method_of(called())
    assert (found.target.name, found.name) == expected


def test_a_bound_method_belongs_to_its_own_instance() -> None:
    one, other, stranger = Mailer("one"), Mailer("other"), Mailer("stranger")
    target(one, name="one")
    target(other, name="other")
    assert method_of(one.send).target.name == "one"
    assert method_of(other.send).target.name == "other"
    assert method_of(other).target.name == "other"
    with pytest.raises(UnknownTarget, match="no method of a registered target"):
        method_of(stranger.send)


def test_an_inherited_class_method_belongs_to_the_class_that_was_named() -> None:
    target("child")(Child)
    assert method_of(Child.of_class).target.name == "child"
    with pytest.raises(UnknownTarget):
        method_of(Plain.of_class)


def test_a_function_of_several_targets_is_refused_with_their_names() -> None:
    target("plain")(Plain)
    target("child")(Child)
    with pytest.raises(UnknownTarget, match=r"several targets \(child, plain\)"):
        method_of(Plain.static)


def test_a_function_that_is_not_registered_is_refused() -> None:
    for stranger in (print, len, lambda: None, functools.partial(function, 1), Plain.static, "text".upper):
        with pytest.raises(UnknownTarget):
            method_of(stranger)


@pytest.mark.parametrize(
    ("called", "why"),
    [
        (None, "pass the function itself, without calling it"),
        (7, "pass the function itself, without calling it"),
        (lambda: None, r"give it a name, def \.\.\. with @target"),
        (functools.partial(function, 1), r"give it a name, def \.\.\. with @target"),
    ],
)
def test_a_value_that_no_row_can_name_is_refused_with_advice(called: Any, why: str) -> None:
    with pytest.raises(UnknownTarget, match=why):
        Attempt.call(called)


def test_a_method_given_as_the_target_is_refused_with_the_right_call() -> None:
    mailer = Mailer("localhost")
    target(mailer, name="mailer")
    target("plain")(Plain)
    said = r"use target=Plain, method_name='static', or Attempt\.call\(Plain\.static, \.\.\.\)"
    with Session() as session:
        with pytest.raises(UnknownTarget, match=said):
            Attempt.create(target=Plain.static, session=session)
        with pytest.raises(UnknownTarget, match="use target=Plain, method_name='of_class'"):
            Attempt.create(target=Plain.of_class, session=session)
        with pytest.raises(UnknownTarget, match="use target='mailer', method_name='send'"):
            Attempt.create(target=mailer.send, session=session)
        with pytest.raises(UnknownTarget, match="give it a name"):
            Attempt.create(target=lambda: None, session=session)


def test_arguments_are_stored_by_parameter_name() -> None:
    mailer = Mailer("localhost")
    target(mailer, name="mailer")
    target("plain")(Plain)
    with Session() as session:
        options = Attempt.options(session=session)
        assert options.call(mailer.send, "me").method_args == {"to": "me"}
        assert options.call(Plain.of_class, number=1).method_args == {"number": 1}
        assert options.call(mailer, "me").method_name == "__call__"


# Indexes


class Replaced:
    @staticmethod
    def work(number: int) -> None: ...


def test_a_replaced_attribute_and_its_original_are_both_found_while_they_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target("replaced")(Replaced)
    original = Replaced.work

    def work(number: int) -> None: ...

    monkeypatch.setattr(Replaced, "work", staticmethod(work))
    assert method_of(Replaced.work).target.name == method_of(original).target.name == "replaced"
    monkeypatch.undo()
    assert method_of(original).target.name == "replaced"
    with pytest.raises(UnknownTarget):
        method_of(work)


def test_a_function_that_is_defined_after_its_module_was_registered_is_found() -> None:
    made = module_named("shop", __all__=["function"])
    target(made, name="shop")
    vars(made)["function"] = function
    assert method_of(function).target.name == "shop"


def test_a_function_that_a_module_makes_when_it_is_asked_for_is_found() -> None:
    made = module_named("shop", __all__=["function"], __getattr__=lambda name: {"function": function}[name])
    target(made, name="shop")
    assert method_of(function).target.name == "shop"


def test_builtin_functions_bound_methods_and_static_methods_of_an_instance_are_found() -> None:
    target(math, name="math")
    target(random, name="random")
    plain = Plain()
    target(plain, name="plain")
    assert method_of(math.isclose).target.name == "math"
    assert method_of(random.randint).target.name == "random"
    assert method_of(plain.static).target.name == "plain"
    assert method_of(plain.of_instance).target.name == "plain"


def test_finding_a_method_asks_no_other_target() -> None:
    asked: list[str] = []
    made = module_named("shop", __getattr__=asked.append)
    target(made, name="shop")
    target("plain")(Plain)
    assert method_of(Plain.static).target is target_of(Plain)
    assert "static" not in asked


def test_a_target_that_is_registered_again_is_found_once() -> None:
    target("plain", aliases=["former"])(Plain)
    target("plain", priority=3)(Plain)
    assert method_of(Plain.static).policy.priority == 3
    assert target_of(Plain) is target_named("plain")
    assert target_named("former").policy.priority is None
    target("plain", aliases=["former"], priority=4)(Plain)
    assert {method_of(Plain.static).target, target_named("former")} == {target_of(Plain)}


def test_a_class_under_two_names_is_the_first_as_a_target_and_none_as_a_function() -> None:
    target("first")(Plain)
    target("second")(Plain)
    assert target_of(Plain).name == "first"
    assert method_of(Plain.of_class).target.name == "first"
    with pytest.raises(UnknownTarget, match=r"several targets \(first, second\)"):
        method_of(Plain.static)


def test_the_functions_of_a_reloaded_module_replace_its_former_ones() -> None:
    source = "from async_task import target\n@target\nclass Client:\n    @staticmethod\n    def work() -> None: ...\n"
    made = module_named("loaded_twice")
    exec(source, vars(made))  # noqa: S102 - what importlib.reload does
    former = vars(made)["Client"].work
    exec(source, vars(made))  # noqa: S102
    assert method_of(vars(made)["Client"].work).name == "work"
    with pytest.raises(UnknownTarget):
        method_of(former)


def test_the_limit_of_a_target_that_is_registered_again_is_the_new_one() -> None:
    before = dict(limits())
    target("plain", max_running=3)(Plain)
    target("child", queue="plain", max_running=3)(Child)
    assert limits() == {**before, "plain": Limit(3)}
    target("plain", queue="other", max_running=4)(Plain)
    assert limits() == {**before, "plain": Limit(3), "other": Limit(4)}
    target("child")(Child)
    assert limits() == {**before, "other": Limit(4)}


def test_coroutine_functions_are_listed_once_they_are_used_under_each_name_of_their_target() -> None:
    before = set(coroutine_calls(bool))
    target(Plain, name="plain", aliases=["former"])
    assert set(coroutine_calls(bool)) == before
    assert method_of(Plain.later).signature.is_async
    assert set(coroutine_calls(bool)) - before == {("plain", "later"), ("former", "later")}
    target(Plain, name="plain", priority=3)
    assert set(coroutine_calls(bool)) - before == {("former", "later")}
