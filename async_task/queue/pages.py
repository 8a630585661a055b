"""Pages: a sweep changes a bounded number of rows in each transaction, and one bad row does not stop the rest."""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from async_task.database.driver_errors import is_transient
from async_task.database.transactions import retry_transient

logger = logging.getLogger("async_task")
T = TypeVar("T")
PAGE = 500


class Refused(Exception):
    """The database refused to change a page because of at least one of its rows, those with `ids`."""

    def __init__(self, ids: list[uuid.UUID], error: DBAPIError) -> None:
        super().__init__(f"{type(error.orig).__name__} for one of {len(ids)} rows")
        self.ids = ids


@contextmanager
def refusing(ids: list[uuid.UUID]) -> Iterator[None]:
    """Raise Refused for an error that comes from these rows, and not from the infrastructure."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated or is_transient(error.orig):
            raise
        raise Refused(ids, error) from error


def pages(change: Callable[..., T], size: Callable[[T], int], page: int) -> Iterator[T]:
    """What `change(limit=, besides=)` returns for each page, until one is not full; `size` counts the rows of a page.
    A refused page is tried in halves, down to the one bad row, which is logged and left as it is."""
    besides: list[uuid.UUID] = []
    limit = page
    while True:
        try:
            found = retry_transient(partial(change, limit=limit, besides=besides))
        except Refused as refused:
            if len(refused.ids) > 1:
                limit = len(refused.ids) // 2
                continue
            logger.error("the sweep leaves attempt %s as it is: %s", refused.ids[0], refused)
            besides, limit = [*besides, *refused.ids], page
            continue
        yield found
        if size(found) < limit:
            break
