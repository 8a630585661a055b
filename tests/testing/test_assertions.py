"""`written`, `assert_written`, `assert_not_written`: what they compare, and what they say."""

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import outbox
from async_task import Attempt, ConfigurationError, InvalidArguments, NoTransaction, UnknownTarget
from async_task.testing import assert_not_written, assert_written, perform_all, written
from async_task.testing.awaited import forgotten
from outbox import Client, HookedAttempt

Play = Callable[..., Any]


@pytest.fixture
def call(session: Session) -> Callable[..., Attempt]:
    return Attempt.options(session=session).call


def test_written_returns_the_attempts_of_the_session_in_order(session: Session, call: Any) -> None:
    one, two, three = call(Client.ping), call(Client.fulfill, "c", 17), call(outbox.effect, what="x")
    own = HookedAttempt.create(target=Client, method_name="ping", session=session)
    assert written(session) == [one, two, three, own]
    assert written(session, Client.ping) == [one, own]
    perform_all(session)
    assert [attempt.status for attempt in written(session)] == ["succeeded"] * 4
    with pytest.raises(UnknownTarget):
        written(session, print)


def test_attempts_that_are_written_while_a_test_has_stopped_the_clock_are_in_order(
    session: Session, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = 1_790_000_000_000_999_999  # the last tick of a millisecond
    monkeypatch.setattr(time, "time_ns", lambda: stopped)
    made = [call(Client.ping) for _ in range(20)]
    assert written(session) == made
    assert all(one.id.version == 7 for one in made)


def test_the_session_and_the_function_are_given_by_name_too(session: Session, call: Any) -> None:
    one, other = call(Client.ping), call(outbox.effect, what="x")
    assert written(session=session, fn=Client.ping) == [one]
    assert written(fn=outbox.effect) == [other]
    with pytest.raises(ConfigurationError, match=r"session first, and then the function: written\(fn=Client.ping\)$"):
        written(Client.ping)  # type: ignore[call-overload]
    assert len(perform_all(session=session)) == 2


def test_arguments_that_are_not_given_are_not_compared(session: Session, call: Any) -> None:
    other, wanted = call(Client.fulfill, "c", 16), call(Client.fulfill, "c", order_number=17)
    assert assert_written(Client.fulfill, session=session) is other
    assert assert_written(Client.fulfill, order_number=17, session=session) is wanted
    assert assert_written(Client.fulfill, "c", 17, session=session) is wanted
    assert_not_written(Client.fulfill, order_number=18, session=session)
    assert_not_written(Client.ping, session=session)


def test_an_argument_that_was_left_out_has_its_default(session: Session, call: Any) -> None:
    call(outbox.effect)
    assert_written(outbox.effect, what="done", session=session)
    assert_not_written(outbox.effect, what="other", session=session)


def test_a_patched_function_and_a_name_of_former_times_are_found(session: Session) -> None:
    with mock.patch.object(Client, "ping"):
        Attempt.options(session=session).call(Client.ping)
        assert_written(Client.ping, session=session)
    assert_written(Client.ping, session=session)


def test_what_was_not_written_is_told_with_what_was_and_what_differs(session: Session, call: Any) -> None:
    near = call(Client.fulfill, "c", 16)
    call(Client.fulfill, "other", 1)
    call(Client.ping)
    with pytest.raises(AssertionError) as told:
        assert_written(Client.fulfill, customer_token="c", order_number=17, session=session)
    assert str(told.value).splitlines() == [
        "test.client.fulfill(customer_token='c', order_number=17) was not written",
        f"  order_number is 16, not 17, in {near.id}",
        "written were:",
        "  test.client.fulfill(customer_token='c', order_number=16)",
        "  test.client.fulfill(customer_token='other', order_number=1)",
    ]


def test_without_a_call_of_the_function_others_are_told(session: Session, call: Any) -> None:
    with pytest.raises(AssertionError, match=r"ping\(\) was not written\nno call was written at all"):
        assert_written(Client.ping, session=session)
    for _ in range(12):
        call(outbox.effect, what="x" * 500)
    with pytest.raises(AssertionError) as told:
        assert_written(Client.ping, session=session)
    lines = str(told.value).splitlines()
    assert lines[:2] == ["test.client.ping() was not written", "written were:"]
    assert len(lines) == 13
    assert lines[-1] == "  and 2 more"
    assert len(lines[2]) < 260


def test_what_was_written_all_the_same_is_told(session: Session, call: Any) -> None:
    call(Client.fulfill, "c", 16)
    with pytest.raises(AssertionError) as told:
        assert_not_written(Client.fulfill, order_number=16, session=session)
    assert str(told.value).splitlines() == [
        "test.client.fulfill(order_number=16) was written",
        "written were:",
        "  test.client.fulfill(customer_token='c', order_number=16)",
    ]


def test_redacted_and_encrypted_arguments_are_compared_and_not_shown(session: Session, call: Any) -> None:
    call(outbox.act_redacted, card="4711-redacted", order=3)
    call(outbox.act_boxed, card="4711-boxed")
    assert_written(outbox.act_redacted, card="4711-redacted", session=session)
    assert_written(outbox.act_boxed, card="4711-boxed", session=session)
    for function in (outbox.act_redacted, outbox.act_boxed):
        with pytest.raises(AssertionError) as told:
            assert_written(function, card="08-15x-wanted", session=session)
        assert "card is [hidden], not [hidden]" in str(told.value)
        assert "4711" not in str(told.value)
        assert "08-15x" not in str(told.value)
    with pytest.raises(AssertionError, match="order is 3, not 4"):
        assert_written(outbox.act_redacted, order=4, session=session)


def test_arguments_of_an_attempt_with_an_encryptor_of_its_own_are_not_shown(session: Session, call: Any) -> None:
    call(Client.fulfill, "plain", 17)
    Attempt.options(session=session, encryptor=outbox.BOX).call(Client.fulfill, "4711", 16)
    with pytest.raises(AssertionError) as told:
        assert_written(Client.fulfill, customer_token="08-15x", order_number=17, session=session)
    first, *lines = str(told.value).splitlines()
    assert first == "test.client.fulfill(customer_token=[hidden], order_number=[hidden]) was not written"
    assert lines[0].startswith("  customer_token is [hidden], not [hidden], in ")
    assert "  test.client.fulfill(customer_token='plain', order_number=17)" in lines
    with pytest.raises(AssertionError) as told:
        assert_not_written(Client.fulfill, customer_token="4711", session=session)
    assert str(told.value).splitlines()[0] == "test.client.fulfill(customer_token=[hidden]) was written"
    assert "4711" not in str(told.value)


@pytest.mark.parametrize("check", [assert_written, assert_not_written])
def test_a_mistake_in_the_assertion_is_refused(session: Session, call: Any, check: Any) -> None:
    call(Client.fulfill, "c", 16)
    with pytest.raises(InvalidArguments, match="no argument is named 'ordr_number'; it takes customer_token, order_n"):
        check(Client.fulfill, ordr_number=16, session=session)
    with pytest.raises(InvalidArguments, match="too many positional arguments"):
        check(Client.fulfill, "c", 16, 17, session=session)
    with pytest.raises(UnknownTarget, match="no method of a registered target"):
        check(print, session=session)
    session.rollback()
    with pytest.raises(NoTransaction):
        check(Client.fulfill)


def test_a_forgotten_await_is_warned_of(play: Play) -> None:
    async def test(session: AsyncSession) -> None:
        with pytest.warns(RuntimeWarning, match=r"^perform_all\(\) of an AsyncSession was not awaited$") as warned:
            perform_all(session)
        assert [one.filename for one in warned] == [__file__]
        once = written(session)
        assert await once == []
        with pytest.raises(RuntimeError, match="already awaited"):
            await once

    play(test)
    forgotten.clear()  # or this test fails


def test_all_of_it_on_an_async_session(play: Play) -> None:
    async def test(session: AsyncSession) -> None:
        made = Attempt.options(session=session).call(Client.fulfill, "c", 17)
        assert await written(session) == [made]
        assert await assert_written(Client.fulfill, order_number=17, session=session) is made
        await assert_not_written(Client.ping, session=session)
        with pytest.raises(AssertionError, match="order_number is 17, not 18"):
            await assert_written(Client.fulfill, order_number=18, session=session)

    play(test)
