"""Execute a revision on a connection, or print it as SQL."""

import contextlib
import io
import textwrap
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from async_task import AsyncTask
from async_task_cli.migrations.body import Body

DIALECTS = ("postgresql", "mysql", "mariadb", "sqlite")


def carry_out(body: Body, connection: sa.Connection) -> None:
    """Execute it in the transaction that this connection has begun."""
    _run(body, MigrationContext.configure(connection))


def dialect_of(app: AsyncTask) -> str:
    """The dialect for `as_sql`. By its URL alone a MariaDB is a MySQL: so the server is asked, if it is there."""
    name = sa.make_url(app.address).get_backend_name()
    if name != "mysql":
        return name
    with contextlib.suppress(sa.exc.DBAPIError):
        return app.on_connection(_server_of)
    return name


def _server_of(connection: sa.Connection) -> str:
    return "mariadb" if getattr(connection.dialect, "is_mariadb", False) else connection.dialect.name


def as_sql(body: Body, dialect: str) -> str:
    """Its statements for this dialect, the same every time, in one transaction where the database has that."""
    written = io.StringIO()
    options = {"as_sql": True, "output_buffer": written, "literal_binds": True}
    context = MigrationContext.configure(dialect_name=dialect, opts=options)
    with context.begin_transaction():
        _run(body, context)
    return "\n".join(line.rstrip() for line in written.getvalue().strip().splitlines()) + "\n"


def _run(body: Body, context: MigrationContext) -> None:
    source = f"{body.imports}\n\ndef upgrade():\n{textwrap.indent(body.upgrade, '    ')}"
    names: dict[str, Any] = {"sa": sa, "op": Operations(context)}
    exec(compile(source, f"<{body.message}>", "exec"), names)  # noqa: S102 - it is the text of our own revision
    names["upgrade"]()
