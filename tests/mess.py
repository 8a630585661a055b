"""A mess: attempts that are stuck, one for each cause at least, and healthy ones beside them."""

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, insert, update

from async_task import Attempt, FernetEncryptor, JobEvent, Key
from async_task.encryption.encryptors import context_of, register_encryptor, seal
from async_task.reading import stuck_groups
from async_task.schema.tables import companion_tables
from async_task.targets.registry import registered_targets
from claims import TABLE, claimed, seconds_from_now
from outbox import Client

Write = Callable[..., Attempt]
LONG_AGO = seconds_from_now(-600)
HEALTHY = "healthy"
CAUSES = tuple(one for one in stuck_groups.CAUSES if one not in ("window_over", "no_job", "not_submitted"))
"""Those of attempts; the others are of models that are their own jobs."""


def changed(engine: Engine, attempt: Attempt, **values: Any) -> Attempt:
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == attempt.id).values(values))
    return attempt


def erred(
    engine: Engine, attempt: Attempt, kind: str, message: str, fingerprint: str | None, times: int = 1,
    detail: str | None = None,
) -> None:  # fmt: skip
    row: dict[str, str | None] = {"job_type": TABLE.name, "job_id": str(attempt.id), "kind": kind, "message": message}
    row |= {"fingerprint": fingerprint, "detail": detail}
    with engine.begin() as connection:
        connection.execute(insert(JobEvent).values([row] * times))


def ended(engine: Engine, attempt: Attempt, error: str) -> Attempt:
    return changed(engine, attempt, status="failed", completed_at=LONG_AGO, last_error=error, num_attempts=1)


def worker_runs(engine: Engine, name: str = "host:7:aaaaaaaa", queues: tuple[str, ...] = (), **more: Any) -> None:
    """A worker that knows the targets of this process, with a heartbeat that counts until the test is over."""
    names = [name for one in registered_targets() for name in one.names]
    about = json.dumps({"queues": dict.fromkeys(queues, 1), "target_names": names} | more)
    row = {"name": name, "host": "elsewhere", "pid": 7, "process_started": "x", "kind": "worker", "about": about}
    row |= {"job_type": TABLE.name, "beat_at": seconds_from_now(60)}
    with engine.begin() as connection:
        connection.execute(insert(companion_tables(TABLE).workers).values(row))


def mess(engine: Engine, write: Write) -> dict[str, list[Attempt]]:
    """By cause, the attempts that are stuck so; and healthy ones."""
    worker_runs(engine, queues=("default", "mail"))
    made = {cause: [write(Client, "ping")] for cause in (*CAUSES, HEALTHY)}
    made["blocked"] = [write(Client, "ping", order_key="c-1") for _ in range(3)]
    made["same_error"] += [write(Client, "ping"), write(Client, "ping")]
    claimed(engine, made["orphan"][0].id)
    changed(engine, made["orphan"][0], lease_until=LONG_AGO)
    claimed(engine, made["lease_past"][0].id, "host:7:aaaaaaaa")
    changed(engine, made["lease_past"][0], lease_until=LONG_AGO)
    changed(engine, made["not_served"][0], queue="lonely", due_at=LONG_AGO)
    changed(engine, made["paused"][0], queue="mail", due_at=LONG_AGO)
    changed(engine, made["unknown_target"][0], target="shop.gone", due_at=LONG_AGO)
    _seal(engine, made["key_missing"][0])
    changed(engine, made["unfit"][0], method_args='{"nobody": 1}')
    ended(engine, made["crash_limit"][0], "crashed: 3 starts in a row killed a process of their own; at the last, gone")
    erred(engine, made["crash_limit"][0], "crash", "gone", "c" * 12)
    for one in made["same_error"][:2]:
        ended(engine, one, "max_attempts used up: 3 of 3: Broken: order 7")
        erred(engine, one, "error", "Broken: order 7 (max_attempts used up: 3 of 3)", "e" * 12)
    erred(engine, made["same_error"][2], "error", "Broken: order 8", "e" * 12, times=5)
    again = {"due_at": seconds_from_now(600), "last_error": "Broken: order 8"}
    changed(engine, made["same_error"][2], num_errors=5, num_attempts=5, **again)
    changed(engine, made["blocked"][0], num_errors=1, num_attempts=1, released=True, **again)
    for one in made["blocked"]:
        changed(engine, one, arrived=None)
    changed(engine, made["overdue"][0], expires_at=LONG_AGO)
    queues = companion_tables(TABLE).queues
    with engine.begin() as connection:
        connection.execute(insert(queues).values(name="mail", paused_at=seconds_from_now(-7200), paused_by="anna"))
    return made


def _seal(engine: Engine, attempt: Attempt) -> None:
    """Under a key that this process does not have any more."""
    gone, here = (FernetEncryptor([Key.generate("fernet", id=name)], name="box") for name in ("k-old", "k-new"))
    register_encryptor(here)
    text = seal("{}", gone, context_of(attempt.id, attempt.target, attempt.method_name))
    changed(engine, attempt, encryptor="box", method_args=text)
