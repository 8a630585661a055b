"""`async-task metrics`: the gauges of `/metrics`, for Prometheus without a port."""

import contextlib
import datetime as dt
import os
import uuid
from pathlib import Path

import click

from async_task import prometheus_text
from async_task_cli.application import existing
from async_task_cli.faults import UNEXPECTED, Refusal
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, Wanted, reaching

READABLE = 0o644


@click.command("metrics", context_settings=SETTINGS)
@click.option(
    "--textfile", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
    help="Write them to this file instead, which is replaced as a whole.",
)  # fmt: skip
@click.option(
    "--timeout", type=Length(least="1ms", most="1d"), default="5s", show_default=True, metavar="TIME",
    help="Time that each statement may take.",
)  # fmt: skip
@reaching
def metrics(wanted: Wanted, textfile: Path | None, timeout: dt.timedelta) -> None:
    """Print the gauges that `/metrics` of the dashboard has, in the text format of Prometheus.

    With --textfile they are for the textfile collector of node_exporter, which reads files that end with .prom: a
    program that reads PATH finds the old figures or the new ones, and everybody may read them (mode 0644). If the
    database cannot be used, PATH stays as it was, and the exit code is 69: alarm on its age, which node_exporter tells.
    """
    if textfile is not None:
        _check(textfile)
    with existing(wanted) as app, app.reading(within=timeout):
        text = prometheus_text(app.gauges())
    if textfile is None:
        click.echo(text, nl=False)
        return
    try:
        _replace(textfile.resolve(), text)
    except OSError as error:
        raise Refusal(f"{textfile} cannot be written: {error.strerror}", UNEXPECTED) from error


def _check(textfile: Path) -> None:
    if textfile == Path():
        raise click.BadParameter(
            "the path is empty: name a file, like async_task.prom, or omit --textfile to print the figures.",
            param_hint="--textfile",
        )
    if textfile.exists() and not textfile.is_file():
        raise click.BadParameter(
            f"{textfile} is no regular file, and would be replaced by one: without --textfile the figures are printed.",
            param_hint="--textfile",
        )


def _replace(file: Path, text: str) -> None:
    """Through a file beside it, whose name no collector reads. `file`: without symbolic links, which stay."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("x", encoding="utf-8") as opened:
            os.fchmod(opened.fileno(), READABLE)  # whatever the umask says
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
