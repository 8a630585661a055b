"""The last good answer of each question: what a page shows while the database is away or too slow."""

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import monotonic
from typing import Any

MOST = 100
"""How many answers are kept."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`value`: what was read at `read_at`, by the clock of this process. `problem`: why it is not of now; None where it
    is."""

    value: Any
    read_at: dt.datetime
    problem: Exception | None = None


class LastGood:
    """Answers by question. `is_passing`: whether an error means that the database is away or too slow, so that an older
    answer is better than none; any other error is raised. All methods are safe to call on several threads."""

    def __init__(self, is_passing: Callable[[Exception], bool]) -> None:
        self._is_passing = is_passing
        self._lock = threading.Lock()
        self._reading: set[Hashable] = set()
        self._answers: OrderedDict[Hashable, tuple[Answer, float]] = OrderedDict()

    def read(
        self, question: Hashable, read: Callable[[], Any], max_age: float = 0.0,
        keeps: Callable[[Any], bool] = lambda _: True,
    ) -> Answer:  # fmt: skip
        """What `read` returns, or what it returned less than `max_age` seconds ago; where it cannot be read, its last
        answer, if that is one that it `keeps`. Raises the error of `read` where there is none."""
        kept = self._kept(question)
        if kept is not None and max_age and (monotonic() - kept[1] < max_age or not self._begin(question)):
            return kept[0]
        try:
            answer = Answer(read(), dt.datetime.now(dt.UTC))
        except Exception as error:
            if kept is None or not self._is_passing(error):
                raise
            return Answer(kept[0].value, kept[0].read_at, error)
        finally:
            self._reading.discard(question)
        if keeps(answer.value):
            self._keep(question, answer)
        return answer

    def kept(self, question: Hashable, problem: Exception) -> Answer | None:
        """The last answer, if there is one, because of this problem."""
        kept = self._kept(question)
        return None if kept is None else Answer(kept[0].value, kept[0].read_at, problem)

    def _begin(self, question: Hashable) -> bool:
        """Whether nobody else reads the same at this moment: all who look would ask at once when an answer is too
        old."""
        with self._lock:
            is_first = question not in self._reading
            self._reading.add(question)
            return is_first

    def _kept(self, question: Hashable) -> tuple[Answer, float] | None:
        with self._lock:
            return self._answers.get(question)

    def _keep(self, question: Hashable, answer: Answer) -> None:
        with self._lock:
            self._answers[question] = answer, monotonic()
            self._answers.move_to_end(question)
            while len(self._answers) > MOST:
                self._answers.popitem(last=False)
