"""Files for a project: written whole or not at all, and never over an existing file."""

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
    """A Python file to write with this text, unless it exists."""

    path: Path
    text: str

    @property
    def is_there(self) -> bool:
        """Whether the path exists, also as a broken link."""
        return os.path.lexists(self.path)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a planned file: "written", or "kept" as it was found."""

    path: Path
    outcome: Literal["written", "kept"]


def write(planned: Sequence[Planned]) -> list[Written]:
    """Write the files that do not exist yet, and make their folders.

    Raises Refusal before anything is written if a text does not compile, and in between if a folder cannot be written.
    Every file that was written is whole.
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
    """Whether we wrote it; False if another install wrote it first."""
    one.path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(one) as draft:
        try:
            _move(draft, one.path)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _beside(one: Planned) -> Iterator[Path]:
    """The text in a temporary file in the same folder, under a name that Python and pytest ignore."""
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
    """Raises FileExistsError if `path` exists."""
    # A link is whole or absent, and replaces nothing: of two installs at once, one wins each file and the other says
    # "kept". A rename would replace the file, and O_EXCL on the file itself would leave half a file after a crash.
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        raise
    except OSError:  # some file systems have no links: the install that makes the empty file may fill it
        path.touch(exist_ok=False)
        draft.replace(path)
