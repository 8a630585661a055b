"""`replaced`: a fake in the place of what cannot be patched; and `advance`."""

import datetime as dt
from typing import Any
from unittest import mock

import pytest
from sqlalchemy.orm import Session

import outbox
from async_task import AsyncTask, Attempt, ConfigurationError, Succeeded, UnknownTarget
from async_task.testing import advance, perform_all, replaced
from outbox import Client


def test_a_replaced_function_calls_the_fake_in_tests_and_in_workers(session: Session) -> None:
    options = Attempt.options(session=session)
    with replaced(Client.fulfill, mock.Mock(return_value=None)) as fake, replaced(Client.fulfill_later, fake):
        options.call(Client.fulfill, "c", 1)
        options.call(Client.fulfill_later, "c", 2)
        perform_all(session)
        with replaced(Client.fulfill, lambda **_: outbox.calls.append("inner")):
            options.call(Client.fulfill, "c", 3)
            perform_all(session)
        options.call(Client.fulfill, "c", 5)
        perform_all(session)
    options.call(Client.fulfill, "c", 4)
    perform_all(session)
    assert fake.call_args_list == [
        mock.call(customer_token="c", order_number=1), mock.call(customer_token="c", order_number=2),
        mock.call(customer_token="c", order_number=5),
    ]  # fmt: skip
    assert outbox.calls == ["inner", ("c", 4)]


def test_a_worker_calls_the_fake_too(app: AsyncTask, write: Any) -> None:
    attempt = write(outbox.effect, None, {"what": "x"})
    fake = mock.Mock(return_value=None)
    with replaced(outbox.effect, fake):
        assert app.perform(attempt.id) == Succeeded(attempt.id)
    ((session,), arguments) = fake.call_args
    assert isinstance(session, Session)
    assert arguments == {"what": "x"}


def test_what_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(UnknownTarget), replaced(print, print):
        raise AssertionError
    with pytest.raises(ConfigurationError, match="str cannot be called"), replaced(Client.ping, "fake"):  # type: ignore[type-var]
        raise AssertionError


def test_time_passes_for_all_instants_of_pending_attempts_alone(session: Session) -> None:
    in_an_hour = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1)
    waiting = Attempt.create(
        target=Client, method_name="ping", scheduled_at=in_an_hour, expires_at=in_an_hour, session=session
    )
    done = Attempt.create(target=Client, method_name="ping", session=session)
    perform_all(session)
    before, due = done.created_at, waiting.created_at
    advance("1d12h", session=session)
    day = dt.timedelta(hours=36)
    assert waiting.scheduled_at == waiting.due_at == waiting.expires_at == in_an_hour - day
    assert (waiting.created_at, done.created_at) == (due - day, before)
    for wrong in ("soon", -1):
        with pytest.raises(ConfigurationError):
            advance(wrong, session=session)  # type: ignore[arg-type]
