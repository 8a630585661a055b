"""A fake in the place of a target that cannot be patched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from async_task.errors import ConfigurationError
from async_task.targets.registry import method_of

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def replaced(fn: Callable[..., Any], fake: F, /) -> Iterator[F]:
    """Inside of this, the calls of the registered function `fn` call `fake`, in the whole process; returns `fake`.

        with replaced(OrderClient.fulfill, Mock()) as fulfill:
            perform_all(session)
        fulfill.assert_called_once_with(order_number=17)

    Most targets can be patched as anything else (`mock.patch.object`, `monkeypatch`). This is for those that cannot: a
    function that was imported elsewhere, one below decorators, an instance. The signature and the policy stay those of
    `fn`; `fake` may be a `def` or an `async def`. Raises UnknownTarget for a function that no target has, and
    ConfigurationError for a fake that cannot be called.
    """
    method = method_of(fn)
    if not callable(fake):
        raise ConfigurationError(f"replaced takes what is called instead, and {type(fake).__name__} cannot be called")
    before, method.replacement = method.replacement, fake
    try:
        yield fake
    finally:
        method.replacement = before
