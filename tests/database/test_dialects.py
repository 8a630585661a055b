"""Capabilities of the databases: each is what the real server says, or does."""

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.mysql import mariadb

from async_task.database import dialects
from async_task.database.dialects import exact_collation, is_mariadb, receives_notifications
from async_task.database.engines import Source
from databases import Database

CAPABILITIES = {
    "locks_rows": {"postgresql", "mysql"},
    "probes_laterally": {"postgresql"},
    "locks_neighbours": {"mysql"},
    "copies_rows": {"postgresql"},
    "notifies": {"postgresql"},
    "receives_notifications": {"postgresql"},
    "has_schemas": {"postgresql"},
    "has_time_zones": {"postgresql"},
    "has_longtext": {"mysql"},
    "sets_isolation_by_statement": {"mysql"},
}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_database_has_the_capabilities_of_its_kind(capability: str, database: Database, engine: Engine) -> None:
    has = getattr(dialects, capability)
    assert has(engine.dialect) is (database.name in CAPABILITIES[capability])


def test_notifications_are_received_through_an_async_driver_too(database: Database, async_engine_url: str) -> None:
    assert receives_notifications(Source(async_engine_url).dialect) is (database.name == "postgresql")


@pytest.mark.only_on("mysql")
def test_mariadb_is_recognized_under_either_name_of_the_dialect(engine: Engine) -> None:
    with engine.connect() as connection:
        version = str(connection.scalar(text("SELECT version()")))
    assert is_mariadb(engine.dialect) is ("MariaDB" in version)
    assert is_mariadb(mariadb.MariaDBDialect())
    assert not is_mariadb(mysql.dialect())  # type: ignore[no-untyped-call]


@pytest.mark.only_on("mysql")
def test_the_exact_collation_tells_a_text_from_the_same_with_a_space_at_its_end(engine: Engine) -> None:
    with engine.connect() as connection:
        asked = text(f"SELECT _utf8mb4'a ' COLLATE {exact_collation(engine.dialect)} = _utf8mb4'a'")
        assert connection.scalar(asked) == 0
