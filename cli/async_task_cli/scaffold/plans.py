"""Which files `install` writes beside its revision, and with which text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from async_task_cli.faults import USAGE, Refusal
from async_task_cli.scaffold.files import Planned
from async_task_cli.scaffold.modules import Module, module_at, new_packages
from async_task_cli.scaffold.sources import declarative_bases, is_there, makes_application
from async_task_cli.scaffold.tested import tests_of
from async_task_cli.scaffold.texts import literal, text_of

TABLE = "async_task_attempts"
OWN_BASE = "from sqlalchemy.orm import DeclarativeBase"
NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for. Paths may be relative to the working directory; `project` is the root folder.

    `model`, `jobs`: the modules to write, or None. `table`, `schema`: those of the attempts. `base`: the declarative
    base, as `shop.models:Base`; None to search for it.
    """

    project: Path
    model: Path | None = None
    jobs: Path | None = None
    table: str = TABLE
    schema: str | None = None
    base: str | None = None


def plan(wish: Wish) -> list[Planned]:
    """Every file for this wish, existing files included. Writes and imports nothing.

    Raises Refusal for a path that is not a module of the project, for a base that is not written module:Name, and for
    a pyproject.toml that cannot be read.
    """
    project = wish.project.resolve()
    model, jobs = _module(wish.model, project), _module(wish.jobs, project)
    if model is not None and model == jobs:
        raise Refusal(f"{model.path} cannot hold the model and the jobs: give each a path of its own", USAGE)
    planned = [*_packages(model, project), *_packages(jobs, project)]
    if model is not None:
        planned.append(Planned(model.path, _model_text(wish, project)))
    if jobs is not None:
        planned.append(Planned(jobs.path, text_of("jobs")))
    planned += tests_of(model, jobs, project)
    return list({one.path: one for one in planned}.values())


def _packages(module: Module | None, project: Path) -> list[Planned]:
    return [] if module is None else [Planned(path, "") for path in new_packages(module.path, project)]


def _module(path: Path | None, project: Path) -> Module | None:
    return None if path is None else module_at(path, project)


def _model_text(wish: Wish, project: Path) -> str:
    found = [wish.base] if wish.base else declarative_bases(project)
    table_args = f"    __table_args__ = {{{literal('schema')}: {literal(wish.schema)}}}\n" if wish.schema else ""
    table = {"table": literal(wish.table), "table_args": table_args}
    if len(found) != 1:
        return text_of("model", **table, base="Base", base_class=_own_base(found), base_import=OWN_BASE)
    if not re.fullmatch(f"{NAME}:{NAME}", found[0]):
        raise Refusal(f"--base is written module:Name, like shop.models:Base, not {found[0]!r}", USAGE)
    module, _, base = found[0].partition(":")
    if makes_application(module, project):
        # The application takes this model, so that its module imports this one: they would import each other.
        if wish.base:
            words = f"--base: {module} makes the application, which has to import this model"
            raise Refusal(f"{words}: move {base} to a module of its own", USAGE)
        return text_of(
            "model",
            **table,
            base="Base",
            base_class=text_of("base_of_app", module=module, base=base),
            base_import=OWN_BASE,
        )
    if wish.base and not is_there(module, project):
        raise Refusal(f"--base: there is no module {module} in this project, nor installed", USAGE)
    line = f"\nfrom {module} import {base.partition('.')[0]}"
    return text_of("model", **table, base=base, base_class="", base_import=line)


def _own_base(found: Iterable[str]) -> str:
    several = "".join(f"\n    {one}" for one in found)
    return text_of("several_bases", found=several) if several else text_of("no_base")
