"""How the outcome of a call is committed: with which others, and how soon."""

import enum
from dataclasses import dataclass

from async_task.execution.call import PreparedCall


class CommitMode(enum.Enum):
    """GROUPED: with the outcomes of other calls that take no session. SHARED: with the writes and outcomes of other
    calls of the same method. ALONE: by itself."""

    GROUPED, SHARED, ALONE = range(3)


@dataclass(frozen=True, slots=True)
class CommitRules:
    """The rules of one worker. `settle_within`: seconds after which an outcome is committed, unless its target says
    otherwise; 0: each in a commit of its own. `each_alone`: no calls are grouped."""

    settle_within: float
    each_alone: bool = False

    def seconds(self, call: PreparedCall) -> float:
        """Within how many seconds after its end the outcome of this call is committed."""
        own = call.method.policy.settle_within
        return self.settle_within if own is None else own.total_seconds()

    def mode(self, call: PreparedCall) -> CommitMode:
        """A call is grouped if it takes no session, no event loop and has no limits of its own. Of calls that take a
        session, some share a transaction because their target says `batch=`."""
        if self.each_alone:
            return CommitMode.ALONE
        policy = call.method.policy
        if call.session_class is not None:
            can_share = (policy.batch or 1) > 1 and self.seconds(call) > 0
            return CommitMode.SHARED if can_share else CommitMode.ALONE
        has_limits = call.timeout is not None or bool(policy.isolate)
        return CommitMode.ALONE if call.method.signature.is_async or has_limits else CommitMode.GROUPED
