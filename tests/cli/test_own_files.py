"""The files of an application: which are looked for, and which line of them an error names."""

import importlib
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest

from async_task import AsyncTask, ConfigurationError
from async_task_cli import own_files
from async_task_cli.own_files import folders_near, line_in, python_files
from said import Run

Tree = Callable[..., pathlib.Path]


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> Tree:
    """`tree("shop/sub/thing.py", "raise ...")`: a file with this text, and the folders round it."""

    def write(path: str, text: str = "") -> pathlib.Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()
        return file

    return write


@pytest.fixture
def here(alone: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules are found in `tmp_path`, the current folder. Those called own_... are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_python_files_are_found_at_each_depth_and_none_that_is_hidden_or_installed(
    tree: Tree, tmp_path: pathlib.Path
) -> None:
    own = {tree(path) for path in ("shop.py", "shop/sub/deep/thing.py", "data/without/init/module.py")}
    for folder in (".venv", ".git", "node_modules", "__pycache__", "venv/lib/python3/site-packages", "x/dist-packages"):
        tree(f"{folder}/package/module.py")
    tree("shop/.#thing.py")  # Emacs makes one at the first key
    tree("shop/notes.txt")
    (tmp_path / "shop" / "itself").symlink_to(tmp_path)
    (tmp_path / "shop" / "nowhere").symlink_to("nowhere")
    assert python_files([tmp_path, tmp_path / "shop", tmp_path / "missing"]) == own


def test_the_nearest_folders_are_looked_at_first_and_not_more_than_the_maximum(
    tree: Tree, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = {tree("a/a.py"), tree("b/b.py")}
    tree("a/deep/deeper.py")
    monkeypatch.setattr(own_files, "MOST_FOLDERS", 3)
    assert python_files([tmp_path]) == near


def test_files_are_awaited_beside_the_importing_one_and_in_its_packages_wherever_they_are(
    here: None, tree: Tree, tmp_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    package = elsewhere / "own_package"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(tmp_path / 'second')!r})")
    (package / "sub" / "__init__.py").touch()
    (tmp_path / "second").mkdir()
    tree("own_shop.py", f"import sys\nsys.path.append({str(elsewhere)!r})\nfrom own_package.sub import thing")
    with pytest.raises(ImportError) as raised:
        __import__("own_shop")
    sys.path.remove(str(elsewhere))  # what was imported says where to look
    folders = folders_near(raised.value)
    assert {tmp_path, package, package / "sub", tmp_path / "second"} <= folders
    assert elsewhere not in folders
    assert not [folder for folder in folders if "site-packages" in folder.parts or folder.match("lib/python3*")]


@pytest.mark.usefixtures("here")
def test_an_error_in_a_library_names_the_last_line_of_the_project(say: Run, tree: Tree) -> None:
    file = tree("own_engine.py", "from sqlalchemy import create_engine\n\ncreate_engine('nonsense')\n")
    tree("own_shop.py", "import own_engine\n")
    said = say("list", "--app", "own_shop:outbox")
    assert (said.code, said.out) == (78, "")
    assert "importing own_shop raised ArgumentError: " in said.err
    assert said.err.endswith(f" ({file}, line 3)\n")


@pytest.mark.usefixtures("here")
def test_a_missing_module_is_said_with_the_line_that_needs_it(say: Run, tree: Tree) -> None:
    file = tree("own_shop.py", "\nimport own_package_that_is_missing\n")
    said = say("list", "--app", "own_shop:outbox")
    words = "--app: own_shop needs the module 'own_package_that_is_missing', which is not installed"
    assert (said.code, said.err) == (78, f"async-task: {words} ({file}, line 2)\n")


@pytest.mark.usefixtures("here")
def test_a_line_of_the_project_is_named_before_one_of_another_checkout(
    tree: Tree, tmp_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "own_library.py").write_text("def fail():\n    raise KeyError('x')\n")
    monkeypatch.syspath_prepend(str(checkout))
    file = tree("own_shop.py", "import own_library\nown_library.fail()\n")
    with pytest.raises(KeyError) as raised:
        __import__("own_shop")
    assert line_in(raised.value, tmp_path) == f"{file}, line 2"
    assert line_in(raised.value, tmp_path / "another") == f"{checkout / 'own_library.py'}, line 2"


@pytest.mark.usefixtures("here")
def test_a_syntax_error_names_its_own_line_unless_it_is_in_a_library(tree: Tree, tmp_path: pathlib.Path) -> None:
    file = tree("own_module.py", "\n\nprint('here'\n")
    tree("own_shop.py", "import own_module\n")
    with pytest.raises(SyntaxError) as raised:
        __import__("own_shop")
    assert line_in(raised.value, tmp_path) == f"{file}, line 3"
    tree("site-packages/own_installed.py", "print('here'\n")
    file = tree(
        "own_other.py", f"import sys\nsys.path.append({str(tmp_path / 'site-packages')!r})\nimport own_installed"
    )
    with pytest.raises(SyntaxError) as raised:
        __import__("own_other")
    assert line_in(raised.value, tmp_path) == f"{file}, line 3"


def test_an_error_that_no_line_of_an_application_led_to_names_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        AsyncTask("nonsense")
    trace = raised.value.__traceback__
    assert trace is not None
    assert line_in(raised.value, tmp_path).startswith(f"{__file__}, line ")
    assert line_in(raised.value.with_traceback(trace.tb_next), tmp_path) == ""
