"""The script and its line of the crontab, run as a user runs them."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from async_task import Attempt, ConfigurationError, target
from shop import Base, Order, SessionLocal, outbox

HERE = pathlib.Path(__file__).parent
Run = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    outbox.create_schema()
    outbox.on_connection(Base.metadata.create_all)
    yield
    SessionLocal.kw["bind"].dispose()


def run(*words: str) -> str:
    """What this command prints, all in all."""
    ended = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout + ended.stderr


def is_packed(number: int) -> bool:
    with SessionLocal() as session:
        return session.get_one(Order, number).is_packed


def test_cron_makes_the_calls_that_a_script_has_written_and_prints_nothing() -> None:
    assert run(sys.executable, "shop.py", "1", "2") == ""
    assert not is_packed(2)
    *stars, line = (HERE / "crontab").read_text().split(maxsplit=5)
    programs = pathlib.Path(sys.executable).parent
    assert run("/bin/sh", "-c", line.replace("cd /srv/shop && .venv/bin", str(programs))) == ""
    assert stars == ["*"] * 5
    assert is_packed(1)
    assert is_packed(2)


def test_a_script_makes_its_calls_by_itself_if_it_is_told_to() -> None:
    assert run(sys.executable, "shop.py", "--now", "3") == "1 packed\n"
    assert is_packed(3)


def test_orders_of_which_one_is_there_leave_neither_order_nor_call() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run(sys.executable, "shop.py", "4", "3")
    with SessionLocal() as session:
        assert session.get(Order, 4) is None
        assert not session.query(Attempt).where(Attempt.status == "pending").count()


def test_in_a_script_a_target_needs_a_name() -> None:
    def deliver(number: int) -> None: ...

    deliver.__module__ = "__main__"
    with pytest.raises(ConfigurationError, match="name"):
        target(deliver)
