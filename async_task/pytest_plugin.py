"""The pytest plugin: the functions of `async_task.testing` as fixtures, for the session of the test.

Importing it imports neither the library nor SQLAlchemy. Both are imported by the first test that uses a fixture, the
marker or a mode.
"""

import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any

import pytest

SESSION, MODE = "async_task_session", "async_task_mode"
_mode = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(SESSION, "the name of the fixture that gives a test's session (async-task)", default="session")
    parser.addini(MODE, "what becomes of calls that tests write: manual, inline or off (async-task)", default="manual")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", 'async_task(mode="manual"): what becomes of calls that the test writes: "manual", "inline" or "off"'
    )
    if (named := config.getini(MODE)) != "manual":
        _check(lambda: _modes().check_mode(named), MODE)


def pytest_collection_finish() -> None:
    if (registry := sys.modules.get("async_task.targets.registry")) is not None:
        registry.note_definitions()  # before anything is patched


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _of_forgotten().clear()
    name = _mode_of(item)
    if name != "manual":
        stack = item.stash[_mode] = ExitStack()
        stack.enter_context(_modes().mode(name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    result = yield
    if said := _of_forgotten():
        pytest.fail("\n".join(said), pytrace=False)
    return result


def _of_forgotten() -> list[str]:
    """What to say of awaitables that were not awaited."""
    module = sys.modules.get("async_task.testing.awaited")
    return [] if module is None else module.forgotten


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    with item.stash.get(_mode, ExitStack()), warnings.catch_warnings():
        # A session that a fixture closes rolls back on purpose.
        if (errors := sys.modules.get("async_task.errors")) is not None:
            warnings.simplefilter("ignore", errors.LostAttemptWarning)
        return (yield)


def _mode_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("async_task")
    if marker is None:
        return str(item.config.getini(MODE))
    if marker.args or set(marker.kwargs) != {"mode"}:
        raise pytest.UsageError('the marker async_task takes one argument: @pytest.mark.async_task(mode="inline")')
    name = marker.kwargs["mode"]
    if name != "manual":
        _check(lambda: _modes().check_mode(name), "@pytest.mark.async_task")
    return str(name)


def _check(check: Callable[[], object], where: str) -> None:
    from async_task import ConfigurationError

    try:
        check()
    except ConfigurationError as error:
        raise pytest.UsageError(f"{where}: {error}") from None


def _modes() -> Any:
    from async_task.testing import modes

    return modes


@pytest.fixture
def async_task_testing(request: pytest.FixtureRequest) -> Generator[Any]:
    """The module `async_task.testing`, whose functions take the session of the test's fixture where none is given."""
    from async_task import testing
    from async_task.testing.sessions import fixture_session

    name = request.config.getini(SESSION)
    try:
        session = request.getfixturevalue(name)
    except pytest.FixtureLookupError as error:
        if error.argname != name:
            raise
        yield testing  # the test gives session=
        return
    with fixture_session(name, session):
        yield testing


@pytest.fixture
def written(async_task_testing: Any) -> Any:
    """`async_task.testing.written`, for the session of the test."""
    return async_task_testing.written


@pytest.fixture
def assert_written(async_task_testing: Any) -> Any:
    """`async_task.testing.assert_written`, for the session of the test."""
    return async_task_testing.assert_written


@pytest.fixture
def assert_not_written(async_task_testing: Any) -> Any:
    """`async_task.testing.assert_not_written`, for the session of the test."""
    return async_task_testing.assert_not_written


@pytest.fixture
def perform_all(async_task_testing: Any) -> Any:
    """`async_task.testing.perform_all`, for the session of the test."""
    return async_task_testing.perform_all


@pytest.fixture
def advance(async_task_testing: Any) -> Any:
    """`async_task.testing.advance`, for the session of the test."""
    return async_task_testing.advance


@pytest.fixture
def mode() -> Generator[Any]:
    """`mode("inline")`: from now on and until the end of the test, calls are written and performed in this mode."""
    from async_task import testing

    with ExitStack() as stack:
        yield lambda name: stack.enter_context(testing.mode(name))


@pytest.fixture
def replaced() -> Generator[Any]:
    """`replaced(fn, fake)`: from now on and until the end of the test, calls of `fn` call `fake`; returns `fake`."""
    from async_task import testing

    with ExitStack() as stack:
        yield lambda fn, fake: stack.enter_context(testing.replaced(fn, fake))
