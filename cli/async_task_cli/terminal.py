"""Output for people: tables and sheets on standard output, messages on standard error, times in plain words."""

import datetime as dt
import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLOURS = {
    "pending": "yellow", "performing": "cyan", "succeeded": "green",
    "failed": "red", "expired": "magenta", "canceled": "bright_black",
    "dead": "red", "silent": "yellow",
}  # fmt: skip

NAMES_OF_UNITS = {86400: "d", 3600: "h", 60: "min", 1: "s"}


class Page(Console):
    """A console that raises BrokenPipeError for a closed pipe, instead of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def page() -> Console:
    """Standard output: as wide as the terminal, 80 columns in a pipe; colours on a terminal, without NO_COLOR."""
    return Page(file=sys.stdout, highlight=False, markup=False, emoji=False)


def is_watched() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def say(words: str) -> None:
    click.echo(words, err=True)


def plain(text: object) -> Text:
    """`text` without what a terminal would take for a command."""
    shown = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in str(text))
    return Text(shown, overflow="fold")


def coloured(word: str) -> Text:
    return Text(word, style=COLOURS.get(word, ""))


def table(columns: Sequence[str], *, numbers: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table without lines. `numbers`: columns aligned to the right; `whole`: columns that are never broken."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in numbers else "left", overflow="fold", no_wrap=column in whole
        )
    return made


def print_sheet(console: Console, rows: Sequence[tuple[str, Text]], *, indent: int = 2) -> None:
    """Names and values beside each other. Long values are broken under themselves; no line ends in spaces."""
    width = max(len(name) for name, _ in rows)
    margin = indent + width + (2 if width else 0)
    for name, value in rows:
        beside = " " * indent + name.ljust(margin - indent)
        for line in value.wrap(console, max(20, console.width - margin), overflow="fold"):
            line.rstrip()
            console.print(Text.assemble((beside, "bold"), line), soft_wrap=True)
            beside = " " * margin


def print_whole(console: Console, text: str, *, indent: int) -> None:
    """Line by line, without a break in a long line."""
    for line in text.splitlines():
        console.print(Text(" " * indent) + plain(line), soft_wrap=True)


def moment(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def since(when: dt.datetime, now: dt.datetime) -> str:
    """`3 min ago`, `in 5 s`, `now`; both instants are of the database's clock."""
    seconds = (now - when).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def briefly(when: dt.datetime, now: dt.datetime) -> str:
    """The same in one unit, for a narrow column: `3 min ago`, `in 2 d`."""
    seconds = (now - when).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{brief_span(seconds)} ago" if seconds > 0 else f"in {brief_span(-seconds)}"


def brief_span(seconds: float) -> str:
    """A length of time in one unit: `2 h`."""
    length = next((unit for unit in NAMES_OF_UNITS if seconds >= unit), 1)
    return f"{int(seconds // length)} {NAMES_OF_UNITS[length]}"


def span(seconds: float) -> str:
    """A length of time in one or two units: `2 h 5 min`."""
    for unit, length, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            rest = int(seconds % length // part)
            return f"{int(seconds // length)} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{int(seconds)} s"


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 attempt`, `2 attempts`, `1,234 attempts`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
