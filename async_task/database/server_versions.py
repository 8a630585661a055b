"""The oldest servers that understand the SQL of this library."""

from sqlalchemy.engine import Connection, Dialect

from async_task.database.dialects import is_mariadb
from async_task.errors import ConfigurationError

OLDEST = {
    "PostgreSQL": (12,),  # generated columns
    "MariaDB": (10, 6),  # SKIP LOCKED
    "MySQL": (8, 0, 17),  # utf8mb4_0900_bin, and checks that are enforced
    "SQLite": (3, 31),  # generated columns
}
NAMES = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB", "sqlite": "SQLite"}


def refuse_old_server(connection: Connection) -> None:
    """Raises ConfigurationError for a server that is too old, before a statement fails with a syntax error."""
    if (words := too_old(connection.dialect)) is not None:
        raise ConfigurationError(words)


def too_old(dialect: Dialect) -> str | None:
    """In words, that the server is too old; None if it is not, or if it does not tell its version.

    `dialect`: that of an engine which has connected once.
    """
    name = _name(dialect)
    found = getattr(dialect, "server_version_info", None)
    if name is None or not found or tuple(found) >= OLDEST[name]:
        return None
    return f"{name} {_text(found)} is too old: this library needs {name} {_text(OLDEST[name])} or newer"


def server_of(dialect: Dialect) -> tuple[str, str | None]:
    """The name of the server, and its version if it tells that: "PostgreSQL", "15.4". `dialect`: as in `too_old`."""
    found = getattr(dialect, "server_version_info", None)
    return _name(dialect) or dialect.name, _text(found) if found else None


def _name(dialect: Dialect) -> str | None:
    return "MariaDB" if is_mariadb(dialect) else NAMES.get(dialect.name)


def _text(version: tuple[object, ...]) -> str:
    return ".".join(str(part) for part in version[:3])
