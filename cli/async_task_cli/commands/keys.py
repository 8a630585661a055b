"""`async-task keys generate | list`: the keys of encryptors. Only `generate` prints a key."""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.text import Text

from async_task import AesGcmEncryptor, ConfigurationError, FernetEncryptor, Key
from async_task_cli.faults import USAGE
from async_task_cli.options import SETTINGS, Wanted, as_json, debugging, reaching
from async_task_cli.terminal import page, plain, table

if TYPE_CHECKING:
    from async_task import KeyUse

KINDS = (AesGcmEncryptor.kind, FernetEncryptor.kind)


@click.group("keys", context_settings=SETTINGS, invoke_without_command=True)
@click.pass_context
def keys(ctx: click.Context) -> int:
    """Generate a key; list the keys, and how many attempts are under each."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return USAGE
    return 0


@keys.command("generate", short_help="Print a new random key, and nothing else.", context_settings=SETTINGS)
@click.option("--kind", type=click.Choice(KINDS), default="aes-gcm", show_default=True, help="What it is for.")
@click.option("--id", "key_id", metavar="ID", help="Its name in the rows [default: the day and four random digits].")
@debugging
def generate(kind: str, key_id: str | None) -> None:
    """Print a new random key, and nothing else. To write it into a file that only you may read:

    \b
        (umask 077; async-task keys generate >> shop.keys)

    The first key of an encryptor encrypts, and all of them decrypt: put a new one first, and keep the old ones behind
    it until `async-task rotate-keys` finds nothing to do.
    """
    try:
        key = Key.generate(kind, id=key_id)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    click.echo(key.text)


@keys.command("list", short_help="List the keys, and how many attempts are under each.", context_settings=SETTINGS)
@as_json
@reaching
def list_keys(wanted: Wanted, is_json: bool) -> None:
    """List the ids of all keys, and how many attempts are under each; never a key. --json writes one object a line.

    Reads the whole table: with millions of rows it takes seconds.
    """
    from async_task_cli.application import existing

    with existing(wanted) as app:
        uses = app.key_uses()
    if is_json:
        for use in uses:
            click.echo(json.dumps(dataclasses.asdict(use)))
    else:
        _print(uses)


def _print(uses: "Sequence[KeyUse]") -> None:
    numbers = ["PENDING", "TOTAL"]
    made = table(["ENCRYPTOR", "KEY", "STATE", *numbers], numbers=numbers, whole=["STATE", *numbers])
    for use in uses:
        counts = (f"{use.pending:,}", f"{use.total:,}")
        made.add_row(plain(use.encryptor), plain(use.key_id or "-"), _state(use), *map(Text, counts))
    page().print(made)


def _state(use: "KeyUse") -> Text:
    if not use.is_known:
        return Text("missing", style="red")
    return Text("encrypts" if use.is_first else "decrypts" if use.key_id else "-")
