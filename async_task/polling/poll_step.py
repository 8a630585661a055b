"""One step of a poll: what it asks the user's class, and what it writes of the answer.

What one step has learned is committed before the next one begins, and only the claim's owner writes it.
"""

import datetime as dt
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from async_task.attempts.ambient import nothing_handed
from async_task.attempts.chain import key_of
from async_task.database.answers import Raised
from async_task.database.driver_errors import transient_error
from async_task.database.lanes import lane_of
from async_task.error_text import Failure, describe, secrets_in, without_values
from async_task.errors import InvalidState
from async_task.polling.decisions import Reading, Step, decide
from async_task.polling.settings import Polling
from async_task.polling.states import STATE, PollState, state_of
from async_task.queue.hooks import is_interrupt
from async_task.targets.answers import checked_answer
from async_task.targets.context import Again, Discard, GivenUp, current_attempt

if TYPE_CHECKING:
    from async_task.polling.pollable import Pollable

logger = logging.getLogger("async_task")
AT_ONCE = Again(after=0)
AFTER_A_LOSS = Again(after=1)
"""Somebody else has changed the row: it is read again, but not in a tight loop."""


class _Unfinished(Exception):
    """A transient error of the provider: `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__("a transient error")
        self.error = error


class _Overtaken(Exception):
    """Somebody else has changed the row meanwhile."""


class PollStep:
    """One step. `session`: of the transaction of its outcome, which begins at its first use."""

    def __init__(self, session: Session, row: "Pollable", now: dt.datetime) -> None:
        self._session = session
        self._lane = lane_of(session)
        self._row = row
        self._now = now
        self._polling: Polling = row.polling
        self._was = row.status
        self._as_read = {name: getattr(row, name) for name in STATE}
        self._secrets = frozenset[str]()

    def go_on(self) -> Again | None:
        decision = decide(self._reading(), self._polling)
        try:  # before the methods of the user's run, which may change what it reads from
            self._secrets = secrets_in({"secrets": list(self._row.secrets())}, None)
        except Exception as error:
            if decision.step not in (Step.CHECK_LAST, Step.GIVE_UP):
                raise
            return self._fail(f"{self._too_old}; its secrets() raised {type(error).__name__}")
        steps: dict[Step, Callable[[], Again | None]] = {
            Step.NOTHING: lambda: None,
            Step.START: self._start,
            Step.STAMP: self._stamp,
            Step.CHECK: self._check,
            Step.CHECK_LAST: self._check_last,
            Step.GIVE_UP: self._give_up,
            Step.REFUSE: partial(self._fail, decision.reason),
            Step.FETCH: self._fetch,
            Step.SKIP_FETCH: self._skip_fetch,
            Step.HANDLE: self._handle,
        }
        try:
            return self._done_or_put_off(steps[decision.step])
        except _Overtaken as overtaken:
            logger.warning("%s: what it has learned is dropped: %s", self._name, overtaken)
            return AFTER_A_LOSS

    def _done_or_put_off(self, step: Callable[[], Again | None]) -> Again | None:
        try:
            return step()
        except _Unfinished as unfinished:
            return self._put_off(unfinished.error)

    def _start(self) -> Again:
        try:
            answer = self._call("start", str(current_attempt().id))
        except Discard as discarded:
            return self._fail(self._described(discarded).summary)
        if isinstance(answer, Again):
            return self._not_yet(answer)
        wait = self._polling.wait(dt.timedelta(0))
        self._write(self._row.record_start, wait)
        return Again(after=wait)

    def _stamp(self) -> Again:
        self._write(self._row.record_stamp)
        return AT_ONCE

    def _check(self) -> Again:
        try:
            state = state_of(self._call("check"))
        except Discard as discarded:
            return self._fail(self._described(discarded).summary)
        wait = self._polling.wait(self._age or dt.timedelta(0))
        self._write(self._row.record_check, state, wait)
        return AT_ONCE if state.is_terminal else Again(after=wait)

    def _check_last(self) -> Again:
        """Whatever it answers gives it up, but an end that can be written."""
        answer = self._answer("check")
        try:
            state = state_of(self._returned(answer))
        except Discard as discarded:
            return self._fail(self._described(discarded).summary)
        except BaseException as error:
            if is_interrupt(error):
                raise
            return self._give_up(f"; its last check raised {self._described(error).summary}")
        if not state.is_terminal:
            return self._give_up()
        self._session.connection()  # what this raises is none of the row's
        try:
            with self._session.begin_nested():
                self._write(self._row.record_check, state, dt.timedelta(0))
        except Exception as error:
            if isinstance(error, _Overtaken) or transient_error(error) is not None:
                raise
            return self._fail(f"{self._too_old}; its end cannot be written: {self._described(error).summary}")
        return AT_ONCE

    def _fetch(self) -> Again:
        answer = self._call("fetch")
        return self._not_yet(answer) if isinstance(answer, Again) else self._skip_fetch()

    def _skip_fetch(self) -> Again:
        self._write(self._row.record_fetch)
        return AT_ONCE

    def _handle(self) -> Again | None:
        answer = self._call("handle")
        if isinstance(answer, Again):
            return self._not_yet(answer)
        self._write(self._row.record_handled)
        return None

    def _not_yet(self, answer: Again) -> Again:
        """The method is called again, and what it has changed so far is kept."""
        self._write(self._row.record_delay, answer.after)
        return answer

    def _give_up(self, why: str = "") -> Again:
        stopped = self._answer("stop")
        if isinstance(stopped, Raised):
            if is_interrupt(stopped.error):
                raise stopped.error
            logger.warning("%s: stop() raised %s", self._name, self._described(stopped.error).summary)
        return self._fail(f"{self._too_old}{why}")

    def _fail(self, reason: str) -> Again:
        self._write(self._row.record_failure, reason, keep=False)
        try:
            with self._session.begin_nested():
                self._keep()
        except Exception as error:  # a row that is refused at each poll would be polled for ever
            if transient_error(error) is not None:
                raise
            logger.warning("%s: its other changes are dropped: %s", self._name, self._described(error).summary)
        logger.warning("%s is given up: %s", self._name, reason)
        return GivenUp(reason)

    def _put_off(self, error: Exception) -> Again:
        """Ask again later, as if nothing had been asked: no error is counted."""
        wait = self._polling.wait(self._age_of_step())
        logger.info("%s: asked again in %s after %s", self._name, wait, self._described(error).summary)
        self._write(self._row.record_delay, wait, keep=False)
        return Again(after=wait)

    def _call(self, name: str, *given: object) -> Any:
        """What a method of the user's returns. Raises _Unfinished for a transient error; else what it raises, without
        its secrets."""
        return self._returned(self._answer(name, *given))

    def _answer(self, name: str, *given: object) -> object:
        """What that method returns, or `Raised`."""
        with nothing_handed():
            answer = self._lane.call(partial(getattr(self._row, name), *given))
            if inspect.iscoroutine(answer):
                answer = self._lane.run_coroutine(answer)
        return checked_answer(answer, f"{name}()")

    def _returned(self, answer: object) -> Any:
        if isinstance(answer, Raised):
            raise self._to_raise(answer.error)
        return answer

    def _to_raise(self, error: BaseException) -> BaseException:
        if isinstance(error, self._polling.transient_errors):
            return _Unfinished(error)
        if not self._secrets or not isinstance(error, Exception) or isinstance(error, Discard):
            return error
        return without_values(error, self._described(error))

    def _described(self, error: BaseException) -> Failure:
        return describe(error.error if isinstance(error, _Unfinished) else error, self._secrets)

    def _write(self, record: Callable[..., None], *given: object, keep: bool = True) -> None:
        """Write the new state, and with `keep` what the user's method has changed of the row besides."""
        try:
            record(self._session, self._was, *given)
        except InvalidState as refused:
            raise _Overtaken(str(refused)) from None
        if keep:
            self._keep()

    def _keep(self) -> None:
        for name, value in self._as_read.items():  # the state is what the statement has written
            set_committed_value(self._row, name, value)
        self._session.add(self._row)

    def _reading(self) -> Reading:
        row = self._row
        return Reading(row.status, self._age, row.results_fetched_at is not None, row.handler_dispatched_at is not None)

    @property
    def _age(self) -> dt.timedelta | None:
        since = self._as_read["submitted_at"]
        return None if since is None else self._now - since

    @property
    def _too_old(self) -> str:
        what = "started" if self._was == PollState.PENDING else "ended"
        return f"it had not {what} after its maximal age of {self._polling.max_age}"

    def _age_of_step(self) -> dt.timedelta:
        """How long it has been in the phase of this step: waits for its results begin the schedule anew."""
        since = self._as_read["ended_at"] or self._as_read["failed_at"] or self._as_read["submitted_at"]
        return dt.timedelta(0) if since is None else max(dt.timedelta(0), self._now - since)

    @property
    def _name(self) -> str:
        return f"{type(self._row).__name__} {key_of(self._row)}"
