"""What the modules of a project define, found in their text. Importing them might connect, print or exit."""

import ast
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from async_task_cli.faults import Refusal
from async_task_cli.scaffold.modules import module_of

DECLARATIVE = {"DeclarativeBase", "DeclarativeBaseNoMeta"}
MAKES_BASES = {"declarative_base", "generate_base"}
ELSEWHERE = {"node_modules", "site-packages", "__pycache__", "build", "dist", "tests", "test"}
"""Folders that hold no code of the application."""


def subclasses(path: Path, *names: str) -> list[str]:
    """The names of the top-level classes of a module that have one of `names` among their bases."""
    found = (node for node in _statements(_text(path)) if isinstance(node, ast.ClassDef))
    return [node.name for node in found if _bases(node) & set(names)]


def declarative_bases(project: Path) -> list[str]:
    """Every declarative base that the project's own modules define, as `shop.models:Base`. Bases that turn mapped
    classes into dataclasses are left out, because attempts cannot be dataclasses. The caller uses a base only if there
    is exactly one: with several, the model gets a base of its own."""
    found = []
    for path in _modules(project):
        text = _text(path)
        if not any(word.encode() in text for word in DECLARATIVE | MAKES_BASES):  # quicker than parsing all of them
            continue
        names = [name for node in _statements(text) for name in _declarative(node)]
        try:
            found += [f"{module_of(path, project)}:{name}" for name in names]
        except Refusal:  # a script that is never imported
            continue
    return sorted(found)


def makes_application(module: str, project: Path) -> bool:
    """Whether the project's module of that name calls `AsyncTask(...)`. Imports nothing."""
    path = Path(*module.split("."))
    files = (root / path for root in (project, project / "src"))
    found = (one for root in files for one in (root.with_suffix(".py"), root / "__init__.py"))
    nodes = (node for one in found for statement in _statements(_text(one)) for node in ast.walk(statement))
    return any(isinstance(node, ast.Call) and _name(node.func) == "AsyncTask" for node in nodes)


def is_there(module: str, project: Path) -> bool:
    """Whether the module is in the project, or its package is installed. Imports nothing."""
    top, *rest = module.split(".")
    for root in (project, project / "src"):
        if (root / top).is_dir() or (root / f"{top}.py").is_file():
            whole = root.joinpath(top, *rest)
            return whole.is_dir() or whole.with_suffix(".py").is_file()
    return find_spec(top) is not None


def _modules(project: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(project):
        folders[:] = [one for one in folders if _is_searched(Path(folder, one))]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _is_searched(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in ELSEWHERE
    return not hidden and not (folder / "pyvenv.cfg").exists()


def _text(path: Path) -> bytes:
    """Empty if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _statements(text: bytes) -> list[ast.stmt]:
    """The top-level statements of a module; none if it is not Python."""
    try:
        with warnings.catch_warnings(action="ignore"):  # such as those about the project's backslashes
            return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _declarative(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        bases = _bases(node)
        if bases & DECLARATIVE and "MappedAsDataclass" not in bases:
            yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and _makes_base(node.value):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _makes_base(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and _name(value.func) in MAKES_BASES


def _bases(node: ast.ClassDef) -> set[str]:
    return {_name(base) for base in node.bases}


def _name(node: ast.expr) -> str:
    """`DeclarativeBase`, also of `orm.DeclarativeBase`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
