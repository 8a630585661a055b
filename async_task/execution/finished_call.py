"""A finished call: what its target returned or raised, and what is decided about its attempt."""

import datetime as dt
from typing import NamedTuple

from async_task.database.lanes import Raised
from async_task.error_text import Failure, describe
from async_task.execution.call import PreparedCall
from async_task.outcomes import SUCCESS, Decision, Expired, Failed, Outcome, Retried, Standing, Succeeded, decide
from async_task.queue.claim import Claim
from async_task.schema.states import Status


class Settlement(NamedTuple):
    """The outcome of an attempt, and the error that its target raised. `error` is None if it raised none, or if
    another worker has the claim now."""

    outcome: Outcome
    error: BaseException | None = None


class FinishedCall(NamedTuple):
    """A claim, its call, and the decision that is to be written."""

    claim: Claim
    call: PreparedCall
    decision: Decision

    @property
    def failure(self) -> Failure | None:
        """The error as text to store, without secrets."""
        return None if self.decision.error is None else describe(self.decision.error, self.call.secrets)

    @property
    def settlement(self) -> Settlement:
        """What to report once the decision is committed."""
        claim, call, decision = self
        if decision.status is Status.SUCCEEDED:
            return Settlement(Succeeded(claim.id))
        summary = None if decision.error is None else describe(decision.error, call.secrets).summary
        if decision.status is Status.FAILED:
            reason = ": ".join(part for part in (decision.reason, summary) if part)
            return Settlement(Failed(claim.id, reason), decision.error)
        if decision.status is Status.EXPIRED:
            return Settlement(Expired(claim.id, decision.reason), decision.error)
        assert decision.after is not None
        return Settlement(Retried(claim.id, decision.after, summary), decision.error)


def finish(claim: Claim, call: PreparedCall, answer: object, seconds: float) -> FinishedCall:
    """Decide about the attempt of a call that took `seconds`. `answer`: what it returned, or `Raised`."""
    if answer is None:  # so do most calls: nothing about the row matters then
        return FinishedCall(claim, call, SUCCESS)
    elapsed = dt.timedelta(seconds=seconds)
    left = None if claim.left is None else claim.left - elapsed
    standing = Standing(claim.age + elapsed, left, claim.num_errors, claim.max_attempts)
    answer = answer.error if isinstance(answer, Raised) else answer
    return FinishedCall(claim, call, decide(answer, standing, call.method.policy.retry_or_default))
