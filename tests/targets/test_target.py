"""Which methods of a target may be called."""

import subprocess
import textwrap

import pytest

from async_task import ConfigurationError, UnknownMethod, policy, target
from async_task.targets.registry import method_of, target_named, target_of
from registrable import Child, Mailer, Plain, function, module_named

pytestmark = pytest.mark.usefixtures("registered")


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


def test_no_property_is_read_to_find_a_method() -> None:
    mailer = Mailer("localhost")
    target(mailer, name="mailer")
    for name in ("balance", "cached"):
        with pytest.raises(UnknownMethod):
            target_of(mailer).method(name)
    assert mailer.asked == 0


def test_a_module_offers_its_own_functions_and_not_imported_ones() -> None:
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


def test_a_module_may_offer_imported_functions_in_all() -> None:
    made = module_named("shop", function=function, __all__=["function"])
    target(made, name="shop")
    assert list(target_of(made).method("function").signature.hints) == ["number"]


def test_a_target_registered_by_name_is_checked_when_a_method_is_first_used() -> None:
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


def test_isolation_of_a_coroutine_is_refused_unless_its_method_is_exempt() -> None:
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


def test_a_redacted_name_may_be_a_parameter_of_an_inherited_method() -> None:
    class Base:
        @staticmethod
        def pay(card: str) -> None: ...

    class Till(Base):
        @staticmethod
        def ask(number: int) -> None: ...

    target("till", redact=["card"])(Till)
    assert target_of(Till).method("ask").policy.redact == {"card"}


def test_a_redacted_name_that_is_no_parameter_is_refused() -> None:
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
