"""Whether a project has pytest, and where its tests are."""

import configparser
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from async_task_cli.faults import CONFIGURATION, Refusal, first_line

INI_FILES = {"pytest.ini": "pytest", ".pytest.ini": "pytest", "tox.ini": "pytest", "setup.cfg": "tool:pytest"}
MENTION = re.compile(r"\s*pytest\b")


@dataclass(frozen=True, slots=True)
class PytestSettings:
    """`tests`: the folder of the tests. `by_importlib`: whether tests are imported so that none can import another."""

    tests: Path
    by_importlib: bool = False


def pytest_settings(project: Path) -> PytestSettings | None:
    """None for a project without pytest. Raises Refusal for a pyproject.toml that cannot be read."""
    pyproject = _pyproject(project)
    own = _settings(project, pyproject)
    if own is None and not _mentions(pyproject) and not _has_traces(project):
        return None
    words = own or {}
    return PytestSettings(_folder(project, words), "importlib" in _words(words.get("addopts", "")))


def _pyproject(project: Path) -> dict[str, Any]:
    file = project / "pyproject.toml"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{file} cannot be read: {first_line(str(error))}", CONFIGURATION) from error


def _settings(project: Path, pyproject: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings that pytest itself would read, in its order; None if nothing is set."""
    tools = pyproject.get("tool", {}).get("pytest")
    found = [_ini(project / name, section) for name, section in INI_FILES.items()]
    found[2:2] = [None if tools is None else tools.get("ini_options", tools)]
    return next((one for one in found if one is not None), None)


def _ini(file: Path, section: str) -> Mapping[str, Any] | None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(file, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return None
    if parser.has_section(section):
        return dict(parser[section])
    return {} if file.name in ("pytest.ini", ".pytest.ini") and file.exists() else None


def _folder(project: Path, settings: Mapping[str, Any]) -> Path:
    """The first of its testpaths inside the project, existing or not; else tests, or test if only that exists."""
    named = [(project / word).resolve() for word in _words(settings.get("testpaths", "")) if "*" not in word]
    for folder in named:
        if project in folder.parents and not folder.is_file():
            return folder
    usual = [project / "tests", project / "test"]
    return next((folder for folder in usual if folder.is_dir()), usual[0])


def _words(setting: Any) -> list[str]:
    """pytest accepts lists, and strings of several words."""
    words = setting.split() if isinstance(setting, str) else setting
    return [part for word in words for part in str(word).split("=")]


def _mentions(value: Any) -> bool:
    """Whether pytest or one of its plugins is a key or a string anywhere in it, for example as a dependency."""
    return any(MENTION.match(text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _has_traces(project: Path) -> bool:
    if any((project / folder / "conftest.py").exists() for folder in (".", "tests", "test")):
        return True
    lines = (
        line for file in project.glob("*requirements*.txt") for line in file.read_text(errors="replace").split("\n")
    )
    return any(MENTION.match(line) for line in lines)
