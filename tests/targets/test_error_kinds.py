"""`retry_on` and `discard_on`: which errors are retried, and which end their attempt at once. Without a database."""

import datetime as dt
from typing import Any

import pytest

from async_task import ConfigurationError, Discard, Retry, RetryAfter, Status, policy, target
from async_task.error_text import of_library, quotes_nothing
from async_task.outcomes import Decision, Standing, decide, error_alone
from async_task.targets.error_kinds import NOT_NAMED, ErrorKinds
from async_task.targets.policies import Policy, Settings
from async_task.targets.registry import target_named

pytestmark = pytest.mark.usefixtures("registered")


class Base(Exception): ...


class Middle(Base): ...


class Leaf(Middle): ...


class Mixed(Leaf, ConnectionError): ...


def kinds(retry_on: Any = None, discard_on: Any = ()) -> ErrorKinds:
    settings = Settings(discard_on=discard_on)
    return Policy.of(settings if retry_on is None else {**settings, "retry_on": retry_on}).error_kinds


def decided(error: BaseException, own: ErrorKinds) -> Decision:
    second = dt.timedelta(seconds=1)
    return decide(error, Standing(second, None, 0, None), Retry.every(60), kinds=own)


RETRIED, ENDED, OTHER = (Status.PENDING, ""), (Status.FAILED, ""), (Status.FAILED, NOT_NAMED)


@pytest.mark.parametrize(
    ("retry_on", "discard_on", "error", "expected"),
    [
        (None, (), Leaf(), RETRIED),
        (None, Middle, Middle(), ENDED),
        (None, Middle, Leaf(), ENDED),
        (None, Middle, Base(), RETRIED),
        (None, [KeyError, Base], Leaf(), ENDED),
        (Middle, (), Leaf(), RETRIED),
        (Middle, (), Base(), OTHER),
        ((KeyError, Base), (), Leaf(), RETRIED),
        (Base, Middle, Leaf(), ENDED),
        (Middle, Base, Leaf(), RETRIED),
        (Middle, Base, Base(), ENDED),
        (Middle, Middle, Leaf(), ENDED),
        (ConnectionError, Base, Mixed(), ENDED),
        (ConnectionError, Leaf, Mixed(), ENDED),
        (Exception, Base, Mixed(), ENDED),
        (ConnectionError, KeyError, Mixed(), RETRIED),
        (Base, KeyError, SystemExit(), OTHER),
    ],
)
def test_the_nearer_class_decides_and_else_discard_on(
    retry_on: Any, discard_on: Any, error: BaseException, expected: tuple[Status, str]
) -> None:
    decision = decided(error, kinds(retry_on, discard_on))
    assert (decision.status, decision.reason) == expected
    assert decision.charged
    assert decision.error is error


class Both(ExceptionGroup, Middle): ...  # type: ignore[type-arg]


def group(*errors: BaseException, kind: Any = BaseExceptionGroup) -> Any:
    return kind("several", errors)


@pytest.mark.parametrize(
    ("retry_on", "discard_on", "error", "expected"),
    [
        (ConnectionError, (), group(ConnectionError()), RETRIED),
        (ConnectionError, (), group(ConnectionError(), group(ConnectionResetError())), RETRIED),
        (ConnectionError, (), group(ConnectionError(), KeyError()), OTHER),
        (ConnectionError, (), group(ConnectionError(), group(KeyError())), OTHER),
        (None, Middle, group(Leaf()), ENDED),
        (None, Middle, group(KeyError(), group(Leaf())), ENDED),
        (None, Middle, group(Base()), RETRIED),
        (Exception, Middle, group(Leaf()), ENDED),
        (Middle, Exception, group(Leaf()), RETRIED),
        (Middle, Exception, group(Leaf(), KeyError()), ENDED),
        (Exception, (), group(SystemExit()), OTHER),
        (ExceptionGroup, (), group(KeyError()), RETRIED),
        (BaseExceptionGroup, (), group(KeyError()), RETRIED),
        ((ExceptionGroup, ConnectionError), (), group(KeyError(), SystemExit()), OTHER),
        (None, ExceptionGroup, group(KeyError()), ENDED),
        (None, (Middle, ExceptionGroup), group(KeyError()), ENDED),
        (Middle, (), group(KeyError(), kind=Both), RETRIED),
        (KeyError, Middle, group(KeyError(), kind=Both), ENDED),
    ],
)
def test_a_group_counts_as_the_errors_in_it_unless_it_is_named(
    retry_on: Any, discard_on: Any, error: BaseException, expected: tuple[Status, str]
) -> None:
    decision = decided(error, kinds(retry_on, discard_on))
    assert (decision.status, decision.reason) == expected
    assert decision.error is error


def test_in_a_group_a_discard_ends_it_and_of_several_waits_the_longest_holds() -> None:
    for own in (kinds(), kinds(ExceptionGroup)):
        assert decided(group(KeyError(), group(Dropped("done"))), own).status is Status.FAILED
    for own in (kinds(), kinds(Slower), kinds(KeyError), kinds(KeyError, Exception)):
        slow = group(RetryAfter(after=500), group(Slower(after=900), RetryAfter(after=5)))
        assert decided(slow, own).after == dt.timedelta(seconds=900)
    assert decided(group(Slower(after=5), KeyError()), kinds(ConnectionError)).reason == NOT_NAMED
    assert decided(group(Slower(after=5), KeyError()), kinds()).after == dt.timedelta(seconds=5)


def test_a_broken_wait_in_a_group_leaves_the_others() -> None:
    broken = Slower(after=900)
    broken.after = "soon"  # type: ignore[assignment]
    whole = decided(group(broken, Slower(after=5)), kinds())
    assert (whole.after, whole.reason) == (dt.timedelta(seconds=5), "")
    alone = decided(group(broken), kinds())
    assert alone.after == dt.timedelta(seconds=60)
    assert "its Slower is broken, so its retry policy decided" in alone.reason


class Slower(RetryAfter): ...


class Dropped(Discard): ...


def test_a_target_that_decides_by_itself_is_not_overruled() -> None:
    for own in (kinds(KeyError), kinds(None, Exception)):
        assert decided(Slower(after=5), own).after == dt.timedelta(seconds=5)
    assert decided(Dropped("done"), kinds(Exception)).status is Status.FAILED


@pytest.mark.parametrize("mark", [quotes_nothing, of_library])
def test_what_the_library_says_about_a_call_is_retried_unless_discard_on_names_its_class(mark: Any) -> None:
    late = mark(TimeoutError("too long"))
    assert decided(late, kinds(KeyError)).status is Status.PENDING
    assert decided(late, kinds(None, (OSError, Exception))).status is Status.PENDING
    assert decided(late, kinds(None, TimeoutError)).status is Status.FAILED
    assert decided(TimeoutError("of the target's"), kinds(KeyError)).reason == NOT_NAMED


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"retry_on": "ValueError"}, "retry_on takes a class of exceptions or a list of them, not 'ValueError'"),
        ({"discard_on": 7}, "discard_on takes a class of exceptions or a list of them, not 7"),
        ({"discard_on": int}, "discard_on takes classes of exceptions, and <class 'int'> is none"),
        ({"discard_on": [ValueError("x")]}, "discard_on takes classes of exceptions, and ValueError"),
        ({"retry_on": ()}, r"retry_on names at least one class of exceptions; retry=Retry.never\(\) retries none"),
        ({"retry_on": Dropped}, "retry_on cannot name Dropped: a Discard always ends its attempt at once"),
        ({"discard_on": [Slower]}, "discard_on cannot name Slower: a RetryAfter always asks for another try"),
    ],
)
def test_bad_types_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        target("bad", **settings)(lambda: None)


def test_those_of_a_method_go_before_those_of_its_target() -> None:
    @target("both", discard_on=[KeyError, ValueError], retry_on=ConnectionError)
    class Both:
        @staticmethod
        @policy(discard_on=())
        def exempt() -> None: ...

        @staticmethod
        @policy(discard_on=TypeError, retry_on=[OSError])
        def own() -> None: ...

    found = {name: target_named("both").method(name).policy.error_kinds for name in ("exempt", "own")}
    assert found == {"exempt": ((ConnectionError,), ()), "own": ((OSError,), (TypeError,))}


def test_its_reason_is_no_part_of_the_error() -> None:
    assert error_alone(f"{NOT_NAMED}: Broken: no") == error_alone(f"Broken: no ({NOT_NAMED})") == "Broken: no"
