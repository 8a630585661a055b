"""A day of the example shop: rows as its workers, clock and people would have left them, for pictures of the pages."""

import datetime as dt
import json
import math
import uuid
from collections.abc import Iterator
from random import Random
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.orm import Session

from async_task import AesGcmEncryptor, AsyncTask, Key, Schedule
from async_task.attempts.notes import add_note
from async_task.encryption.encryptors import context_of, seal
from async_task.schema.audit import acting
from async_task.schema.columns import tick_of, uuid7_at
from async_task.schema.tables import companion_tables
from shop.models import Attempt, Base
from shop.orders import place_order
from shop.outbox import report
from shop.warehouse import Warehouse

TABLE: Any = Attempt.__table__
OTHERS = companion_tables(TABLE)
CUSTOMERS = ("Ada", "Grace", "Edsger", "Barbara", "Donald", "Frances", "Alan", "Radia", "Tony", "Margaret")
CALLS = (("shop.orders", "fulfill"), ("shop.orders", "book_courier"), ("shop.mark_paid", "__call__"))
SLOWNESS = {"fulfill": -1.8, "book_courier": -1.2, "__call__": -4.6}
"""The natural logarithm of the seconds that a call takes."""
SECOND, MINUTE, HOUR = dt.timedelta(seconds=1), dt.timedelta(minutes=1), dt.timedelta(hours=1)
Row = dict[str, Any]


def shop_schedule() -> Schedule:
    """What the shop does by itself."""
    schedule = Schedule()
    schedule.every(minutes=15, call=report, key="orders-report", overlap="skip")
    schedule.cron("30 2 * * *", tz="Europe/Berlin", call=report, key="close-the-day", catch_up="latest")
    return schedule


def shop_encryptor() -> AesGcmEncryptor:
    """With a new key, as the shop has it for refunds."""
    return AesGcmEncryptor([Key.generate("aes-gcm", id="k-2026-03")])


class ShopDay:
    """Makes the tables of `outbox`, and fills them. The rows are the same each time, but for the clock, the ids and the
    keys."""

    def __init__(self, engine: Engine, outbox: AsyncTask, encryptor: AesGcmEncryptor) -> None:
        self._engine, self._outbox, self._encryptor = engine, outbox, encryptor
        self._random = Random(7)
        self._rows: list[Row] = []
        self._events: list[Row] = []
        self._errors: dict[str, Row] = {}
        Base.metadata.create_all(engine)
        self._now = outbox.now()

    def fill(self, warehouse: Warehouse) -> uuid.UUID:
        """Returns the id of an attempt that people have dealt with."""
        self._errors = self._real_errors(warehouse)
        self._now = self._outbox.now()
        for created in self._times(1_400):
            self._order(created)
        told = self._failed()
        self._waiting()
        self._running()
        self._refunds()
        self._batches()
        self._clock()
        self._workers()
        self._insert(TABLE, self._rows)
        self._insert(OTHERS.events, sorted(self._events, key=lambda one: one["created_at"]))
        self._people(told)
        return told

    def beat(self) -> None:
        """All processes live."""
        with self._engine.begin() as connection:
            connection.execute(update(OTHERS.workers).values(beat_at=self._outbox.now() - 2 * SECOND))

    # What ended, and what waits

    def _times(self, number: int) -> Iterator[dt.datetime]:
        """More by day than by night."""
        while number:
            ago = 3 * MINUTE + self._random.random() * 24 * HOUR
            hour = (self._now - ago).hour / 24 * 2 * math.pi
            if self._random.random() < 0.55 - 0.45 * math.cos(hour):
                number -= 1
                yield self._now - ago

    def _order(self, created: dt.datetime) -> None:
        target, method = self._random.choices(CALLS, (6, 3, 5))[0]
        begin = created + self._random.lognormvariate(-3.6, 0.8) * SECOND
        end = begin + self._random.lognormvariate(SLOWNESS[method], 0.5) * SECOND
        values: Row = {"status": "succeeded", "num_attempts": 1, "attempted_at": begin, "completed_at": end}
        fate = self._random.random()
        if fate > 0.99 and method == "book_courier":
            values |= {"status": "expired", "num_attempts": 0, "attempted_at": None}
        elif fate > 0.965 and method == "fulfill":
            values |= {"num_attempts": 3, "num_errors": 2, "completed_at": end + 2 * SECOND}
        elif fate < 0.004:
            values |= {"status": "canceled", "num_attempts": 0, "attempted_at": None}
        made = self._row(target, method, created, **values)
        self._add_errors(made, "packing", [begin + number * SECOND for number in range(values.get("num_errors", 0))])

    def _failed(self) -> uuid.UUID:
        """Orders that the warehouse did not take, and payments of orders that are gone. Returns one of the first."""
        ids = []
        for number in range(9):
            created = self._now - (47 + 4 * number) * MINUTE
            times = [created + 11 * MINUTE * (one / 7) ** 2 for one in range(8)]
            error = f"max_attempts used up: 8 of 8: {self._errors['packing']['message']}"
            ids.append(self._fails("fulfill", created, "packing", times, error))
        for number in range(3):
            created = self._now - 5 * HOUR - 31 * number * MINUTE
            self._fails("__call__", created, "payment", [created + SECOND], str(self._errors["payment"]["message"]))
        return ids[2]

    def _fails(self, method: str, created: dt.datetime, kind: str, times: list[dt.datetime], error: str) -> uuid.UUID:
        number, target = len(times), "shop.orders" if method == "fulfill" else "shop.mark_paid"
        tries = {"num_attempts": number, "num_errors": number, "attempted_at": times[-1], "last_error": error}
        end = times[-1] + 0.2 * SECOND
        row = self._row(target, method, created, status="failed", completed_at=end, **tries)
        self._add_errors(row, kind, times)
        made: uuid.UUID = row["id"]
        return made

    def _waiting(self) -> None:
        for number in range(6):
            created = self._now - (4 + 3 * number) * MINUTE
            times = [created + one * 30 * SECOND for one in range(5)]
            tries = {"num_attempts": 5, "num_errors": 5, "attempted_at": times[-1]}
            due = self._now + (400 + 250 * number) * SECOND
            error = self._errors["packing"]["message"]
            self._add_errors(self._row(*CALLS[0], created, due_at=due, last_error=error, **tries), "packing", times)
        for number in range(14):
            self._row(*self._random.choice(CALLS), self._now - (2 + number) * SECOND)
        for number in range(4):
            self._row(*CALLS[1], self._now - (38 - number) * MINUTE, queue="couriers", priority=2)

    def _running(self) -> None:
        for number in range(3):
            created = self._now - (3 + 2 * number) * SECOND
            claim = {"claim_id": uuid.uuid4(), "claimed_by": f"shop-{number % 2 + 1}", "lease_until": self._now + HOUR}
            self._row(*CALLS[0], created, num_attempts=1, attempted_at=created + SECOND, **claim)

    def _refunds(self) -> None:
        for number in range(2):
            due = self._now + 8 * HOUR
            row = self._row("shop.refund", "__call__", self._now - (3 + number) * HOUR, due_at=due, encryptor="aes-gcm")
            text = json.dumps({"number": 1042 + number, "iban": "DE89370400440532013000"})
            context = context_of(row["id"], row["target"], row["method_name"])
            row["method_args"] = seal(text, self._encryptor, context)

    def _row(self, target: str, method: str, created: dt.datetime, **values: Any) -> Row:
        bits = uuid7_at(tick_of(created)).int | self._random.getrandbits(60)
        args: Row = {"customer": self._random.choice(CUSTOMERS)} if method == "fulfill" else {}
        made = {
            "id": uuid.UUID(int=bits), "target": target, "method_name": method, "created_at": created,
            "method_args": json.dumps(args | {"number": self._random.randrange(1001, 9000)}), "due_at": created,
            "updated_at": values.get("completed_at") or values.get("attempted_at") or created,
        }  # fmt: skip
        self._rows.append(made | values)
        return self._rows[-1]

    def _add_errors(self, row: Row, kind: str, times: list[dt.datetime]) -> None:
        for number, at in enumerate(times, 1):
            told = {"job_type": TABLE.name, "job_id": str(row["id"]), "kind": "error", "num_attempt": number}
            self._events.append(self._errors[kind] | told | {"created_at": at})

    # The errors are those of real calls, with their tracebacks

    def _real_errors(self, warehouse: Warehouse) -> dict[str, Row]:
        warehouse.books.behave(1001, {"fail": 1})
        with Session(self._engine) as session, session.begin():
            order = place_order(session, "Ada", 1990, number=1001)
            session.flush()
            ids = {one.method_name: one.id for one in session.scalars(select(Attempt))}
            session.delete(order)
        for one in ids.values():
            self._outbox.perform(one)
        found = {"packing": self._error_of(ids["fulfill"]), "payment": self._error_of(ids["__call__"])}
        with self._engine.begin() as connection:
            for table in (TABLE, OTHERS.events, OTHERS.workers):
                connection.execute(delete(table))
        return found

    def _error_of(self, attempt_id: uuid.UUID) -> Row:
        c = OTHERS.events.c
        wanted = select(c.message, c.detail, c.fingerprint).where(c.job_id == str(attempt_id), c.kind == "error")
        with self._engine.connect() as connection:
            return dict(connection.execute(wanted).mappings().one())

    # Processes

    def _workers(self) -> None:
        about = {"queues": {"default": 4, "couriers": 1}, "concurrency": 4, "version": "1.0"}
        about |= {"targets": 4, "target_names": self._outbox.target_names}
        workers = (("shop-1", "worker", 26, about), ("shop-2", "worker", 25, about), ("shop-clock", "clock", 70, {}))
        rows = [
            {
                "name": name, "host": "app-2" if name == "shop-2" else "app-1", "pid": 400 + hours,
                "process_started": "1", "kind": kind, "started_at": self._now - hours * HOUR, "beat_at": self._now,
                "job_type": TABLE.name, "about": json.dumps(told),
            }
            for name, kind, hours, told in workers
        ]  # fmt: skip
        self._insert(OTHERS.workers, rows)

    def _batches(self) -> None:
        for number in range(40):
            claimed, retried = self._random.randrange(4, 60), self._random.choice((0, 0, 0, 1, 2))
            figures = {"claimed": claimed, "succeeded": claimed - retried, "retried": retried, "seconds": claimed / 23}
            detail = json.dumps({"worker": "app-1:311:5d1f0a2c", **figures})
            ended = self._now - 5 * number * MINUTE - (55 * MINUTE if number > 12 else dt.timedelta(0))
            why = "time" if number == 6 else "done"
            run = {"job_type": TABLE.name, "job_id": "run-batch", "kind": "run", "actor": "cron@app-1", "message": why}
            self._events.append(run | {"detail": detail, "created_at": ended})

    def _clock(self) -> None:
        """The times of the last two hours; the clock was away for half an hour."""
        for entry in self._outbox.schedule.list():
            is_daily = entry.key == "close-the-day"
            last = self._now.replace(minute=self._now.minute // 15 * 15, second=0, microsecond=0)
            last, step = (last.replace(hour=1, minute=30) - 24 * HOUR, 24 * HOUR) if is_daily else (last, 15 * MINUTE)
            for number in range(8):
                self._occurrence(entry.key, last - number * step, is_missed=number in (3, 4) and not is_daily)
            decided = {"job_type": TABLE.name, "schedule_key": entry.key, "rule": entry.rule}
            self._insert(OTHERS.schedules, [decided | {"decided_until": self._now}])

    def _occurrence(self, key: str, at: dt.datetime, *, is_missed: bool) -> None:
        made: Row = {"status": "missed", "reason": "no clock was running", "attempt_id": None}
        if not is_missed:
            end = {"attempted_at": at + SECOND, "completed_at": at + 1.05 * SECOND, "num_attempts": 1}
            row = self._row("shop.report", "__call__", at, status="succeeded", **end)
            made = {"status": "enqueued", "reason": None, "attempt_id": row["id"]}
        self._insert(OTHERS.occurrences, [made | {"job_type": TABLE.name, "schedule_key": key, "fire_at": at}])

    # People

    def _people(self, told: uuid.UUID) -> None:
        with Session(self._engine) as session, session.begin():
            first = session.get_one(Attempt, told)
            with acting("anna@web"):
                add_note(session, first, "The warehouse says: **maintenance until 14:00**. Then retry, see `#7355`.")
            for number, one in enumerate(session.scalars(select(Attempt).where(Attempt.queue == "couriers")).all()):
                with acting("grace@web"):
                    one.reschedule(session, at=self._now + (3 + number) * HOUR, reason="couriers come at three")
        with acting("grace@web"):
            self._outbox.pause(queue="couriers", reason="the courier's API is away until three")
        with acting("anna@web"):
            self._outbox.schedule.pause("close-the-day", reason="the books are closed by hand today")
        self._spread()

    def _spread(self) -> None:
        """What people did before they paused something, over the last half hour."""
        c = OTHERS.events.c
        with self._engine.begin() as connection:
            earlier = select(c.id).where(c.actor.is_not(None), c.kind.not_in(("run", "pause"))).order_by(c.id)
            ids = connection.scalars(earlier).all()
            for number, one in enumerate(ids):
                at = self._now - (4 + 3.7 * (len(ids) - number)) * MINUTE
                connection.execute(update(OTHERS.events).where(c.id == one).values(created_at=at))

    def _insert(self, table: Any, rows: list[Row]) -> None:
        with self._engine.begin() as connection:
            for row in rows:
                connection.execute(insert(table).values(row))
