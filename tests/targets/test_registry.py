"""The allow-list: what is registered, under which name, and what may be called of it."""

import functools
import subprocess
import sys
import textwrap
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import Attempt, ConfigurationError, Retry, UnknownMethod, UnknownTarget, policy, target
from async_task.targets import registry
from async_task.targets.registry import (
    method_of,
    registered_targets,
    target_named,
    target_of,
)


@pytest.fixture(autouse=True)
def _registrations_end_with_their_test() -> Iterator[None]:
    before = registered_targets()
    yield
    registry._allowed = registry.AllowList(before)


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


def test_a_class_is_registered_under_its_module_and_name() -> None:
    assert target(Plain) is Plain
    assert target_of(Plain).name == "test_registry:Plain"
    assert target_named("test_registry:Plain").thing is Plain


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


def test_settings_are_the_targets_and_those_of_a_method_go_first() -> None:
    class Paced:
        @staticmethod
        @policy(priority=1, retry=Retry.never())
        def first() -> None: ...

        @policy(priority=2)
        @staticmethod
        def second() -> None: ...

        @classmethod
        @policy(priority=3)
        def third(cls) -> None: ...

        @staticmethod
        def rest() -> None: ...

    target("paced", priority=9, queue="slow", timeout=5)(Paced)
    found = [target_named("paced").method(name).policy for name in ("first", "second", "third", "rest")]
    assert [one.priority for one in found] == [1, 2, 3, 9]
    assert {one.queue for one in found} == {"slow"}
    assert found[0].retry_or_default.name == "never"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"prioritty": 1}, "'prioritty' is not a setting of a target"),
        ({"priority": 10}, "priority is a whole number"),
        ({"queue": "x" * 65}, "queue is a printable name of 1 to 64"),
        ({"mode": "fast"}, "mode is 'locked' or 'leased'"),
        ({"timeout": 0}, "timeout must be longer than 0"),
        ({"max_age": -1}, "max_age cannot be negative"),
        ({"retry": 3}, "retry takes a Retry"),
        ({"redact": "token"}, "redact takes a list"),
        ({"redact": [1]}, "redact takes a list"),
        ({"redact": None}, "redact takes a list"),
        ({"redact": ["nummber"]}, r"redact: .*Plain takes no argument named 'nummber' \(did you mean 'number'\?\)"),
        ({"batch": 0}, "batch is a whole number from 1 to 50, not 0"),
        ({"batch": 51}, "batch is a whole number from 1 to 50, not 51"),
        ({"batch": True}, "batch is a whole number from 1 to 50, not True"),
        ({"batch": 5}, "batch= is for a plain def with a session, .* a target without a session .* exempts a method"),
        ({"settle_within": -1}, "settle_within"),
        ({"settle_within": 2}, "settle_within is at most 1 s"),
        ({"isolate": 1}, "isolate is True or False"),
        (
            {"mode": "leased", "timeout": 5},
            "nothing can end a plain def in mode='leased' at its timeout=.*isolate=True",
        ),
        ({"encryptor": object()}, "object is not an encryptor"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        target(Plain, **settings)
    with pytest.raises(UnknownTarget):
        target_of(Plain)


def test_a_process_for_a_coroutine_is_refused_unless_its_method_says_that_it_wants_none() -> None:
    class Waiting:
        @staticmethod
        async def wait() -> None: ...

    class Mixed:
        @staticmethod
        @policy(isolate=False)
        async def wait() -> None: ...

        @staticmethod
        def work() -> None: ...

    with pytest.raises(ConfigurationError, match=r"waiting.wait: isolate=True is for a plain def.*isolate=False"):
        target("waiting", isolate=True)(Waiting)
    target("mixed", isolate=True, timeout=5, mode="leased")(Mixed)
    assert [target_named("mixed").method(name).policy.isolate for name in ("wait", "work")] == [False, True]


def test_what_the_target_redacts_stays_redacted_in_a_method_that_redacts_more() -> None:
    class Till:
        @staticmethod
        @policy(redact=["code"])
        def pay(card: str, code: str) -> None: ...

        @staticmethod
        @policy(redact=[])
        def ask(card: str) -> None: ...

    target("till", redact=["card"])(Till)
    assert target_of(Till).method("pay").policy.redact == {"card", "code"}
    assert target_of(Till).method("ask").policy.redact == {"card"}


def test_a_redacted_name_may_be_a_parameter_of_an_inherited_method() -> None:
    class Base:
        @staticmethod
        def pay(card: str) -> None: ...

    class Till(Base):
        @staticmethod
        def ask(number: int) -> None: ...

    target("till", redact=["card"])(Till)
    assert target_of(Till).method("ask").policy.redact == {"card"}


def test_a_redacted_name_that_nothing_takes_is_refused_wherever_it_stands() -> None:
    class Till:
        @staticmethod
        @policy(redact=["carrd"])
        def pay(card: str) -> None: ...

        @staticmethod
        def ask(carrd: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"redact: till\.pay takes no argument named 'carrd'"):
        target("till")(Till)
    target(Till, name="till")
    assert target_of(Till).method("ask").name == "ask"
    with pytest.raises(ConfigurationError, match=r"redact: till\.pay takes no argument named 'carrd'"):
        target_of(Till).method("pay")
    for thing in (function, Mailer("localhost"), module_named("shop", function=function, __all__=["function"])):
        with pytest.raises(ConfigurationError, match="takes no argument named 'card'"):
            target(thing, name="thing", redact=["card"])


def test_a_policy_that_would_mean_nothing_is_refused() -> None:
    def work(number: int) -> None: ...

    class Worker:
        @staticmethod
        def work(number: int) -> None: ...

    with pytest.raises(ConfigurationError, match="put @policy below @target, on the method"):
        policy(priority=1)(Worker)
    with pytest.raises(ConfigurationError, match="put @policy below @target, on the method"):
        policy(priority=1)(target("work")(work))
    target("worker")(Worker)
    for method in (Worker.work, vars(Worker)["work"]):
        with pytest.raises(ConfigurationError, match="work is registered already"):
            policy(priority=1)(method)
    assert target_of(Worker).method("work").policy.priority is None


def test_a_policy_for_what_is_looked_at_later_is_in_time_until_then() -> None:
    def work(number: int) -> None: ...

    policy(priority=1)(target(work, name="work"))
    assert target_named("work").method(None).policy.priority == 1
    with pytest.raises(ConfigurationError, match="is registered already"):
        policy(priority=2)(work)


def test_a_wrapper_of_what_is_registered_may_have_a_policy_of_its_own() -> None:
    def work(number: int) -> None: ...

    target("work")(work)

    @target("wrapped")
    @policy(priority=1)
    @functools.wraps(work)
    def wrapped(*args: Any) -> None: ...

    assert target_named("wrapped").method(None).policy.priority == 1


@pytest.mark.parametrize(
    ("name", "is_async"), [("static", False), ("of_class", False), ("later", True), ("own", False)]
)
def test_static_class_async_and_inherited_methods_may_be_called(name: str, is_async: bool) -> None:
    target("child")(Child)
    method = target_of(Child).method(name)
    assert method.signature.is_async is is_async
    assert method.mode == ("leased" if is_async else "locked")
    assert list(method.signature.hints) == ["number"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("_hidden", "beginning with _ is never called"),
        ("__init__", "beginning with _ is never called"),
        ("__class__", "beginning with _ is never called"),
        ("of_instance", "needs an instance"),
        ("Inner", "has no method 'Inner'"),
        ("constant", "has no method"),
        ("sttic", "did you mean 'static'"),
        ("", "name it with method_name="),
        ("__call__", "name it with method_name="),
        ("static.__globals__", "has no method"),
    ],
)
def test_nothing_else_of_a_class_may_be_called(name: str, why: str) -> None:
    target("plain")(Plain)
    with pytest.raises(UnknownMethod, match=why):
        target_of(Plain).method(name)


def test_an_instance_is_called_by_its_methods_or_itself() -> None:
    mailer = Mailer("localhost")
    with pytest.raises(ConfigurationError, match="an instance has no name of its own"):
        target(mailer)
    target(mailer, name="mailer")
    assert list(target_of(mailer).method("send").signature.hints) == ["to"]
    assert list(target_of(mailer).method(None).signature.hints) == ["to"]


def test_no_property_is_run_to_see_whether_it_may_be_called() -> None:
    mailer = Mailer("localhost")
    target(mailer, name="mailer")
    for name in ("balance", "cached"):
        with pytest.raises(UnknownMethod):
            target_of(mailer).method(name)
    assert mailer.asked == 0


def test_a_module_is_called_by_its_own_functions_and_not_by_what_it_imports() -> None:
    target(textwrap, name="textwrap")
    assert target_of(textwrap).method("dedent").name == "dedent"
    assert method_of(textwrap.dedent).signature.names == ["text"]
    made = module_named("shop", run=subprocess.run, Plain=Plain)
    target(made, name="shop")
    with pytest.raises(UnknownMethod, match="only imported there: name it in __all__"):
        target_of(made).method("run")
    with pytest.raises(UnknownMethod):
        target_of(made).method("Plain")
    with pytest.raises(UnknownMethod):
        target_of(made).method("run.__self__")


def test_what_a_module_names_in_all_is_its_own() -> None:
    made = module_named("shop", function=function, __all__=["function"])
    target(made, name="shop")
    assert list(target_of(made).method("function").signature.hints) == ["number"]


def test_what_is_not_ones_own_is_looked_at_when_it_is_first_used() -> None:
    class Foreign:
        @staticmethod
        def good(number: int) -> None: ...

        @staticmethod
        def bad(*numbers: int) -> None: ...

    target(Foreign, name="foreign")
    assert target_of(Foreign).method("good").name == "good"
    with pytest.raises(ConfigurationError, match=r"takes \*numbers"):
        target_of(Foreign).method("bad")
    with pytest.raises(ConfigurationError, match=r"takes \*numbers"):
        target("mine")(Foreign)


# Finding the target of a call


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (lambda: Plain.static, ("plain", "static")),
        (lambda: Plain.of_class, ("plain", "of_class")),
        (lambda: Plain.later, ("plain", "later")),
        (lambda: function, ("function", "__call__")),
    ],
)
def test_a_call_finds_its_target(called: Callable[[], Any], expected: tuple[str, str]) -> None:
    target("plain")(Plain)
    target("function")(function)
    found = method_of(called())
    assert (found.target.name, found.name) == expected


def test_a_bound_method_is_that_of_its_own_instance() -> None:
    one, other, stranger = Mailer("one"), Mailer("other"), Mailer("stranger")
    target(one, name="one")
    target(other, name="other")
    assert method_of(one.send).target.name == "one"
    assert method_of(other.send).target.name == "other"
    assert method_of(other).target.name == "other"
    with pytest.raises(UnknownTarget, match="no method of a registered target"):
        method_of(stranger.send)


def test_an_inherited_class_method_is_that_of_the_class_that_was_named() -> None:
    target("child")(Child)
    assert method_of(Child.of_class).target.name == "child"
    with pytest.raises(UnknownTarget):
        method_of(Plain.of_class)


def test_a_call_that_several_targets_have_is_no_choice() -> None:
    target("plain")(Plain)
    target("child")(Child)
    with pytest.raises(UnknownTarget, match=r"several targets \(child, plain\)"):
        method_of(Plain.static)


def test_a_call_of_nothing_registered_is_refused() -> None:
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
def test_what_is_no_function_of_ones_own_is_refused_with_what_to_do(called: Any, why: str) -> None:
    with pytest.raises(UnknownTarget, match=why):
        Attempt.call(called)


def test_a_method_given_as_a_target_is_told_apart() -> None:
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


def test_calls_are_written_under_the_names_of_parameters() -> None:
    mailer = Mailer("localhost")
    target(mailer, name="mailer")
    target("plain")(Plain)
    with Session() as session:
        options = Attempt.options(session=session)
        assert options.call(mailer.send, "me").method_args == {"to": "me"}
        assert options.call(Plain.of_class, number=1).method_args == {"number": 1}
        assert options.call(mailer, "me").method_name == "__call__"


# What is refused when it is registered


def with_args(*numbers: int) -> None: ...
def with_keywords(**numbers: int) -> None: ...
def with_positional(number: int, /) -> None: ...
def with_underscore(_number: int) -> None: ...
def with_late_session(number: int, session: Session) -> None: ...
def with_keyword_session(*, number: int, session: AsyncSession) -> None: ...
def with_optional_session(session: Session | None = None) -> None: ...
def generating() -> Iterator[int]:
    yield 1


async def generating_later() -> AsyncIterator[int]:
    yield 1


def with_unresolved(number: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821 # pyright: ignore
def with_broken(number: int) -> None: ...


with_broken.__annotations__["number"] = "int |"


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (with_args, r"takes \*numbers: arguments are stored under names"),
        (with_keywords, r"takes \*\*numbers: arguments are stored under names"),
        (with_positional, "number is positional-only"),
        (with_underscore, "_number begins with _"),
        (with_late_session, "the session session must be the first parameter"),
        (with_optional_session, "annotated with Session or AsyncSession alone"),
        (generating, "is a generator"),
        (generating_later, "is a generator"),
        (with_unresolved, "'Missing' cannot be resolved at run time: import it outside of TYPE_CHECKING"),
        (with_broken, "its annotations cannot be resolved at run time"),
    ],
)
def test_what_cannot_be_written_down_is_refused_when_it_is_registered(refused: Any, why: str) -> None:
    holder = type("Holder", (), {"__module__": __name__, "method": staticmethod(refused)})
    for thing in (refused, holder):
        with pytest.raises(ConfigurationError, match=why):
            target(thing)
        with pytest.raises(UnknownTarget):
            target_of(thing)


def test_a_keyword_only_session_is_no_first_parameter() -> None:
    with pytest.raises(ConfigurationError, match="must be the first parameter"):
        target(with_keyword_session)


def test_what_no_worker_could_find_needs_a_name() -> None:
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
def test_a_name_that_is_taken_is_refused_and_changes_nothing(name: str) -> None:
    target("taken", aliases=["alias"])(Plain)
    with pytest.raises(ConfigurationError, match="another target is already registered as"):
        target(name)(function)
    with pytest.raises(ConfigurationError, match="another target is already registered as"):
        target("free", aliases=[name])(function)
    assert target_named(name).thing is Plain
    with pytest.raises(UnknownTarget):
        target_named("free")


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_name_has_a_length_that_a_row_has_room_for(name: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 255 characters"):
        target("good", aliases=[name])(Plain)


def test_a_module_that_is_loaded_again_replaces_its_targets() -> None:
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
