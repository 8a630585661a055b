"""`async-task stuck` and `explain`: what they print, and remedies that work when they are typed as they are."""

import shlex
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt
from clockwork import row_of
from conftest import by_one_door
from mess import CAUSES, changed, mess, worker_runs
from outbox import Client
from said import Run

Write = Callable[..., Attempt]


@pytest.mark.slow
def test_stuck_prints_each_cause_with_its_remedy_and_what_that_will_do(
    run: Run, engine: Engine, write: Write, own_encryptors: None
) -> None:
    made = mess(engine, write)
    said = run("stuck")
    assert said.code == 1
    for words in (
        "Its worker has died\n",
        "1 attempt due in the queue lonely, which no running worker serves: they",
        "$ async-task resume --queue mail\n",
        "1 attempt of shop.gone, a target that no running worker of their queues knows\n",
        "$ async-task failures retry eeeeeeeeeeee --first 5 --reason mended\n",
        "3 attempts of test.client with Broken: order N: 2 failed for good, 1",
        f"$ async-task explain {made['blocked'][0].id}\n",
        f"{made['not_served'][0].id.hex[-8:]}  1",
    ):
        assert words in said.out
    assert said.err == "14 jobs are stuck, for 11 reasons.\n"
    lines = run("stuck", "--json").lines
    assert [one["cause"] for one in lines] == list(CAUSES)
    assert all({*one} >= {"subject", "words", "count", "oldest_since", "remedy", "effect", "jobs"} for one in lines)
    one = run("stuck", "--cause", "same_error", "--limit", "2", "--json")
    assert (one.code, one.json["count"], len(one.json["jobs"])) == (1, 3, 2)


@pytest.mark.slow
def test_nothing_stuck_ends_with_0(run: Run, write: Write) -> None:
    write(Client, "ping")
    said = run("stuck")
    assert (said.code, said.out, said.err) == (0, "", "Nothing is stuck.\n")
    assert run("stuck", "--json").out == ""
    assert run("stuck", "--cause", "nothing").code == 2


@pytest.mark.long
@by_one_door
def test_each_remedy_works_as_it_is_typed(
    run: Run, app: AsyncTask, engine: Engine, write: Write, own_encryptors: None
) -> None:
    made = mess(engine, write)
    for group in app.attempts.stuck().groups:
        words = shlex.split(group.remedy)
        said = run(*words[1:], *(["--yes"] if "failures" in words else []))
        assert "Traceback" not in said.err
        assert (group.cause, said.code) == (group.cause, 1 if group.cause == "unknown_target" else 0)
    assert {cause: {str(row_of(engine, one.id).status) for one in some} for cause, some in made.items()} == {
        **{cause: {"pending"} for cause in made},
        "not_served": {"succeeded"},
        "overdue": {"expired"},
    }
    # What only shows something, and an attempt that is still retried.
    shown = ["lease_past", "unknown_target", "key_missing", "unfit", "same_error", "blocked"]
    assert [one.cause for one in app.attempts.stuck().groups] == shown


@pytest.mark.slow
def test_explain_names_every_reason_when_it_changes_and_what_helps(run: Run, engine: Engine, write: Write) -> None:
    worker_runs(engine, queues=("default",))
    first, second = (write(Client, "ping", order_key="c-1", queue="mail") for _ in range(2))
    changed(engine, first, released=True, arrived=None)
    changed(engine, second, arrived=None)
    run("reschedule", str(second.id), "--in", "2h")
    run("pause", "--queue", "mail", "--reason", "the server moves", "--actor", "anna")
    said = run("explain", second.id.hex[-8:])
    words = " ".join(said.out.split())
    assert (said.code, said.err) == (0, "")
    for part in (
        f"Attempt {second.id} call test.client.ping status pending",
        f"why it waits behind {first.id}, an earlier attempt of its order key c-1 do async-task explain {first.id}",
        "why it is not due yet until 20",
        f"UTC (in 1 h 59 min) do async-task retry {second.id}",
        "why its queue mail is paused by anna since",
        "UTC: the server moves do async-task resume --queue mail",
        "why no running worker serves its queue mail: they serve default do async-task run-batch --queue mail",
    ):
        assert part in words
    told = run("explain", str(second.id), "--json").json
    assert [one["kind"] for one in told["reasons"]] == ["waits_behind", "not_due", "paused", "not_served"]
    assert [one["until"] is None for one in told["reasons"]] == [True, False, True, True]
    assert told["reasons"] == run("show", str(second.id), "--json").json["reasons"]
    gone = run("explain", "01a225ff-1b36-7aeb-b2b5-f54570f52584")
    assert (gone.code, "`async-task list` prints the ids" in gone.err) == (1, True)
