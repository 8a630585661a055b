"""What the page on Django says about transactions."""

import os
from contextlib import suppress

import django
import pytest
from django.core.management import call_command
from django.db import transaction
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from async_task import AsyncTask, Attempt, target

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()

from django_tasks_db.models import DBTaskResult  # noqa: E402

import settings  # noqa: E402
import tasks  # noqa: E402

engine = create_engine(settings.url)
SessionLocal = sessionmaker(engine)
outbox = AsyncTask(SessionLocal)


@target("shop.pack")
def pack(number: int) -> None: ...


class Undone(Exception):
    """Rolls a transaction of Django back."""


@pytest.fixture(scope="module", autouse=True)
def tables() -> None:
    outbox.create_schema()
    call_command("migrate", verbosity=0)


def test_a_call_is_not_in_the_transaction_of_django() -> None:
    with suppress(Undone), transaction.atomic():
        with SessionLocal.begin():
            Attempt.call(pack, 1)
        raise Undone
    assert outbox.attempts.counts().total == 1  # the call is there, and what caused it is not


def test_a_task_of_django_tasks_db_is_in_that_transaction() -> None:
    with suppress(Undone), transaction.atomic():
        tasks.pack.enqueue(1)
        raise Undone
    assert DBTaskResult.objects.count() == 0
    with transaction.atomic():
        tasks.pack.enqueue(1)
    assert DBTaskResult.objects.count() == 1


def test_a_callback_of_on_commit_is_lost_with_an_error_of_the_one_before() -> None:
    called = []

    def fail() -> None:
        raise Undone

    with suppress(Undone), transaction.atomic():
        transaction.on_commit(fail)
        transaction.on_commit(lambda: called.append(1))
    assert called == []
