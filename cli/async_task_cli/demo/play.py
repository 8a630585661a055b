"""One run of the demo: its orders and calls, the statuses that it expects, and how it prints."""

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from async_task import BaseAttempt, Status
from async_task_cli.demo.stage import Stage, check, wait_until

TELL = Callable[[str], None]


@dataclass(slots=True)
class Play:
    """One run of the demo.

    `tell`: prints a line. `number`: the number of the next order. `calls`: the committed calls by the number of their
    order. `expects`: the statuses that they should reach. `unheard`: the numbers of orders that were rolled back.
    """

    stage: Stage
    tell: TELL
    number: int
    calls: dict[int, list[uuid.UUID]] = field(default_factory=dict)
    expects: Counter[Status] = field(default_factory=Counter)
    unheard: list[int] = field(default_factory=list)
    retried: uuid.UUID | None = None

    @classmethod
    def on(cls, stage: Stage, tell: TELL) -> Self:
        return cls(stage, tell, int(stage.app.read(stage.shop["orders"].next_number)))

    @property
    def attempts(self) -> list[uuid.UUID]:
        return [one for calls in self.calls.values() for one in calls]

    def next_number(self) -> int:
        """A number that no other order of this run has, also none that was rolled back."""
        self.number += 1
        return self.number - 1

    def write(self, session: Any, number: int, customer: str, amount: int) -> list[uuid.UUID]:
        """Write an order and its calls in the transaction of `session`. Returns the ids of the calls."""
        self.stage.shop["orders"].place_order(session, customer, amount, number=number)
        return [one.id for one in session if isinstance(one, BaseAttempt)]

    def place(self, number: int, customer: str, amount: int) -> None:
        """Write them and commit."""
        self.calls[number] = self.stage.commit(lambda session: self.write(session, number, customer, amount))

    def rows(self, number: int) -> list[BaseAttempt]:
        """The calls of this order as they are in the database now."""
        return [self.row(one) for one in self.calls[number]]

    def row(self, attempt_id: uuid.UUID) -> BaseAttempt:
        model = self.stage.app.model
        found: BaseAttempt = self.stage.app.read(lambda session: session.get_one(model, attempt_id))
        return found

    def fulfilment(self, number: int) -> BaseAttempt:
        return next(row for row in self.rows(number) if row.method_name == "fulfill")

    def run_batches(self, number: int) -> None:
        """Run batches until all calls of this order are made."""

        def is_done() -> bool:
            self.stage.app.run_batch()
            return all(row.status.is_terminal for row in self.rows(number))

        wait_until(is_done, f"the calls of order {number} are made")

    def check_packed_once(self, number: int) -> None:
        packed = self.stage.warehouse.parcels().count(number)
        check(packed == 1, f"order {number} was packed once", f"{packed} parcels")
