"""`async-task check`: whether tables, migrations, targets and keys fit together."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from sqlalchemy import inspect

from async_task import AsyncTask
from async_task_cli.application import find_app, refuse_missing_file
from async_task_cli.faults import UNEXPECTED, Refusal
from async_task_cli.migrations.comparison import differences
from async_task_cli.migrations.environment import Unknown, unseen
from async_task_cli.migrations.schema import SCHEMA_VERSION, table_of, tables_of
from async_task_cli.migrations.tree import find_tree
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import counted, say

SUBJECTS = {"target": "targets", "encryptor": "encryptors", "key": "keys"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: `about` what, whether it is `ok`, and in words what to know or to do."""

    about: str
    ok: bool
    words: str


@click.command("check", context_settings=SETTINGS)
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="Alembic's configuration.")
@as_json
@reaching
def check(wanted: Wanted, config: Path | None, is_json: bool) -> int:
    """Check that the tables, those of models that are their own jobs, the Alembic tree, and the targets and encryptors
    of waiting calls fit together.

    Changes nothing; runs your env.py up to where it names its metadata. Ends with 1 if something does not fit.

    --json writes one object a line: about, ok, words.
    """
    app = find_app(wanted)
    try:
        refuse_missing_file(app)
        with app.app_context():
            findings = [*_database(app), *_tree(app, config)]
    finally:
        app.close()
    for finding in findings:
        click.echo(json.dumps(_as_data(finding)) if is_json else _line(finding))
    wrong = sum(not finding.ok for finding in findings)
    if not is_json:
        say(f"{counted(wrong, 'thing does', 'things do')} not fit." if wrong else "All fits.")
    return UNEXPECTED if wrong else 0


def _database(app: AsyncTask) -> Iterator[Finding]:
    version = app.schema_version()
    wrong: list[str] = []
    if version is None or version == SCHEMA_VERSION:
        wrong = app.on_connection(lambda connection: differences(connection, tables_of(app.model)))
    attempts = table_of(app.model)
    is_there = version is not None or app.on_connection(
        lambda connection: inspect(connection).has_table(attempts.name, attempts.schema)
    )
    yield _version(version, is_there=is_there)
    if version is None or version == SCHEMA_VERSION:
        yield from _listed("tables", wrong, "as the model has them")
        if not wrong and version is not None:
            yield from _waiting(app)
    lacking = app.check_models()
    if lacking or app.job_models:
        yield from _listed("models", lacking, "their tables have all columns and indexes")


def _version(version: int | None, *, is_there: bool) -> Finding:
    if version is None and is_there:
        words = "the tables are there without a version: `async-task adopt` takes them over"
    elif version is None:
        words = f"the database has none: this library needs {SCHEMA_VERSION}, and `async-task install` creates it"
    elif version < SCHEMA_VERSION:
        words = f"{version} is old: this library needs {SCHEMA_VERSION}, and `async-task upgrade` brings it there"
    elif version > SCHEMA_VERSION:
        words = f"{version} is newer than this library, which knows {SCHEMA_VERSION}: upgrade the library"
    else:
        words = str(version)
    return Finding("version", version == SCHEMA_VERSION, words)


def _waiting(app: AsyncTask) -> Iterator[Finding]:
    """Whether this process knows all targets, methods, encryptors and keys that waiting calls name."""
    problems = app.check_calls()
    for subject, name in SUBJECTS.items():
        yield from _listed(name, [one.words for one in problems if one.about == subject])
    for one in problems:
        if one.about not in SUBJECTS:
            yield Finding(one.about, not one.is_blocking, one.words)


def _tree(app: AsyncTask, config: Path | None) -> Iterator[Finding]:
    try:
        tree = find_tree(config)
    except Refusal as refusal:
        yield Finding("alembic", False, str(refusal))
        return
    if tree is None:
        yield Finding("alembic", True, "there is no tree here")
        return
    installed = tree.installed(table_of(app.model))
    if installed is None:
        names = "a revision of your own names the tables; `async-task upgrade --apply` upgrades them"
        lacks = "no revision creates the tables: `async-task install` writes it"
        is_named = tree.naming(table_of(app.model)) is not None
        yield Finding("alembic", is_named, names if is_named else lacks)
    elif installed[1] != SCHEMA_VERSION:
        words = f"revision {installed[0]} makes version {installed[1]}, not {SCHEMA_VERSION}: `async-task upgrade`"
        yield Finding("alembic", False, words)
    else:
        yield Finding("alembic", True, f"revision {installed[0]} makes version {installed[1]}")
    try:
        missing = unseen(tree, tables_of(app.model))
    except Unknown as error:
        yield Finding("metadata", tree.has_several_databases, f"{error}; so it is not known what autogenerate sees")
        return
    names = f"target_metadata of {tree.env} lacks {', '.join(missing)}: autogenerate would drop what it lacks"
    yield Finding("metadata", not missing, names if missing else "autogenerate sees the tables")


def _listed(about: str, wrong: list[str], otherwise: str = "all known") -> Iterator[Finding]:
    if not wrong:
        yield Finding(about, True, otherwise)
    for words in wrong:
        yield Finding(about, False, words)


def _as_data(finding: Finding) -> dict[str, object]:
    return {"about": finding.about, "ok": finding.ok, "words": finding.words}


def _line(finding: Finding) -> str:
    return f"{'ok ' if finding.ok else 'NOT'}  {finding.about:<10}  {finding.words}"
