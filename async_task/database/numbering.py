"""The `seq` of rows with an order key: a number that grows from one committed row of the key to the next."""

from typing import Any

from sqlalchemy import BigInteger, Float, Sequence, Table, cast, func, literal, literal_column, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


def sequence_of(attempts: Table) -> Sequence:
    """PostgreSQL's sequence for the `seq` of an attempts table; it is in the table's schema."""
    return Sequence(f"sq_{attempts.name}_order", schema=attempts.schema)


class numbered(FunctionElement[int]):
    """The `seq` of a row that is inserted now with this order key: greater than that of every committed row of the key.

    Transactions do not wait for each other here, so rows of transactions that are open at the same time have no order.
    """

    name = "numbered"
    inherit_cache = True
    type = BigInteger()

    def __init__(self, attempts: Table, key: str) -> None:
        line = attempts.alias("line")
        of_key = (line.c.status == literal_column("'pending'"), line.c.order_key == literal(key, line.c.order_key.type))
        last = select(func.coalesce(func.max(line.c.seq), 0)).where(*of_key).correlate(None).scalar_subquery()
        super().__init__(sequence_of(attempts).next_value(), last)


@compiles(numbered)
@compiles(numbered, "postgresql")
def _numbered(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    following, _ = element.clauses
    return compiler.process(following, **kw)


@compiles(numbered, "mysql")
@compiles(numbered, "mariadb")
def _mysql_number(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    # It starts again at a higher number when the server restarts. We cut off the server's id, which would make the
    # number too large for our column.
    return compiler.process(func.uuid_short().op("&")(literal_column(str(2**56 - 1))), **kw)


@compiles(numbered, "sqlite")
def _sqlite_number(element: numbered, compiler: SQLCompiler, **kw: Any) -> str:
    # There is one writer at a time. The clock (in milliseconds) keeps a row that is retried later behind newer ones.
    _, last = element.clauses
    clock = cast(func.julianday(literal_column("'now'"), type_=Float()) * literal_column("86400000"), BigInteger)
    return compiler.process(func.max(last + literal_column("1"), clock), **kw)


def take_numbers(connection: Connection, attempts: Table, count: int) -> list[int] | None:
    """The `seq` of `count` rows that are inserted now; None where each INSERT must compute its own (`numbered`)."""
    if connection.dialect.name != "postgresql":
        return None
    following = select(sequence_of(attempts).next_value()).select_from(func.generate_series(1, count))
    return list(connection.scalars(following))
