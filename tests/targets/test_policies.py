"""Settings of targets and of their methods."""

import functools
from typing import Any

import pytest

from async_task import ConfigurationError, Retry, UnknownTarget, policy, target
from async_task.targets.registry import target_named, target_of
from registrable import Plain

pytestmark = pytest.mark.usefixtures("registered")


def test_settings_of_a_method_override_those_of_its_target() -> None:
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
        ({"batch": 5}, "batch= is for a plain def with a session.* that takes no session .* exempts a method"),
        ({"settle_within": -1}, "settle_within"),
        ({"settle_within": 2}, "settle_within is at most 1 s"),
        ({"isolate": 1}, "isolate is True or False"),
        (
            {"mode": "leased", "timeout": 5},
            "nothing can end a plain def in mode='leased' at its timeout=.*isolate=True",
        ),
        ({"encryptor": object()}, "object is not an encryptor"),
        ({"aliases": "shop:Old"}, "aliases takes a list of names"),
        ({"aliases": ["shop:Old", 1]}, "aliases takes a list of names"),
        ({"aliases": [Plain]}, "aliases takes a list of names"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        target(Plain, **settings)
    with pytest.raises(UnknownTarget):
        target_of(Plain)


def test_a_method_redacts_its_own_names_and_those_of_its_target() -> None:
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


def test_a_policy_without_effect_is_refused() -> None:
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


def test_a_policy_may_be_set_until_its_method_is_first_used() -> None:
    def work(number: int) -> None: ...

    policy(priority=1)(target(work, name="work"))
    assert target_named("work").method(None).policy.priority == 1
    with pytest.raises(ConfigurationError, match="is registered already"):
        policy(priority=2)(work)


def test_a_wrapper_of_a_registered_function_may_have_its_own_policy() -> None:
    def work(number: int) -> None: ...

    target("work")(work)

    @target("wrapped")
    @policy(priority=1)
    @functools.wraps(work)
    def wrapped(*args: Any) -> None: ...

    assert target_named("wrapped").method(None).policy.priority == 1
