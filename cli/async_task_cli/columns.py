"""Tables of attempts, queues and the like: one row is one line, so that `grep -c` counts rows. In a pipe values are
whole; on a terminal they are cut in the middle where the line would be too long."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from async_task_cli.terminal import plain

GAP = "  "
CUT = "…"


@dataclass(frozen=True, slots=True)
class Column:
    """`shortest`: cells to which a value may be cut on a terminal; None: it is never cut."""

    name: str
    is_number: bool = False
    shortest: int | None = None


def print_table(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text | str]]) -> None:
    """Print the head and the rows. A column without any value is left out, but for the first."""
    for line in table_lines(columns, rows, console.width if console.is_terminal else None):
        console.print(line, soft_wrap=True)


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[Text | str]], width: int | None) -> Iterator[Text]:
    """The same as lines, cut to `width` cells; None: whole."""
    lines = [[_one_line(value) for value in row] for row in rows]
    kept = [at for at, _ in enumerate(columns) if at == 0 or any(line[at].plain for line in lines)]
    shown = [columns[at] for at in kept]
    cells = [[Text(one.name, style="bold") for one in shown], *([line[at] for at in kept] for line in lines)]
    widths = _widths(shown, cells, width)
    for line in cells:
        whole = Text(GAP).join(_padded(shown, line, widths))
        whole.rstrip()
        yield whole


def fitting_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[Text | str]], width: int, *, dropped: Sequence[str] = ()
) -> list[Text]:
    """The lines of a table that is drawn on a terminal of `width` cells; none without rows. `dropped`: the names of
    columns that are left out, in this order, as long as the table does not fit. What still does not fit is cropped."""
    found = _lines_without((), columns, rows, width)
    for number, _ in enumerate(dropped, 1):
        if all(cell_len(line.plain) <= width for line in found):
            break
        found = _lines_without(dropped[:number], columns, rows, width)
    for line in found:
        line.no_wrap, line.overflow = True, "crop"
    return found


def _lines_without(
    names: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[Text | str]], width: int
) -> list[Text]:
    kept = [at for at, one in enumerate(columns) if one.name not in names]
    shown = [columns[at] for at in kept]
    return list(table_lines(shown, [[row[at] for at in kept] for row in rows], width)) if rows else []


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, without its middle if it is longer."""
    if cell_len(text) <= width:
        return text
    end = (width - cell_len(CUT)) // 2
    begin = width - cell_len(CUT) - end
    return f"{set_cell_size(text, begin).rstrip()}{CUT}{_end_of(text, end)}"


def _end_of(text: str, width: int) -> str:
    at = len(text)
    while at and cell_len(text[at - 1 :]) <= width:
        at -= 1
    return text[at:]


def _one_line(value: Text | str) -> Text:
    text = value if isinstance(value, Text) else plain(value)
    if "\n" not in text.plain:
        return text
    return Text(" ".join(text.plain.split()), style=text.style)


def _widths(columns: Sequence[Column], lines: Sequence[Sequence[Text]], width: int | None) -> list[int]:
    """In cells. On a terminal, the columns that may be cut share what the others leave; short ones first."""
    longest = [max(cell_len(line[at].plain) for line in lines) for at, _ in enumerate(columns)]
    if width is None:
        return longest
    flexible = [at for at, one in enumerate(columns) if one.shortest is not None]
    left = (
        width - len(GAP) * (len(columns) - 1) - sum(longest[at] for at, _ in enumerate(columns) if at not in flexible)
    )
    for number, at in enumerate(sorted(flexible, key=longest.__getitem__)):
        share = left // (len(flexible) - number)
        longest[at] = min(longest[at], max(share, columns[at].shortest or 0))
        left -= longest[at]
    return longest


def _padded(columns: Sequence[Column], line: Sequence[Text], widths: Sequence[int]) -> Iterator[Text]:
    for at, (column, value, width) in enumerate(zip(columns, line, widths, strict=True)):
        text = Text(cut(value.plain, width), style=value.style)
        missing = " " * (width - cell_len(text.plain))
        is_last = at == len(columns) - 1
        yield Text(missing) + text if column.is_number else text if is_last else text + Text(missing)
