"""What a session is given on its server, as the real server says it."""

from typing import Any

import pytest
from sqlalchemy import Engine, text

from async_task.database.dialects import is_mariadb
from async_task.database.server_sessions import limit_session, server_uptime, unlimit_session
from databases import Database


def test_the_uptime_of_a_server_grows_and_sqlite_has_none(database: Database, engine: Engine) -> None:
    with engine.connect() as connection:
        first, second = server_uptime(connection), server_uptime(connection)
    if database.name == "sqlite":
        assert first is None
    else:
        assert first is not None
        assert second is not None
        assert 0 <= first <= second


@pytest.mark.only_on("mysql")
def test_the_limits_of_a_session_are_set_and_unset(engine: Engine) -> None:
    def limits() -> tuple[Any, ...]:
        names = ("idle_transaction_timeout", "max_statement_time") if is_mariadb(engine.dialect) else ("wait_timeout",)
        return tuple(connection.scalar(text(f"SELECT @@SESSION.{name}")) for name in names)

    with engine.connect() as connection:
        before = limits()
        limit_session(connection, 7.9)
        assert {int(one) for one in limits()} == {7}
        unlimit_session(connection)
        assert limits() == before
