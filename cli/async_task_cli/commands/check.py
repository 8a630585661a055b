"""`async-task check`: whether all that must fit together does."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from sqlalchemy import case, func, select

from async_task import AsyncTask, AsyncTaskError, Status
from async_task.encryption.ciphers import refuse_missing_key
from async_task.encryption.encryptors import NullEncryptor, encryptor_named
from async_task.encryption.rotation import key_head
from async_task.schema.tables import SCHEMA_VERSION, table_of
from async_task.schema.versions import tables_of
from async_task.targets.registry import target_named
from async_task_cli.application import find_app, refuse_missing_file
from async_task_cli.faults import UNEXPECTED, Refusal
from async_task_cli.migrations.comparison import differences
from async_task_cli.migrations.environment import Unknown, unseen
from async_task_cli.migrations.tree import find_tree
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import counted, say


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `about` it, whether it is `ok`, and what to know or to do."""

    about: str
    ok: bool
    words: str


@click.command("check", context_settings=SETTINGS)
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="Alembic's configuration.")
@as_json
@reaching
def check(wanted: Wanted, config: Path | None, is_json: bool) -> int:
    """See whether the tables, the Alembic tree, and the targets and encryptors of waiting calls fit together.

    Changes nothing; runs your env.py up to where it names its metadata. Ends with 1 if something does not fit. --json
    writes one object a line: about, ok, words.
    """
    app = find_app(wanted)
    try:
        refuse_missing_file(app)
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
    yield _version(version)
    if version is None or version == SCHEMA_VERSION:
        wrong = app.read(lambda session: differences(session.connection(), tables_of(app.model)))
        yield from _listed("tables", wrong, "as the model has them")
        if not wrong:
            yield from _waiting(app)


def _version(version: int | None) -> Finding:
    if version is None:
        words = f"none is written down: this library needs {SCHEMA_VERSION}, and `async-task install` makes it"
    elif version < SCHEMA_VERSION:
        words = f"{version} is old: this library needs {SCHEMA_VERSION}, and `async-task upgrade` makes it"
    elif version > SCHEMA_VERSION:
        words = f"{version} is newer than this library, which knows {SCHEMA_VERSION}: upgrade the library"
    else:
        words = str(version)
    return Finding("version", version == SCHEMA_VERSION, words)


def _waiting(app: AsyncTask) -> Iterator[Finding]:
    """Whether this process knows all targets, methods, encryptors and keys that waiting calls name."""
    model = app.model
    calls = _distinct(app, model.target, model.method_name)
    yield from _listed("targets", _unknown(calls, lambda row: target_named(row[0]).method(row[1])))
    yield from _listed("encryptors", _unknown(_distinct(app, model.encryptor), lambda row: encryptor_named(row[0])))
    yield from _listed("keys", _unknown(_distinct(app, model.encryptor, key_head(table_of(model))), _look_for_key))
    yield from _plain_text(app)


def _distinct(app: AsyncTask, *columns: Any) -> Sequence[Any]:
    waiting = select(*columns).where(app.model.status == Status.PENDING).distinct().order_by(*columns)
    return app.read(lambda session: session.execute(waiting).all())


def _unknown(rows: Sequence[Any], look: Callable[[Any], object]) -> list[str]:
    unknown = []
    for row in rows:
        try:
            look(row)
        except AsyncTaskError as error:
            unknown.append(f"calls wait that are parked: {error}")
    return unknown


def _look_for_key(row: Any) -> None:
    try:
        encryptor = encryptor_named(row[0])
    except AsyncTaskError:
        return  # which is told of already
    refuse_missing_key(encryptor, row[1])


def _plain_text(app: AsyncTask) -> Iterator[Finding]:
    """What lies in plain text although the policy of its target names an encryptor; parked, if that takes no other."""
    model = app.model
    waiting = func.sum(case((model.status == Status.PENDING, 1), else_=0))
    calls = select(model.target, model.method_name, func.count(), waiting).where(
        model.encryptor == NullEncryptor.name
    ).group_by(model.target, model.method_name)  # fmt: skip
    found = [row for row in app.read(lambda session: session.execute(calls).all()) if _is_to_be_encrypted(row)]
    if found:
        parked = sum(int(row[3]) for row in found if target_named(row[0]).method(row[1]).policy.only_encrypted)
        words = f"{counted(sum(row[2] for row in found), 'attempt')} in plain text whose target names an encryptor"
        words += f", {parked:,} of them waiting and parked, since it takes encrypted ones only" if parked else ""
        yield Finding("plain text", not parked, f"{words}: `async-task rotate-keys --to-policy`")


def _is_to_be_encrypted(row: Any) -> bool:
    try:
        return target_named(row[0]).method(row[1]).policy.encryptor not in (None, NullEncryptor.name)
    except AsyncTaskError:
        return False  # of a target that is not known here


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
        yield Finding("alembic", False, "no revision makes the tables: `async-task install` writes it")
    elif installed[1] != SCHEMA_VERSION:
        words = f"revision {installed[0]} makes version {installed[1]}, not {SCHEMA_VERSION}: `async-task upgrade`"
        yield Finding("alembic", False, words)
    else:
        yield Finding("alembic", True, f"revision {installed[0]} makes version {installed[1]}")
    try:
        missing = unseen(tree, tables_of(app.model))
    except Unknown as error:
        yield Finding("metadata", tree.has_several_databases, f"{error}; so what autogenerate sees is not known")
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
