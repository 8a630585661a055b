"""A recipe: a small application in examples/recipes, its requirements, and the environment in which it is tested."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from functools import cached_property

TREE = pathlib.Path(__file__).parents[2]
ENVIRONMENTS = TREE / ".venv" / "recipes"
DATABASE_URL = "SHOP_DATABASE_URL"


@dataclass(frozen=True)
class Recipe:
    """The application in `folder`. Its pyproject.toml lists what it needs, and what its tests need beside that."""

    folder: pathlib.Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def python(self) -> pathlib.Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    @cached_property
    def requirements(self) -> list[str]:
        """The arguments of `pip install`. This library is installed in editable form."""
        told = tomllib.loads((self.folder / "pyproject.toml").read_text())
        wanted = [*told["project"]["dependencies"], *told["project"]["optional-dependencies"]["test"]]
        return [word for one in wanted for word in _arguments(one)]

    def set_up(self) -> str:
        """Make the environment, unless there is one with these requirements. Return why that failed, or nothing."""
        stamp = self.python.parent.parent / "recipe.txt"
        wanted = self._fingerprint()
        if stamp.is_file() and stamp.read_text() == wanted:
            return ""
        shutil.rmtree(self.python.parent.parent, ignore_errors=True)
        for command in self._commands():
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                return f"its environment cannot be made: {ended.stdout}{ended.stderr}"
        stamp.write_text(wanted)
        return ""

    def _fingerprint(self) -> str:
        ours = (TREE / "pyproject.toml").read_bytes()
        return hashlib.sha256(repr((self.requirements, sys.version, ours)).encode()).hexdigest()

    def _commands(self) -> list[list[str]]:
        folder, python = str(self.python.parent.parent), str(self.python)
        if uv := os.environ.get("UV") or shutil.which("uv"):
            return [
                [uv, "venv", "--quiet", "--python", sys.executable, folder],
                [uv, "pip", "install", "--quiet", "--python", python, *self.requirements],
            ]
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *self.requirements]
        return [[sys.executable, "-m", "venv", "--without-pip", folder], install]

    def test(self, url: str | None) -> tuple[bool, str]:
        """Whether its tests pass on this database, and what pytest prints. None: on an SQLite file."""
        theirs = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNC_TASK", "SHOP"))}
        with tempfile.TemporaryDirectory(prefix=f"async-task-{self.name}-") as scratch:
            driver = "sqlite+aiosqlite" if any(one.startswith("aiosqlite") for one in self.requirements) else "sqlite"
            variables = {DATABASE_URL: url or f"{driver}:///{scratch}/shop.sqlite", "PYTHONDONTWRITEBYTECODE": ""}
            path = f"{self.python.parent}:{theirs.get('PATH', '')}"
            ended = subprocess.run(
                [str(self.python), "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=self.folder,
                env=theirs | variables | {"PATH": path}, capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
        return ended.returncode == 0, ended.stdout + ended.stderr


def _arguments(requirement: str) -> list[str]:
    ours = re.fullmatch(r"async-task(\[[\w,-]+\])?", requirement)
    return ["--editable", f"{TREE}{ours[1] or ''}"] if ours else [requirement]


RECIPES = {
    file.parent.name: Recipe(file.parent) for file in sorted((TREE / "examples" / "recipes").glob("*/pyproject.toml"))
}
