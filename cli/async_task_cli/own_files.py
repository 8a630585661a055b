"""The files of an application: neither installed nor of the standard library."""

import os
import sys
import sysconfig
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import async_task
from async_task_cli.faults import chain_of

MOST_FOLDERS = 1_000
"""Of which the Python files are looked for, so that a look into a home folder ends."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_WITHOUT_SOURCES = _INSTALLED | {"__pycache__", "node_modules"}
_STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
_OURS = tuple(Path(one).parent for one in (__file__, async_task.__file__))


def is_own(file: Path) -> bool:
    """Whether it is neither installed nor of the standard library."""
    return _INSTALLED.isdisjoint(file.parts) and not any(file.is_relative_to(one) for one in _STANDARD)


def python_files(folders: Iterable[Path]) -> frozenset[Path]:
    """Those in `folders` and below, of the nearest `MOST_FOLDERS`. None that is hidden or installed."""
    return frozenset(_python_files(deque(folders)))


def folders_near(error: BaseException) -> set[Path]:
    """Where a file may be missing or wrong, if an import has raised `error`: beside the files that it names, and where
    modules are looked for."""
    searched = [Path(one or ".") for one in sys.path]
    for one in chain_of(error):
        searched += [file.parent for file in _files_in(one)]
        if isinstance(one, ImportError) and one.name:
            searched += _folders_of_packages(one.name)
    return {folder.absolute() for folder in searched if folder.is_dir() and is_own(folder)}


def line_in(error: BaseException, folder: Path) -> str:
    """`/shop/outbox.py, line 7`: the last line of the application that led to `error`, in `folder` if one of it did.
    Empty if none did."""
    if isinstance(error, SyntaxError) and error.filename and _is_of_application(error.filename):
        return f"{error.filename}, line {error.lineno}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if _is_of_application(one.filename)]
    inside = [one for one in frames if Path(one.filename).is_relative_to(folder)]
    return next((f"{one.filename}, line {one.lineno}" for one in reversed(inside or frames)), "")


def _python_files(waiting: deque[Path]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    while waiting and len(seen) < MOST_FOLDERS:
        folder = waiting.popleft()
        with suppress(OSError):  # it is gone, or may not be read
            found = folder.stat()
            if (found.st_dev, found.st_ino) in seen:  # a symbolic link may lead to a folder above
                continue
            seen.add((found.st_dev, found.st_ino))
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name in _WITHOUT_SOURCES:
                    continue
                if entry.name.endswith(".py"):
                    yield Path(entry.path)
                elif _is_folder(entry):
                    waiting.append(Path(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a symbolic link that leads to itself
        return entry.is_dir()
    return False


def _files_in(error: BaseException) -> Iterator[Path]:
    names = [error.filename] if isinstance(error, SyntaxError) and error.filename else []
    names += [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return (Path(name) for name in names if _is_of_application(name))


def _is_of_application(name: str) -> bool:
    """Not of ours, which are not installed where a project takes them from a checkout; nor `<frozen importlib>`."""
    file = Path(name)
    return is_own(file) and not any(file.is_relative_to(one) for one in _OURS) and file.is_file()


def _folders_of_packages(module: str) -> Iterator[Path]:
    """Those of the packages round a module which were imported, and of itself, if it is a package."""
    names = module.split(".")
    for length in range(1, len(names) + 1):
        paths = getattr(sys.modules.get(".".join(names[:length])), "__path__", ())
        yield from (Path(path) for path in paths)
