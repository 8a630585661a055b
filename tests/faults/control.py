"""The broken control: a library without its fence, which the invariants must find out.

Whoever knows the id of a row may lock and write it, whoever has claimed it since.
"""

from typing import Any

from async_task.queue import predicates, settle_statements


def break_the_fence() -> None:
    """Let every fenced statement of this process hit its row by id alone. Fails if the fence is not where it was."""
    assert callable(predicates.is_mine)
    assert callable(settle_statements._ours)
    predicates.is_mine = _is_there
    settle_statements._ours = lambda table, arrays: (settle_statements._among(table, arrays),)


def _is_there(table: Any, attempt_id: Any, claim_id: Any) -> Any:
    return (table.c.id == attempt_id,)
