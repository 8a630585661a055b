"""The name under which a file of a project is imported, found without importing anything."""

import keyword
from dataclasses import dataclass
from pathlib import Path

from async_task_cli.faults import USAGE, Refusal


@dataclass(frozen=True, slots=True)
class Module:
    """A module to write, and the name under which it is imported."""

    path: Path
    name: str

    @property
    def last_name(self) -> str:
        return self.name.rpartition(".")[2]


def module_at(path: Path, project: Path) -> Module:
    """The module at `path`. Raises Refusal if it is not a Python file, has no valid name, or is outside `project`."""
    whole = path.resolve()
    if path.suffix != ".py" or whole.is_dir():
        raise Refusal(f"{path} is no Python file: write it like shop/attempt.py", USAGE)
    if project not in whole.parents:
        raise Refusal(f"{path} lies outside of the project, which is {project}", USAGE)
    return Module(whole, module_of(whole, project))


def module_of(path: Path, project: Path) -> str:
    """`shop.attempt` for shop/attempt.py, src/shop/attempt.py, or lib/shop/attempt.py where lib/shop is a package.

    `path` is inside `project`. Raises Refusal if no import can name it.
    """
    parts = [*path.parent.relative_to(root_of(path, project)).parts]
    if path.stem != "__init__":
        parts.append(path.stem)
    wrong = next((one for one in parts if not one.isidentifier() or keyword.iskeyword(one)), None)
    if wrong is not None or not parts:
        raise Refusal(f"{path} cannot be imported: {wrong or path.stem!r} is no name for a module", USAGE)
    if parts[0] == "async_task":
        raise Refusal(f"{path} would be imported in place of this library: choose another name", USAGE)
    return ".".join(parts)


def root_of(path: Path, project: Path) -> Path:
    """The folder from which `path` is imported: the parent of its topmost package, else src, else `project`."""
    packages = [folder for folder in _folders(path, project) if (folder / "__init__.py").exists()]
    if packages:
        return packages[-1].parent
    source = project / "src"
    return source if source in path.parents else project


def new_packages(path: Path, project: Path) -> list[Path]:
    """The missing `__init__.py` files that importing `path` needs, outermost first."""
    root = root_of(path, project)
    made = [folder for folder in _folders(path, project) if root in folder.parents and not folder.exists()]
    return [folder / "__init__.py" for folder in reversed(made)]


def _folders(path: Path, project: Path) -> list[Path]:
    """The folders from the file outwards up to the project, without the project."""
    return [folder for folder in path.parents if project in folder.parents]
