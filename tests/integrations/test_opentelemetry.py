"""Telemetry by OpenTelemetry: the spans of what is written down and of each try, as the SDK exports them; metrics."""

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, SpanContext, StatusCode, TraceFlags
from sqlalchemy import Engine, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import outbox
from async_task import (
    AesGcmEncryptor,
    AsyncTask,
    Attempt,
    CallFacts,
    ConfigurationError,
    Key,
    Keys,
    Parked,
    Retried,
    Retry,
    RetryAfter,
    Succeeded,
    target,
)
from async_task.attempts.telemetry import set_telemetry
from async_task.integrations import opentelemetry as integration
from async_task.integrations.opentelemetry import OpenTelemetry
from async_task.schema.tables import table_of
from claims import orphan
from clockwork import let_pass, row_of
from conftest import by_one_door
from elsewhere import await_
from operations import HOUR, World
from outbox import Broken, Client, HookedAttempt, act, act_in_session, act_later, effects, hooks, will
from spans import Exported, exported, linked, traceparent
from workers import at_rest, make, working

Write = Callable[..., Attempt]
Observed = Callable[..., AsyncTask]
CANARY = "canary-7355608"


@pytest.fixture
def seen() -> Exported:
    return exported()


@pytest.fixture
def observed(engine: Engine, door: str, async_engine_url: str, seen: Exported) -> Iterator[Observed]:
    """An application with telemetry, which is of no later test."""
    with contextlib.ExitStack() as until:

        def made(**options: Any) -> AsyncTask:
            app = outbox.application(
                engine, door, async_engine_url, **{"lease": 5, "telemetry": seen.telemetry, **options}
            )
            until.callback(app.close)
            until.callback(set_telemetry, table_of(app.model), None)
            return app

        yield made


@pytest.fixture
def app(observed: Observed) -> AsyncTask:
    return observed()


def values_of(span: Any) -> dict[str, Any]:
    return dict(span.attributes)


# Writing down


@by_one_door
def test_a_call_that_is_written_down_is_a_producer_span_of_its_writer_and_the_row_keeps_its_context(
    app: AsyncTask, engine: Engine, sessions: sessionmaker[Session], seen: Exported
) -> None:
    tracer = seen.tracers.get_tracer("shop")
    with tracer.start_as_current_span("POST /orders") as request, sessions.begin() as session:
        attempt = Attempt.options(session=session, queue="mail").call(Client.fulfill, CANARY, order_number=7)
        attempt_id = attempt.id
        assert trace.get_current_span() is request
    [span] = seen.producers
    assert (span.name, span.parent) == ("create test.client.fulfill", request.get_span_context())
    assert row_of(engine, attempt_id).trace_context == traceparent(span)
    assert values_of(span) == {
        "messaging.system": "async_task",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "messaging.destination.name": "mail",
        "messaging.message.id": str(attempt_id),
        "async_task.target": "test.client",
        "async_task.method": "fulfill",
    }
    assert (span.status.status_code, CANARY in span.to_json()) == (StatusCode.UNSET, False)


@by_one_door
def test_ensure_says_whether_it_has_found_one_and_changes_no_context(
    app: AsyncTask, engine: Engine, sessions: sessionmaker[Session], seen: Exported
) -> None:
    ids = []
    for _ in range(2):
        with sessions.begin() as session:
            ids.append(Attempt.ensure(session, target=Client, method_name="ping", idempotence_token="one").id)
    first, second = seen.producers
    assert [span.name for span in seen.producers] == ["ensure test.client.ping"] * 2
    assert ids[0] == ids[1]
    assert row_of(engine, ids[0]).trace_context == traceparent(first)
    about = [(values_of(one)["messaging.message.id"], "async_task.found" in values_of(one)) for one in (first, second)]
    assert about == [(str(ids[0]), False), (str(ids[0]), True)]
    assert [value for _, value in seen.points("messaging.client.sent.messages")] == [1]


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("number", [2, 10_000])
def test_create_many_is_one_span_for_all(
    app: AsyncTask, engine: Engine, sessions: sessionmaker[Session], seen: Exported, number: int
) -> None:
    with sessions.begin() as session:
        Attempt.create_many(session, [{"target": Client, "method_name": "ping"}] * number)
    [span] = seen.producers
    assert span.name == "create_many test.client.ping"
    about = values_of(span)
    assert (about["messaging.operation.type"], about["messaging.batch.message_count"]) == ("send", number)
    assert "messaging.message.id" not in about
    with engine.connect() as connection:
        assert connection.scalars(select(Attempt.trace_context).distinct()).all() == [traceparent(span)]
    assert [value for _, value in seen.points("messaging.client.sent.messages")] == [number]


@by_one_door
def test_several_calls_on_a_connection_are_one_span_without_a_name_of_their_own(
    app: AsyncTask, engine: Engine, seen: Exported
) -> None:
    rows: list[dict[str, Any]] = [{"target": Client, "method_name": "ping"}, {"target": act, "queue": "mail"}]
    with engine.begin() as connection:
        Attempt.create_many(connection, rows)
        Attempt.create_many(connection, [])
    [span] = seen.producers
    assert span.name == "create_many"
    assert {name for name in values_of(span) if "target" in name or "destination" in name} == set()
    assert [value for _, value in seen.points("messaging.client.sent.messages")] == [2]


@by_one_door
@pytest.mark.only_on("postgresql", "sqlite")
def test_an_async_session_is_traced_alike(
    app: AsyncTask, engine: Engine, async_engine_url: str, seen: Exported
) -> None:
    async def write() -> Any:
        made = create_async_engine(async_engine_url)
        async with AsyncSession(made) as session, session.begin():
            with seen.tracers.get_tracer("shop").start_as_current_span("request"):
                attempt = Attempt.call(Client.fulfill_later, "x", order_number=7)
                await session.run_sync(Attempt.ensure, target=act, idempotence_token="two")
        await made.dispose()
        return attempt.id

    attempt_id = asyncio.run(write())
    assert [one.name for one in seen.producers] == ["create test.client.fulfill_later", "ensure test.act"]
    assert {one.parent.trace_id for one in seen.producers if one.parent} == {
        one.context.trace_id for one in seen.spans.get_finished_spans() if one.name == "request"
    }
    assert row_of(engine, attempt_id).trace_context == traceparent(seen.producers[0])
    assert sum(value for _, value in seen.points("messaging.client.sent.messages")) == 2


REMOTE = SpanContext(0x5CE0E9A56015FEC5AADFA328AE398115, 0xAB54A98CEB1F0AD2, is_remote=True, trace_flags=TraceFlags(1))


@by_one_door
@pytest.mark.only_on("sqlite")
def test_without_a_span_of_its_own_the_context_around_it_is_kept(
    observed: Observed, engine: Engine, sessions: sessionmaker[Session]
) -> None:
    observed(telemetry=OpenTelemetry(tracer_provider=NoOpTracerProvider()))
    with sessions.begin() as session:
        alone = Attempt.create(target=act, session=session).id
        with trace.use_span(NonRecordingSpan(REMOTE)):
            inside = Attempt.create(target=act, session=session).id
    assert row_of(engine, alone).trace_context is None
    assert row_of(engine, inside).trace_context == "00-5ce0e9a56015fec5aadfa328ae398115-ab54a98ceb1f0ad2-01"


@by_one_door
@pytest.mark.only_on("sqlite")
def test_a_trace_that_is_not_sampled_stays_so(observed: Observed, engine: Engine, write: Write) -> None:
    off = exported(sampler=ALWAYS_OFF)
    app = observed(telemetry=off.telemetry)
    attempt = write(Client, "ping")
    flags = str(row_of(engine, attempt.id).trace_context)[-2:]
    assert not int(flags, 16) & TraceFlags.SAMPLED
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert off.spans.get_finished_spans() == ()
    assert [value for _, value in off.points("async_task.outcomes")] == [1]


@by_one_door
def test_what_is_rolled_back_is_not_counted(app: AsyncTask, sessions: sessionmaker[Session], seen: Exported) -> None:
    with contextlib.suppress(Broken), sessions.begin() as session:
        Attempt.create(target=act, session=session)
        raise Broken
    with sessions.begin() as session:
        with contextlib.suppress(Broken), session.begin_nested():
            Attempt.create(target=act, session=session)
            raise Broken
        Attempt.create(target=Client, method_name="ping", session=session)
        assert seen.points("messaging.client.sent.messages") == []
    [(about, value)] = seen.points("messaging.client.sent.messages")
    assert (about["async_task.target"], about["messaging.operation.name"], value) == ("test.client", "create", 1)


@by_one_door
@pytest.mark.only_on("sqlite")
def test_a_statement_that_is_refused_is_the_error_of_its_span_without_its_text(
    app: AsyncTask, sessions: sessionmaker[Session], seen: Exported
) -> None:
    row = {"target": act, "idempotence_token": CANARY}
    with pytest.raises(Exception, match="UNIQUE"), sessions.begin() as session:
        Attempt.create_many(session, [row, row])
    [span] = seen.producers
    assert values_of(span)["error.type"] == "sqlalchemy.exc.IntegrityError"
    assert (span.status.status_code, span.events, CANARY in span.to_json()) == (StatusCode.ERROR, (), False)


# Performing


def test_a_try_is_a_consumer_span_in_a_trace_of_its_own_linked_to_the_one_that_wrote_it_down(
    app: AsyncTask, engine: Engine, write: Write, seen: Exported
) -> None:
    attempt = write(act, queue="mail")
    current: list[Any] = []
    will(lambda: current.append(trace.get_current_span()))
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    [producer], [consumer] = seen.producers, seen.consumers
    assert current[0].get_span_context() == consumer.get_span_context()
    assert not trace.get_current_span().get_span_context().is_valid
    assert (consumer.name, consumer.parent, linked(consumer)) == ("process test.act", None, [traceparent(producer)])
    assert consumer.context.trace_id != producer.context.trace_id
    assert values_of(consumer) == {
        "messaging.system": "async_task",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "mail",
        "messaging.message.id": str(attempt.id),
        "async_task.target": "test.act",
        "async_task.method": "__call__",
        "async_task.try": 1,
        "async_task.outcome": "succeeded",
    }
    assert consumer.status.status_code is StatusCode.UNSET


@pytest.mark.slow
def test_each_try_has_a_span_that_says_how_it_ended(
    app: AsyncTask, engine: Engine, write: Write, seen: Exported
) -> None:
    attempt = write(act, max_attempts=2)
    for error in (Broken(CANARY), RetryAfter(CANARY, after=1), Broken(CANARY)):
        will(_raising(error))
        let_pass(engine, 3600)
        app.perform(attempt.id)
    assert seen.outcomes == ["retried", "failed"]
    assert [values_of(one)["async_task.try"] for one in seen.consumers] == [1, 2]
    assert [values_of(one)["error.type"] for one in seen.consumers] == [
        "outbox.Broken",
        "async_task.targets.context.RetryAfter",
    ]
    assert {one.status.status_code for one in seen.consumers} == {StatusCode.ERROR}
    assert len({one.context.trace_id for one in seen.consumers}) == 2
    assert [linked(one) for one in seen.consumers] == [[traceparent(seen.producers[0])]] * 2
    assert not any(CANARY in one.to_json() or one.events for one in seen.spans.get_finished_spans())


def _raising(error: BaseException) -> Callable[..., Any]:
    def do(*_: object) -> Any:
        raise error

    return do


@by_one_door
def test_a_poll_is_no_error_and_a_discarded_call_has_failed(app: AsyncTask, write: Write, seen: Exported) -> None:
    app.perform(write(Client, "poll").id)
    app.perform(write(Client, "give_up", {"reason": CANARY}).id)
    poll, discarded = seen.consumers
    assert seen.outcomes == ["again", "failed"]
    assert (poll.status.status_code, "error.type" in values_of(poll)) == (StatusCode.UNSET, False)
    assert (discarded.status.status_code, CANARY in discarded.to_json()) == (StatusCode.ERROR, False)


@by_one_door
@pytest.mark.only_on("postgresql")
def test_what_is_parked_or_canceled_says_so(
    observed: Observed, engine: Engine, sessions: sessionmaker[Session], seen: Exported
) -> None:
    app = observed(model=HookedAttempt)
    hooks[:] = [lambda attempt, error: attempt.cancel()]
    with sessions.begin() as session:
        canceled, parked = (HookedAttempt.create(target=act_in_session, session=session).id for _ in range(2))
    will(_raising(Broken()))
    app.perform(canceled)

    def wait_in_vain(session: Session) -> None:
        session.execute(select(effects).where(effects.c.what == "locked").with_for_update(nowait=True)).all()

    will(wait_in_vain)
    with engine.begin() as connection:
        connection.execute(insert(effects).values(what="locked", number=1))
    with engine.begin() as connection:
        connection.execute(select(effects).with_for_update())
        assert isinstance(app.perform(parked), Parked)
    hooks.clear()
    assert seen.outcomes == ["canceled", "parked"]
    assert sorted(about["async_task.outcome"] for about, _ in seen.points("async_task.outcomes")) == [
        "canceled",
        "parked",
    ]


def test_nothing_of_encrypted_arguments_is_exported(
    observed: Observed, write: Write, seen: Exported, registered: None, own_encryptors: None
) -> None:
    app = observed(encryptors=[AesGcmEncryptor(Keys([Key.generate()]))])

    @target("test.sealed", encryptor="aes-gcm", retry=Retry.every(60))
    def sealed(card: str) -> None:
        raise ValueError(f"{card} is no card")

    attempt = write(sealed, method_args={"card": CANARY})
    assert isinstance(app.perform(attempt.id), Retried)
    [producer], [consumer] = seen.producers, seen.consumers
    assert values_of(consumer)["error.type"] == "ValueError"
    for span in (producer, consumer):
        assert CANARY not in span.to_json()
    assert CANARY not in json.dumps([seen.points("async_task.outcomes"), seen.points("messaging.process.duration")])


@pytest.mark.slow
def test_coroutines_have_a_span_each_while_they_wait_for_one_another(
    app: AsyncTask, engine: Engine, seen: Exported
) -> None:
    number, ids, traces = 3, [], []
    for _ in range(number):
        ids += make(engine, act_later)
    inside = asyncio.Event()

    async def meet() -> None:
        traces.append(trace.get_current_span().get_span_context().trace_id)
        if len(traces) == number:
            inside.set()
        await inside.wait()
        with seen.tracers.get_tracer("shop").start_as_current_span("inner"):
            await asyncio.sleep(0)

    will(meet)
    report = app.run_batch()
    assert report.succeeded == number
    assert {one.context.trace_id for one in seen.consumers} == set(traces)
    inner = [one for one in seen.spans.get_finished_spans() if one.name == "inner"]
    parents = {one.parent.span_id for one in inner if one.parent}
    assert parents == {one.context.span_id for one in seen.consumers}
    assert seen.outcomes == ["succeeded"] * number


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "sqlite")
def test_a_worker_ends_the_spans_of_calls_that_are_committed_together(
    app: AsyncTask, engine: Engine, seen: Exported
) -> None:
    make(engine, Client, 50, method_name="ping")
    with working(app):
        await_(lambda: at_rest(engine), "all calls are made")
    assert seen.outcomes == ["succeeded"] * 50
    assert all(one.end_time and one.start_time and one.end_time > one.start_time for one in seen.consumers)
    assert [value for _, value in seen.points("messaging.client.consumed.messages")] == [50]


@by_one_door
def test_hooks_of_the_application_run_inside_of_the_span(observed: Observed, write: Write, seen: Exported) -> None:
    inside: list[int] = []

    @contextmanager
    def around(facts: CallFacts) -> Iterator[None]:
        inside.append(trace.get_current_span().get_span_context().span_id)
        yield

    def on_succeeded(facts: CallFacts, outcome: Succeeded) -> None:
        inside.append(len(seen.consumers))

    app = observed(around=around, on_succeeded=on_succeeded)
    app.perform(write(Client, "ping").id)
    assert inside == [seen.consumers[0].context.span_id, 1]


@by_one_door
@pytest.mark.only_on("sqlite")
def test_a_row_without_a_context_or_with_a_broken_one_has_no_link(
    app: AsyncTask, engine: Engine, write: Write, seen: Exported
) -> None:
    first, second = write(Client, "ping"), write(Client, "ping")
    with engine.begin() as connection:
        for attempt, stored in ((first, None), (second, "00-7355608-01")):
            connection.execute(Attempt.__table__.update().where(Attempt.id == attempt.id).values(trace_context=stored))
    app.run_batch()
    assert [linked(one) for one in seen.consumers] == [[], []]
    assert integration._links("00-7355608-01") == ()


# Metrics


def test_tries_durations_lags_and_outcomes_are_measured(
    app: AsyncTask, engine: Engine, write: Write, seen: Exported
) -> None:
    attempt = write(act, queue="mail")
    let_pass(engine, 30)
    will(_raising(Broken(CANARY)))
    app.perform(attempt.id)
    let_pass(engine, 3600)
    will(lambda: None)
    app.perform(attempt.id)
    common = {
        "messaging.system": "async_task",
        "messaging.operation.name": "process",
        "messaging.destination.name": "mail",
        "async_task.target": "test.act",
        "async_task.method": "__call__",
    }
    assert seen.points("messaging.client.consumed.messages") == [(common, 2)]
    durations = [(about, number) for about, (number, _) in seen.points("messaging.process.duration")]
    assert sorted(durations, key=str) == sorted([(common, 1), (common | {"error.type": "outbox.Broken"}, 1)], key=str)
    [(about, (number, seconds))] = seen.points("async_task.lag")
    assert (about, number) == (common, 2)
    assert 30 + 3540 <= seconds < 30 + 3600 + 30
    assert sorted((about["async_task.outcome"], value) for about, value in seen.points("async_task.outcomes")) == [
        ("retried", 1),
        ("succeeded", 1),
    ]


@pytest.mark.slow
@by_one_door
def test_what_a_sweep_expires_and_recovers_is_counted(
    app: AsyncTask, engine: Engine, write: Write, seen: Exported
) -> None:
    orphan(engine, write)
    write(Client, "ping", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60))
    let_pass(engine, 120)
    app.sweep()
    assert sorted((about["async_task.outcome"], value) for about, value in seen.points("async_task.outcomes")) == [
        ("crashed", 1),
        ("expired", 1),
    ]
    assert seen.consumers == []


@by_one_door
@pytest.mark.only_on("sqlite")
def test_a_poll_that_gives_its_operation_up_has_one_outcome(world: World, observed: Observed, seen: Exported) -> None:
    made = world.running()
    world.pass_by(27 * HOUR)
    own = observed()
    own.sweep()
    for _ in range(4):
        own.run_batch()
    assert world.progress(made) == ("failed", True, True)
    counted = {about["async_task.outcome"]: value for about, value in seen.points("async_task.outcomes")}
    assert "failed" not in counted
    assert sum(counted.values()) == len(seen.consumers) > 0


# What has no outcome, and what is refused


@pytest.mark.only_on("sqlite")
def test_a_span_whose_outcome_nobody_reports_is_ended_without(
    write: Write, seen: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, last = write(Client, "ping"), write(Client, "ping")
    with seen.telemetry.performing(_facts(lost)):
        assert trace.get_current_span().get_span_context().is_valid
    assert not trace.get_current_span().get_span_context().is_valid
    assert seen.consumers == []
    monkeypatch.setattr(integration, "LONGEST_WAIT", -1.0)
    with seen.telemetry.performing(_facts(last)):
        pass
    assert [values_of(one)["messaging.message.id"] for one in seen.consumers] == [str(lost.id)]
    seen.telemetry.flush()
    assert [values_of(one)["messaging.message.id"] for one in seen.consumers] == [str(lost.id), str(last.id)]
    assert seen.outcomes == [None, None]


def _facts(attempt: Attempt) -> CallFacts:
    return CallFacts(attempt.id, "test.client", "ping", "default", 1, attempt.created_at, attempt.due_at)


@by_one_door
@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("given", [OpenTelemetry, object(), "otel"])
def test_what_is_no_telemetry_is_refused(engine: Engine, door: str, given: Any) -> None:
    with pytest.raises(ConfigurationError, match="telemetry takes an instance of OpenTelemetry"):
        AsyncTask(engine, telemetry=given)
