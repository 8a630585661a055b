"""The files that `async-task install` writes please a formatter, a linter and mypy: `make check` runs this program.

They are written into an empty project, so that its settings are the tools' own and not those of this tree.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from async_task_cli.scaffold import Wish, plan, write

BASE = "from sqlalchemy.orm import DeclarativeBase\n\n\nclass Base(DeclarativeBase):\n    pass\n"
CACHE = Path(__file__).parents[2] / ".mypy_cache" / "scaffold"
"""What mypy has learnt of SQLAlchemy, from one run to the next."""
WRITTEN = ("shop/attempt.py", "shop/jobs.py", "tests")
RULES = "E,F,W,I,UP,B,SIM,RUF,PL,PT,RET,C4,PTH,ANN"
CHECKS = (
    ("ruff", "check", "--isolated", "--no-cache", "--quiet", "--select", RULES,
     "--ignore", "ANN401,PLR2004,RUF012", *WRITTEN),
    ("ruff", "format", "--isolated", "--no-cache", "--quiet", "--check", *WRITTEN),
    ("mypy", "--strict", "--no-error-summary", "--cache-dir", str(CACHE), "shop", "tests"),
)  # fmt: skip


def main() -> int:
    """The first exit code of a tool that is not 0, or 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.chdir(folder)  # the settings of its pytest decide what the written tests look like
        _write_project(folder)
        codes = (subprocess.run([sys.executable, "-m", *command], check=False).returncode for command in CHECKS)
        return next(filter(None, codes), 0)


def _write_project(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "models.py").write_text(BASE)
    write(plan(Wish(folder, model=Path("shop/attempt.py"), jobs=Path("shop/jobs.py"), schema="outbox")))


if __name__ == "__main__":
    sys.exit(main())
