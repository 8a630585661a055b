"""The errors' messages repeat what was given only as far as a person reads it."""

import pickle

import pytest

from async_task import AsyncTaskError, UnknownTarget


def test_a_long_word_in_a_message_is_cut() -> None:
    assert str(UnknownTarget(f"no target {'x' * 100_000!r} here")) == f"no target '{'x' * 99}... here"
    assert str(UnknownTarget("y" * 200)) == "y" * 200


def test_a_long_message_is_cut() -> None:
    text = str(AsyncTaskError("word " * 100_000))
    assert (len(text), text[-3:]) == (4003, "...")


@pytest.mark.parametrize("given", [(), ("no table",)])
def test_an_error_is_the_same_after_pickling(given: tuple[str, ...]) -> None:
    error = UnknownTarget(*given)
    assert (str(pickle.loads(pickle.dumps(error))), type(error)) == (str(error), UnknownTarget)  # noqa: S301
