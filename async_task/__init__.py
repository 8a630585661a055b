"""async-task: a call that must happen because data changed, happens.

Every public name is imported from here. `__init__.pyi` lists them; each is loaded when it is first asked for, so that
the command line answers `--help` without SQLAlchemy.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from async_task.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_modules())
    if name.startswith("__") or name not in _modules():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_modules()[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_modules()]


@cache
def _modules() -> dict[str, str]:
    """The module of each public name."""
    listed = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    return {one.name: str(line.module) for line in listed if isinstance(line, ast.ImportFrom) for one in line.names}
