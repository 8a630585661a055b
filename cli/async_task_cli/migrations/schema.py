"""The tables that a model needs, and their version: where the command line imports them from the library."""

from async_task.database.numbering import sequence_of
from async_task.schema.tables import SCHEMA_VERSION, companion_tables, table_of
from async_task.schema.versions import tables_of

__all__ = ["SCHEMA_VERSION", "companion_tables", "sequence_of", "table_of", "tables_of"]
