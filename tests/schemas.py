"""A database schema as sorted lines of text: two schemas are equal if their lines are."""

import re

from sqlalchemy import Engine, text

POSTGRESQL = {
    "columns": """
        SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || coalesce(character_maximum_length, 0)
            || ' ' || is_nullable || ' ' || coalesce(column_default, generation_expression, '-')
        FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog', 'information_schema')""",
    "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    "constraints": """
        SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "sequences": "SELECT 'sequence ' || schemaname || '.' || sequencename FROM pg_sequences",
    "storage": """
        SELECT oid::regclass || ' ' || reloptions::text FROM pg_class
        WHERE relkind = 'r' AND reloptions IS NOT NULL""",
}


def described(engine: Engine) -> list[str]:
    """All tables, columns, indexes, constraints and storage parameters, without the table of Alembic."""
    describe = {"postgresql": _postgresql, "sqlite": _sqlite}.get(engine.dialect.name, _mysql)
    return sorted(line for line in describe(engine) if "alembic_version" not in line)


def execute_script(engine: Engine, script: str) -> None:
    """Execute each statement of a script that `async-task sql` printed."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in re.split(r";\n\s*", script):
            if statement.strip() and statement.strip() not in ("BEGIN", "COMMIT"):
                connection.exec_driver_sql(
                    statement.replace("%", "%%") if engine.dialect.name == "mysql" else statement
                )


def _postgresql(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return [row[0] for query in POSTGRESQL.values() for row in connection.execute(text(query))]


def _mysql(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        tables = [row[0] for row in connection.exec_driver_sql("SHOW TABLES") if row[0] != "alembic_version"]
        made = {table: connection.exec_driver_sql(f"SHOW CREATE TABLE {table}").one()[1] for table in tables}
    return [f"{table}: {line.strip().rstrip(',')}" for table, sql in made.items() for line in sql.splitlines()[1:-1]]


def _sqlite(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
    flat = [(table, re.sub(r"\s+", " ", sql)) for table, sql in rows]
    # Split at commas that are in no other parentheses than those of the table.
    # The check of a column means the same as one of its table.
    between = r",(?![^()]*\)[^()]*[^()\s])|(?<=NULL) (?=CONSTRAINT)"
    parts = [(table, part) for table, sql in flat for part in re.split(between, sql)]
    return [f"{table}: {part.strip(' )')}" for table, part in parts]
