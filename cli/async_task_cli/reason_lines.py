"""Why a job is not performed now, for people and for programs."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from async_task import Reason
from async_task_cli.terminal import moment, plain, print_sheet, since


def reason_as_data(one: Reason) -> dict[str, Any]:
    """For programs."""
    until = None if one.until is None else one.until.isoformat()
    return {"kind": one.kind, "words": one.words, "remedy": one.remedy, "until": until}


def print_reasons(console: Console, reasons: Sequence[Reason], now: dt.datetime) -> None:
    """Each with the instant at which it changes by itself, and the command that helps."""
    for one in reasons:
        console.print()
        print_sheet(console, _lines(one, now))


def _lines(one: Reason, now: dt.datetime) -> list[tuple[str, Text]]:
    until = [] if one.until is None else [("until", plain(f"{moment(one.until)} ({since(one.until, now)})"))]
    remedy = [("do", plain(one.remedy))] if one.remedy else []
    return [("why", plain(one.words)), *until, *remedy]
