"""Which test modules `install` writes if the project has pytest, and the factory of their attempts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from async_task_cli.scaffold.files import Planned
from async_task_cli.scaffold.modules import Module, module_of
from async_task_cli.scaffold.pytest_settings import PytestSettings, pytest_settings
from async_task_cli.scaffold.sources import subclasses
from async_task_cli.scaffold.texts import text_of

FACTORY = "attempt_factory"


@dataclass(frozen=True, slots=True)
class Imported:
    """A class that a test module imports."""

    module: str
    name: str


def tests_of(model: Module | None, jobs: Module | None, project: Path) -> list[Planned]:
    """The tests of the model and the jobs, and their factory; none without pytest.

    A module that existed before is tested under its own class names, or not at all if it has no such class.
    """
    # The factory takes the model as an argument, so that its text is the same for every project. It makes its rows with
    # the model's own actions, because the CHECK constraints refuse a row that is inserted in a terminal state.
    wanted = model or jobs
    settings = pytest_settings(project) if wanted else None
    if wanted is None or settings is None:
        return []
    factory = _factory(settings, wanted, project)
    imported = Imported(factory.name, "AttemptFactory")
    own = _class_in(model, "BaseAttempt", "Attempt")
    tests = [
        *_tests_of_model(settings.tests, model, own, imported),
        *_tests_of_jobs(settings.tests, jobs, own, imported, avoid=model),
    ]
    return [Planned(factory.path, text_of("factory")), *tests] if tests else []


def _tests_of_model(folder: Path, model: Module | None, own: Imported | None, factory: Imported) -> Iterator[Planned]:
    if model is not None and own is not None:
        text = text_of("test_model", imports=_lines(factory, own), model=own.name)
        yield Planned(folder / f"test_{model.last_name}.py", text)


def _tests_of_jobs(
    folder: Path, jobs: Module | None, own: Imported | None, factory: Imported, *, avoid: Module | None
) -> Iterator[Planned]:
    one = _class_in(jobs, "BaseAttemptJob", "AttemptJob")
    batch = _class_in(jobs, "BaseAttemptBatchJob", "AttemptBatchJob")
    if jobs is None or one is None or batch is None:
        return
    names = ["NotDue", "NotPending", "Retry", "Status", "Succeeded", *([] if own else ["Attempt"])]
    text = text_of(
        "test_jobs",
        library_names=", ".join(sorted(names)),
        imports=_lines(factory, one, batch, *([own] if own else [])),
        model=own.name if own else "Attempt",
        attempt_job=one.name,
        batch_job=batch.name,
    )
    is_taken = avoid is not None and avoid.last_name == jobs.last_name
    yield Planned(folder / f"test_{jobs.last_name}{'_jobs' if is_taken else ''}.py", text)


def _factory(settings: PytestSettings, wanted: Module, project: Path) -> Module:
    """Beside the tests, or beside the code if tests cannot import each other, as pytest advises."""
    if settings.by_importlib:
        path = wanted.path.with_name(f"{FACTORY}.py")
        return Module(path, module_of(path, project))
    path = settings.tests / f"{FACTORY}.py"
    is_package = (settings.tests / "__init__.py").exists()
    return Module(path, module_of(path, project) if is_package else FACTORY)


def _class_in(module: Module | None, mixin: str, otherwise: str) -> Imported | None:
    """The subclass of `mixin` that we write, or that an existing file has."""
    if module is None:
        return None
    found = subclasses(module.path, mixin) if module.path.exists() else [otherwise]
    name = otherwise if otherwise in found else next(iter(found), None)
    return None if name is None else Imported(module.name, name)


def _lines(*imported: Imported) -> str:
    """One import line a module, in order. Those that linters take for the project's own follow a blank line."""
    names: dict[str, list[str]] = {}
    for one in imported:
        names.setdefault(one.module, []).append(one.name)
    lines = {module: f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)}
    beside = lines.pop(FACTORY, None)
    return "\n".join([*([beside] if beside else []), *(["", *lines.values()] if lines else [])])
