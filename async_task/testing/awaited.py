"""What the functions return for an AsyncSession: it complains if it is not awaited, as nothing was checked then."""

import warnings
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from sqlalchemy.util import greenlet_spawn  # it needs greenlet only when called

T = TypeVar("T")
forgotten: list[str] = []
"""What to say of those that were dropped without an await, for the pytest plugin."""


class Awaited(Awaitable[T], Generic[T]):
    """`work` in a greenlet of the running event loop, once. `name`: of the function that has returned this."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._name = name
        self._work = work
        self._running: Any = None

    def __await__(self) -> Generator[Any, Any, T]:
        if self._running is None:
            self._running = greenlet_spawn(self._work)
        answer: Generator[Any, Any, T] = self._running.__await__()
        return answer

    def __del__(self) -> None:
        if self._running is None:
            said = f"{self._name}() of an AsyncSession was not awaited"
            forgotten.append(said)
            warnings.warn(said, RuntimeWarning, stacklevel=2)
