"""SIGTERM and SIGINT stop a worker that runs in the main thread, unless the program handles them itself."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from async_task import AsyncTask, Attempt, Succeeded
from async_task.worker.signals import DEFAULTS
from outbox import act, will

Write = Callable[..., Attempt]
BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def _defaults() -> Iterator[None]:
    """Whoever starts the tests in the background may have switched SIGINT off."""
    before = {number: signal.signal(number, default) for number, default in zip(BOTH, DEFAULTS, strict=True)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("door", ["sync"])
@pytest.mark.parametrize("number", BOTH)
@pytest.mark.usefixtures("_defaults")
def test_a_signal_lets_the_worker_finish_its_call_and_end(app: AsyncTask, write: Write, number: signal.Signals) -> None:
    will(lambda: os.kill(os.getpid(), number))
    write(act)
    assert app.worker().run() == {Succeeded: 1}
    assert tuple(map(signal.getsignal, BOTH)) == DEFAULTS


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("door", ["sync"])
@pytest.mark.usefixtures("_defaults")
def test_a_handler_of_the_programs_own_stays(app: AsyncTask, write: Write) -> None:
    worker = app.worker()
    received: list[int] = []
    for number in BOTH:
        signal.signal(number, lambda number, _: (received.append(number), worker.stop()))  # type: ignore[arg-type]
    will(lambda: os.kill(os.getpid(), signal.SIGTERM))
    write(act)
    worker.run()
    assert received == [signal.SIGTERM]
