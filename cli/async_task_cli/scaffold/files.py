"""Files for somebody's project: whole or not at all, and never over one that is there."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from async_task_cli.faults import UNEXPECTED, Refusal


@dataclass(frozen=True, slots=True)
class Planned:
    """A Python file that shall be there, with this text unless it is there already."""

    path: Path
    text: str

    @property
    def is_there(self) -> bool:
        """Whether something of that name is there now, be it a link that leads nowhere."""
        return os.path.lexists(self.path)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a planned file: "written", or "kept" as it was found."""

    path: Path
    outcome: Literal["written", "kept"]


def write(planned: Sequence[Planned]) -> list[Written]:
    """Write what is not there yet, and make the folders for it.

    Raises Refusal: before anything is written if a text does not compile; in the middle if a folder cannot be written.
    Each file that is there then is whole.
    """
    for one in planned:
        _compile(one)
    return [_place(one) for one in planned]


def _compile(one: Planned) -> None:
    try:
        compile(one.text, str(one.path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        words = f"{one.path} would not compile ({error}), so nothing was written: please report this"
        raise Refusal(words, UNEXPECTED) from error


def _place(one: Planned) -> Written:
    try:
        return Written(one.path, "written" if not one.is_there and _made(one) else "kept")
    except OSError as error:
        raise Refusal(f"{one.path} cannot be written: {error.strerror}", UNEXPECTED) from error


def _made(one: Planned) -> bool:
    """False if another install was quicker."""
    one.path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(one) as draft:
        try:
            _move(draft, one.path)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _beside(one: Planned) -> Iterator[Path]:
    """The text in a file of its own in the same folder, under a name that nobody imports or collects."""
    draft = one.path.with_name(f".{one.path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("x", encoding="utf-8", newline="\n") as file:
            file.write(one.text)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _move(draft: Path, path: Path) -> None:
    """Raises FileExistsError if `path` is there: unlike a rename, a link replaces nothing."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        raise
    except OSError:  # some file systems have no links: whoever makes the empty file may fill it
        path.touch(exist_ok=False)
        draft.replace(path)
