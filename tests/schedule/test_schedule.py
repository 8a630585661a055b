"""The schedule as code: what is refused when its module is imported, and the keys of entries."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped

from async_task import AsyncTask, Attempt, BaseAttempt, ConfigurationError, Retry, Schedule
from outbox import Client, act_boxed, effect

URL = "sqlite:///never-opened.sqlite"


def add(**options: Any) -> Schedule:
    schedule = Schedule()
    schedule.every(minutes=5, **{"call": Client.ping, **options})
    return schedule


async def never(at: dt.datetime) -> bool:
    return False


class Never:
    async def __call__(self, at: dt.datetime) -> bool:
        return False


def test_the_schedule_is_source_code_a_list_of_times_and_enqueue_calls() -> None:
    schedule = Schedule()
    schedule.every(minutes=1, call=Client.ping)
    schedule.cron("5 * * * *", tz="Europe/London", call=Attempt.options(queue="slow").of(effect), args={"what": "done"})
    schedule.at("02:30", tz="America/New_York", days="mon-fri", call="test.client.fail", when=lambda at: at.day < 8)
    assert [(str(one.rule), one.call, one.attempt.get("queue")) for one in schedule] == [
        ("every 1 minute", "test.client.ping", None),
        ("cron 5 * * * * Europe/London", "test.effect", "slow"),
        ("at 02:30 on mon-fri America/New_York", "test.client.fail", None),
    ]


def test_the_key_of_an_entry_is_the_name_of_its_call_or_given() -> None:
    schedule = add()
    schedule.every(hours=1, call=effect)
    schedule.every(hours=2, call="test.client.fail", key="fails now and then")
    assert list(schedule.entries) == ["test.client.ping", "test.effect", "fails now and then"]
    assert [one.call for one in schedule] == ["test.client.ping", "test.effect", "test.client.fail"]
    assert len(schedule) == 3


def test_two_entries_of_one_key_are_refused() -> None:
    schedule = add()
    with pytest.raises(ConfigurationError) as raised:
        schedule.at("02:30", tz="Europe/London", call=Client.ping)
    assert str(raised.value) == (
        "schedule entry 'test.client.ping': there are two with this key (every 5 minutes; at 02:30 Europe/London): "
        "give one a key="
    )
    schedule.at("02:30", tz="Europe/London", call=Client.ping, key="ping at night")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"args": {"number": 1}}, "number"),
        ({"call": Client.fulfill}, "the argument 'customer_token' is missing"),
        ({"call": Client.fail, "args": {"message": 7}}, "message"),
        ({"args": ["message"]}, "args= takes a mapping"),
        ({"call": Client}, "is called by one of its methods"),
        ({"call": lambda: None}, "has no name"),
        ({"call": "test.client.pong"}, "no method 'pong'"),
        ({"call": "test.klient.ping"}, "did you mean"),
        ({"call": 7}, "cannot be called"),
        ({"key": ""}, "key= is a printable text"),
        ({"key": "a\nb"}, "key= is a printable text"),
        ({"key": "k" * 201}, "key= is a printable text"),
        ({"catch_up": "some"}, 'catch_up is "skip", "latest", "all"'),
        ({"catch_up": "all(1001)"}, 'a number like "all\\(24\\)" up to 1000'),
        ({"catch_up": None}, "catch_up is"),
        ({"catch_up": []}, "catch_up is"),
        ({"overlap": "wait"}, "overlap is one of"),
        ({"jitter": -1}, "jitter cannot be negative"),
        ({"jitter": "30s"}, "jitter takes a timedelta or seconds"),
        ({"when": True}, "when= takes a function"),
        ({"when": never}, "when= takes a plain function: a call of <function never"),
        ({"when": Never()}, "when= takes a plain function"),
        ({"when": lambda at: (yield at)}, "when= takes a plain function"),
        ({"catchup": "all"}, r"there is no option catchup= \(did you mean 'catch_up'\?\)"),
        ({"call": Attempt.options(idempotence_token="x").of(Client.ping)}, "idempotence_token= is for one call"),
        ({"call": Attempt.options(scheduled_at=dt.datetime.now(dt.UTC)).of(Client.ping)}, "scheduled_at= is for one"),
        ({"call": Attempt.options(delay=60).of(Client.ping)}, "delay= is for one call"),
        ({"call": Attempt.options(order_key="x").of(Client.ping), "overlap": "queue"}, "leave order_key= out"),
    ],
)
def test_an_entry_is_checked_like_a_call_when_its_module_is_imported(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        add(**options)
    assert str(raised.value).startswith("schedule entry ")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda one: one.every(seconds=0.5, call=Client.ping), "every of Client.ping: an interval is at least 1 s"),
        (lambda one: one.every(days=3e6, call=Client.ping, key="x"), "'x': an interval is at most a thousand years"),
        (lambda one: one.at("02:30", call=Client.ping), "at '02:30' of Client.ping: a time of day needs its zone"),
        (lambda one: one.at("2:30", tz="UTC", call=Client.ping), "at '2:30' of Client.ping: a time of day is written"),
        (lambda one: one.at("02:30", tz="Mars", call=Client.ping, key="red"), "'red': no time zone is called 'Mars'"),
        (lambda one: one.at("02:30", tz="UTC", days="someday", call=Client.ping), "days are written"),
        (lambda one: one.cron("5 * * * *", call=Client.ping), "needs its zone"),
        (lambda one: one.cron("0 0 31 2 *", tz="UTC", call=Client.ping, key="never"), "'never': the cron expression"),
        (lambda one: one.cron(7, tz="UTC", call=Client.ping), "a cron expression is a text"),
    ],
)
def test_a_bad_rule_is_refused_and_the_entry_is_named(bad: Callable[[Schedule], None], words: str) -> None:
    schedule = Schedule()
    with pytest.raises(ConfigurationError) as raised:
        bad(schedule)
    assert f"schedule entry {words}" in str(raised.value) or words in str(raised.value)
    assert str(raised.value).startswith("schedule entry ")
    assert not len(schedule)


# What the application checks


class Base(DeclarativeBase):
    pass


class OwnAttempt(BaseAttempt, Base):
    __tablename__ = "scheduled_attempts"

    tenant: Mapped[str | None]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (Attempt.options(queue="").of(Client.ping), "queue"),
        (Attempt.options(max_attempts=0).of(Client.ping), "max_attempts"),
        (Attempt.options(timeout=0).of(Client.ping), "timeout must be longer than 0 s"),
        (Attempt.options(retry=Retry(lambda errors: 1)).of(Client.ping), "function of your own"),
        (Attempt.options(encryptor="no.such").of(Client.ping), "no.such"),
        (Attempt.options(columns={"tenant": "acme"}).of(Client.ping), "it adds none"),
        (
            OwnAttempt.options(columns={"tenant": "acme"}).of(Client.ping),
            "its options are of test_schedule.OwnAttempt, and .*: use Attempt.options",
        ),
    ],
)
def test_an_application_refuses_an_entry_that_it_cannot_write(call: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"schedule entry 'test.client.ping': .*{words}"):
        AsyncTask(URL, schedule=add(call=call))


def test_options_of_an_own_model_fit_an_application_with_that_model() -> None:
    call = OwnAttempt.options(columns={"tenant": "acme"}, queue="slow", priority=3).of(Client.ping)
    AsyncTask(URL, model=OwnAttempt, schedule=add(call=call))


def test_an_encrypted_call_can_be_scheduled_before_its_encryptor_is_registered() -> None:
    AsyncTask(URL, schedule=add(call=act_boxed, args={"card": "4111"}))


def test_a_clock_needs_a_schedule_with_entries() -> None:
    for made in (AsyncTask(URL), AsyncTask(URL, schedule=Schedule())):
        with pytest.raises(ConfigurationError, match="this application has no schedule"):
            made.clock()
        with pytest.raises(ConfigurationError, match="this application has no schedule"):
            made.worker(clock=True)
    with pytest.raises(ConfigurationError, match="schedule takes a Schedule"):
        AsyncTask(URL, schedule="nightly")  # type: ignore[arg-type]


def test_the_verbs_of_a_schedule_refuse_an_unknown_key_with_the_nearest_one() -> None:
    app = AsyncTask(URL, schedule=add())
    for verb in (app.schedule.run, app.schedule.pause, app.schedule.resume, lambda key: app.schedule.next(key=key)):
        with pytest.raises(
            ConfigurationError, match=r"no entry 'test.client.pin' \(did you mean 'test.client.ping'\?\)"
        ):
            verb("test.client.pin")
    for key in ([], 7):
        with pytest.raises(ConfigurationError, match="no entry"):
            app.schedule.occurrences(key)  # type: ignore[arg-type]
    for number in (0, 10**30):
        with pytest.raises(ConfigurationError, match="count is a whole number"):
            app.schedule.next(number)
        with pytest.raises(ConfigurationError, match="limit is a whole number"):
            app.schedule.occurrences(limit=number)


def test_no_time_follows_the_last_year_of_the_calendar() -> None:
    schedule = add()
    schedule.at("23:30", tz="Asia/Tokyo", call=Client.ping, key="at night")
    schedule.cron("5 * * * *", tz="Asia/Tokyo", call=Client.ping, key="by the hour")
    end = dt.datetime.max.replace(tzinfo=dt.UTC)
    verbs = AsyncTask(URL, schedule=schedule).schedule
    assert verbs.next(after=end) == []
    last = [one.fire_at for one in verbs.next(after=end - dt.timedelta(minutes=7), count=9)]
    assert last == [end.replace(minute=55, second=0, microsecond=0)]
