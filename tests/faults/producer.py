"""A producer: commits orders with their attempts until it is killed. The ids of what it rolls back go to a file."""

import datetime as dt
import os
import random
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from async_task import Attempt
from faults import application

SHARES = {
    "plain": 20, "writing": 20, "leased": 6, "coroutine": 14, "writing_coroutine": 6, "flaky": 6, "keyed": 14,
    "batched": 14, "isolated": 3, "polled": 4, "doomed": 3, "parent": 4,
}  # fmt: skip
"""How often each kind of call is written down."""
SHARES_OF_CONTROL = {"leased": 10, "writing": 3}
SECONDS = (0, 0, 0, 0.02, 0.1, 0.2, 0.4)


class Producer:
    """`rate`: transactions a second. `num_poison`: how many calls that kill their process it writes down."""

    def __init__(self, number: int, rate: float, num_poison: int) -> None:
        url = os.environ[application.URL]
        # SQLite: a writer waits for its turn, as the library's own engine does.
        wait = {"timeout": 30} if url.startswith("sqlite") else {}
        self._engine = create_engine(url, pool_pre_ping=True, connect_args=wait)
        self._rate = rate
        self._num_poison = num_poison
        self._keys = {f"key {number}.{one}": 0 for one in range(3)}
        self._shares = SHARES_OF_CONTROL if os.environ.get(application.IS_BROKEN) else SHARES
        self._void = open(os.environ[application.MARKS] + ".void", "a", buffering=1)  # noqa: PTH123, SIM115

    def produce(self) -> None:
        while True:
            try:
                if self._num_poison:
                    with self._transaction() as session:
                        self._write_down(session, "poison")
                    self._num_poison -= 1
                self._play(random.random())
                time.sleep(random.expovariate(self._rate))
            except Exception:
                # The database is away, or a COMMIT had no answer: only the orders tell what was committed.
                time.sleep(0.5)

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            yield session

    def _play(self, draw: float) -> None:
        """One transaction: most commit, some roll back, whole or in a part, and some commit late."""
        with Session(self._engine) as session, session.begin() as begun:
            written = [self._one(session) for _ in range(random.choice((1, 1, 1, 2, 3, 12)))]
            if draw < 0.1:
                self._note_void(written)
                begun.rollback()
            elif draw < 0.2:
                inner = session.begin_nested()
                self._note_void([self._write_down(session, "plain")])
                inner.rollback()
            elif draw < 0.3:
                with session.begin_nested():
                    self._one(session)
            elif draw < 0.32 and session.get_bind().dialect.name != "sqlite":
                time.sleep(random.uniform(0.5, 3))

    def _one(self, session: Session) -> uuid.UUID | None:
        kind = random.choices(list(self._shares), list(self._shares.values()))[0]
        if kind == "writing" and random.random() < 0.1:
            return self._ensure(session)
        return self._write_down(session, kind)

    def _ensure(self, session: Session) -> None:
        """Producers meet at the same tokens."""
        made = Attempt.ensure(
            session,
            target="faults.writing",
            method_args={"seconds": 0.0},
            idempotence_token=f"token {random.randrange(300)}",
        )
        application.place_order(session, made.id, "token")

    def _write_down(self, session: Session, kind: str) -> uuid.UUID:
        options, key, seconds = self._options(), None, random.choice((*SECONDS, random.uniform(0.2, 3)))
        if kind == "keyed":
            key = random.choice(list(self._keys))
            self._keys[key] += 1
            options, seconds = {"order_key": key}, min(seconds, 0.3)
        made = Attempt.create(
            target=f"faults.{kind}", method_args={"seconds": float(seconds)}, session=session, **options
        )
        application.place_order(session, made.id, kind, key, self._keys.get(key or "", 0))
        return made.id

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if random.random() < 0.2:
            options["scheduled_at"] = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=random.uniform(0.5, 8))
        if random.random() < 0.3:
            options |= {"priority": random.randrange(10), "queue": random.choice(("mail", "slow"))}
        return options

    def _note_void(self, ids: list[uuid.UUID | None]) -> None:
        self._void.writelines(f"{one}\n" for one in ids if one is not None)


if __name__ == "__main__":
    number, rate, num_poison, seed = sys.argv[1:]
    random.seed(f"{seed} {number}")
    Producer(int(number), float(rate), int(num_poison)).produce()
