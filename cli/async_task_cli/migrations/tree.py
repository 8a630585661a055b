"""The Alembic tree of a project: found as Alembic finds it, read without a database, and given one more revision."""

import contextlib
import inspect
import os
import re
import sys
import tempfile
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy
from alembic import op
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError, rev_id
from sqlalchemy import Table

from async_task_cli.faults import CONFIGURATION, USAGE, Refusal, first_line
from async_task_cli.migrations.body import Body
from async_task_cli.migrations.rendering import quoted_all
from async_task_cli.migrations.tools import ALEMBIC, Tool, tool_of

MARKER, TABLES = "async_task_schema", "async_task_tables"
"""The names in a revision of ours that hold the version of the tables after it, and the names of the tables."""
BRANCH = "async_task"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a revision goes: after `head` (None: the only one) or as a `branch` of its own, into which `folder` of
    versions, and for which `engine` of a tree with several databases."""

    head: str | None = None
    branch: bool = False
    folder: Path | None = None
    engine: str | None = None


class Tree:
    """An Alembic tree. Raises Refusal for one that cannot be read."""

    def __init__(self, config: Config) -> None:
        self.config = config
        with _refusing(), _keeping_path():
            self._scripts = ScriptDirectory.from_config(config)
            self._revisions: list[Script] = list(self._scripts.walk_revisions())

    @property
    def scripts(self) -> ScriptDirectory:
        return self._scripts

    @property
    def env(self) -> Path:
        """The file that configures the metadata of this tree."""
        return Path(self._scripts.dir) / "env.py"

    @property
    def tool(self) -> Tool:
        """What carries out its revisions."""
        return tool_of(self.env.read_text(encoding="utf-8")) if self.env.is_file() else ALEMBIC

    @property
    def has_several_databases(self) -> bool:
        """Whether it uses Alembic's template multidb."""
        return bool(self.config.get_alembic_option("databases"))

    def installed(self, attempts: Table) -> tuple[str, int] | None:
        """The newest revision that made or changed this table, and its version after it; None without one."""
        mine = [one for one in self._ours() if attempts.fullname in getattr(one.module, TABLES, ())]
        newest = max(mine, key=lambda one: getattr(one.module, MARKER), default=None)
        return None if newest is None else (newest.revision, getattr(newest.module, MARKER))

    def place_after(self, revision: str, place: Place) -> Place:
        """The same place, behind a head that has this revision below it. Raises Refusal if another one is asked for."""
        if place.branch:
            words = f"--branch begins at the base, where revision {revision} has made no tables yet: leave it out"
            raise Refusal(words, USAGE)
        with _refusing():
            heads = self._scripts.get_heads()
            after = [one for one in heads if self._is_below(revision, one)]
            if place.head is None:
                return replace(place, head=after[0]) if len(after) == 1 < len(heads) else place
            if self._is_below(revision, place.head):
                return place
        words = f"--head: {place.head} does not have revision {revision} below it, which makes the tables"
        raise Refusal(f"{words}; say {' or '.join(after)}", USAGE)

    def _is_below(self, revision: str, head: str) -> bool:
        return any(one.revision == revision for one in self._scripts.iterate_revisions(head, "base"))

    def naming(self, attempts: Table) -> Path | None:
        """A revision that is not ours and names this table, as one of autogenerate that creates it."""
        others = (Path(one.path) for one in self._revisions if not hasattr(one.module, MARKER))
        quoted = re.compile(rf"['\"]{re.escape(attempts.name)}['\"]")
        return next((one for one in others if quoted.search(_source(one))), None)

    def made(self) -> set[str]:
        """The names of all tables of ours that its revisions create."""
        return {name for one in self._ours() for name in getattr(one.module, TABLES, ())}

    def _ours(self) -> list[Script]:
        return [one for one in self._revisions if isinstance(getattr(one.module, MARKER, None), int)]

    def write(self, body: Body, place: Place) -> Path:
        """Write the revision with this tree's own template and naming. A file that cannot be rendered or does not
        compile is never left behind. Raises Refusal."""
        with self._drafted(body, place) as (made, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(made, path)
            except FileExistsError:
                raise Refusal(f"{path} is there already, and stays as it is", CONFIGURATION) from None
        return path

    def text_of(self, body: Body, place: Place) -> str:
        """The text that `write` would write. Raises Refusal."""
        with self._drafted(body, place) as (made, _):
            return made.read_text(encoding=self._scripts.output_encoding)

    @contextlib.contextmanager
    def _drafted(self, body: Body, place: Place) -> Iterator[tuple[Path, Path]]:
        """The finished revision in a temporary folder, and the path where it belongs."""
        # A broken file in versions/ would break every later Alembic command. So the revision is rendered and compiled
        # in a folder of its own, and only then linked to its name.
        place = self._settled(place)
        folder = self._folder(place)
        # The folder is in the tree's file system, so that a link works, and outside the version folders.
        with _refusing(), tempfile.TemporaryDirectory(prefix=".async-task-", dir=self._scripts.dir) as draft:
            made = self._render(body, place, Path(draft))
            yield made, folder / made.relative_to(draft)

    def _settled(self, place: Place) -> Place:
        """The same with its head named. Raises Refusal if there are several heads and none is given."""
        heads = self._scripts.get_heads()
        if place.head is not None or place.branch or len(heads) < 2:
            return place
        if self._ours() and any(BRANCH in one.branch_labels for one in self._revisions):
            return replace(place, head=f"{BRANCH}@head")
        raise Refusal(
            f"this tree has several heads, {', '.join(heads)}: say behind which one with --head REVISION, "
            "or give async-task a branch of its own with --branch",
            USAGE,
        )

    def _folder(self, place: Place) -> Path:
        folders = [Path(one) for one in self._folders()]
        if place.folder is not None:
            found = next((one for one in folders if one.absolute() == place.folder.absolute()), None)
            if found is None:
                known = ", ".join(str(one) for one in folders)
                raise Refusal(f"--version-path: this tree keeps its revisions in {known}, not in {place.folder}", USAGE)
            return found
        if len(folders) == 1:
            return folders[0]
        return self._folder_of_head(place, folders)

    def _folder_of_head(self, place: Place, folders: list[Path]) -> Path:
        head = None if place.branch else self._scripts.get_revision(place.head or "head")
        for folder in folders:
            if head is not None and Path(head.path).absolute().is_relative_to(folder.absolute()):
                return folder
        known = ", ".join(str(one) for one in folders)
        raise Refusal(f"this tree keeps its revisions in {known}: say in which with --version-path PATH", USAGE)

    def _folders(self) -> list[str]:
        return list(self._scripts.version_locations) or [str(Path(self._scripts.dir) / "versions")]

    def _render(self, body: Body, place: Place, draft: Path) -> Path:
        # The draft's folder is one more version location of a copy of this ScriptDirectory. So the tree's own template,
        # naming and hooks are used, and nothing private of Alembic.
        kept = {name: getattr(self._scripts, name) for name in inspect.signature(ScriptDirectory).parameters}
        scripts = ScriptDirectory(
            **kept | {"version_locations": [*self._folders(), str(draft)], "messaging_opts": {"quiet": True}}
        )
        try:
            script = scripts.generate_revision(
                rev_id(), body.message, version_path=draft, head="base" if place.branch else place.head or "head",
                splice=place.branch, branch_labels=BRANCH if place.branch else None,
                imports=f"{body.imports}\n\n{MARKER} = {body.version}\n{TABLES} = {quoted_all(body.tables)}",
                config=self.config,
                **_templated(body, place.engine),
            )  # fmt: skip
        except CommandError:
            raise
        except SyntaxError as error:
            words = f"{self._template} does not render to Python: {error.msg}: {(error.text or '').strip()}"
            raise Refusal(words, CONFIGURATION) from error
        except Exception as error:
            raise Refusal(f"{self._template} cannot be rendered: {first_line(str(error))}", CONFIGURATION) from error
        assert script is not None
        self._check(script, place)
        return Path(script.path)

    def _check(self, script: Script, place: Place) -> None:
        module = script.module
        if getattr(module, "op", None) is not op or getattr(module, "sa", None) is not sqlalchemy:
            needed = "`from alembic import op` and `import sqlalchemy as sa`"
            raise Refusal(f"{self._template} lacks the usual {needed}: add them", CONFIGURATION)
        text = Path(script.path).read_text(encoding=self._scripts.output_encoding)
        if "op.get_context()" in text and hasattr(module, MARKER):
            return
        several = "; of a tree with several databases say which with --engine NAME" if place.engine is None else ""
        needed = "${imports}, ${upgrades} and ${downgrades}"
        raise Refusal(
            f"{self._template} has no place for what a revision does: it needs {needed}{several}", CONFIGURATION
        )

    @property
    def _template(self) -> Path:
        return Path(self._scripts.dir) / "script.py.mako"


def find_tree(file: Path | None) -> Tree | None:
    """The tree of Alembic's configuration `file`. Without it, the tree that Alembic would find from this folder: by
    ALEMBIC_CONFIG, alembic.ini or pyproject.toml; else that of Flask-Migrate, in the folder migrations. None if there
    is none. Raises Refusal."""
    given = file or (Path(os.environ["ALEMBIC_CONFIG"]) if "ALEMBIC_CONFIG" in os.environ else None)
    if given is not None and not given.is_file():
        raise Refusal(f"there is no Alembic configuration {given}", USAGE if file else CONFIGURATION)
    is_toml = given is not None and given.name == "pyproject.toml"
    toml = given if is_toml and given else Path("pyproject.toml")
    ini = Path("alembic.ini") if given is None or is_toml else given
    with _refusing():
        config = Config(str(ini), toml_file=str(toml) if toml.is_file() else None, output_buffer=sys.stderr)
        if config.get_alembic_option("script_location") is not None:
            return Tree(config)
    return _tree_of_flask(given or Path("migrations", "alembic.ini"))


def _tree_of_flask(file: Path) -> Tree | None:
    """The tree in the folder of this configuration, which does not name it, as `flask db init` makes it; else None."""
    if file.suffix != ".ini" or not file.is_file() or not (file.parent / "env.py").is_file():
        return None
    with _refusing():
        config = Config(str(file), output_buffer=sys.stderr)
        if config.get_alembic_option("script_location") is None:
            config.set_main_option("script_location", str(file.parent).replace("%", "%%"))
        return Tree(config)


def _templated(body: Body, engine: str | None) -> dict[str, str]:
    """The template's words for the two bodies; in a tree with several databases, those of one engine."""
    prefix = f"{engine}_" if engine else ""
    return {
        f"{prefix}upgrades": textwrap.indent(body.upgrade, "    ").strip(),
        f"{prefix}downgrades": textwrap.indent(body.downgrade, "    ").strip(),
    }


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn errors of Alembic and of the tree's files into one sentence."""
    try:
        # Alembic prints its progress on standard output, which is for data.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Refusal:
        raise
    except CommandError as error:
        raise Refusal(f"Alembic: {first_line(str(error))}", CONFIGURATION) from error
    except SyntaxError as error:
        words = f"{error.filename}, line {error.lineno}, is no Python: {error.msg}"
        raise Refusal(words, CONFIGURATION) from error
    except OSError:
        raise
    except Exception as error:
        words = f"the Alembic tree cannot be read: {type(error).__name__}: {first_line(str(error))}"
        raise Refusal(words, CONFIGURATION) from error


@contextlib.contextmanager
def _keeping_path() -> Iterator[None]:
    """Keep the order of sys.path: Alembic puts prepend_sys_path in front, each time that it reads the configuration."""
    before = list(sys.path)
    yield
    added = [one for one in sys.path if one not in before]
    sys.path[:] = added + before


def _source(path: Path) -> str:
    """The text of a Python file, in the encoding that it declares; empty if it cannot be read in that."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return ""
