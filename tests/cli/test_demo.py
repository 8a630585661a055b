"""`async-task demo`: it runs on every database, what it prints is true, and the commands that it prints work."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import urllib.request
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import Engine, make_url

from async_task import Attempt
from clockwork import row_of
from databases import Database
from elsewhere import Program
from outbox import Client

pytestmark = pytest.mark.long

Play = Callable[..., "subprocess.CompletedProcess[str]"]
CHANGED = """
import sys
from async_task_cli.commands import demo
from async_task_cli.demo import warehouse
from async_task_cli.main import main
demo.SCENES = [demo.SCENES[number - 1] for number in {scenes}]
{lie}
sys.exit(main())
"""


@pytest.fixture
def play(tmp_path: pathlib.Path) -> Play:
    """`play("demo")` in a process of its own, with its folder in this test's. `scenes`: only these, numbered as they
    are printed; `lie`: a statement that changes the demo before it runs."""

    def play(*words: str, scenes: Sequence[int] = (), lie: str = "pass") -> "subprocess.CompletedProcess[str]":
        # The user's own settings must not send the demo to another database.
        theirs = {"ASYNC_TASK_APP": "nowhere:app", "ASYNC_TASK_DATABASE_URL": "sqlite:////nowhere.sqlite"}
        environment = {**os.environ, **theirs, "TMPDIR": str(tmp_path), "COLUMNS": "80"}
        program = "async_task_cli"
        if scenes:
            program = "changed"
            (tmp_path / "changed.py").write_text(CHANGED.format(scenes=scenes, lie=lie))
        with contextlib.closing(Program(program, *words, cwd=tmp_path, env=environment)) as begun:
            return begun.completed(100)

    return play


def check_output(out: str) -> None:
    """The figures of every scene, the table, and one line about all."""
    for part in (
        r"Rows left: 0\. Requests that the warehouse got about it: 0\.",
        r"3 orders committed\. Requests so far: 0; after a batch of \d\.\d\d s: 3\.",
        r"the warehouse answered 503, 503, 201, within",
        r"Its row: 3 starts, 2 errors, succeeded\.",
        r"Its row: 0 starts, expired\. Requests for a courier: 0\.",
        r"kill -9 \d+\. Its row: 1 start, pending, held by the dead process\.",
        r"gave it back after \d\.\d s, a batch made it: 2 starts, succeeded\.",
        r"got 2 requests with 1 Idempotency-Key, and packed 1 parcel\.",
        r"encryptor    aes-gcm, key \d{8}-[0-9a-f]{4}\n",
        r"method_args  \.\.\.[A-Za-z0-9+/]{40}\.\.\. \(\d{3} characters\)\n",
        r"The account is not in it\. The target got it: order \d{4} is refunded to 3000\.\n",
        r"create shop\.orders\.fulfill   trace [0-9a-f]{32}\n"
        r"   process shop\.orders\.fulfill  trace [0-9a-f]{32}\n"
        r"   Try 3 succeeded\. Its span is linked to the first one, [0-9a-f]{16}\.\n",
        r"both got the same attempt\. Rows: 1\. Requests: 1\.",
        r"pending +1 +0 +0\n",
        r"succeeded +12 +15 +2\n",
        r"expired +1 +0 +0\n",
    ):
        assert re.search(part, out), part
    assert re.fullmatch(
        r"Done in \d+\.\d s: 6 orders, 14 calls: 12 made, 1 expired, 1 left for you; 0 lost\.", out.splitlines()[-3]
    )


def check_that_its_processes_have_ended(out: str) -> None:
    """Neither the warehouse nor a worker."""
    pids = [int(found) for found in re.findall(r"(?:process|kill -9) (\d+)", out)]
    assert len(pids) == 3
    for pid in set(pids):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def next_commands(out: str) -> list[str]:
    lines = out.partition("Try:\n")[2].partition("\n\n")[0].splitlines()
    return [line.strip() for line in lines]


def check_next_commands(out: str) -> None:
    """Typed into a shell as they are printed, they work."""
    lines = next_commands(out)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNC_TASK", "SHOP"))}
    script = "\n".join(["set -e", *lines])
    ended = subprocess.run(
        ["sh"], input=script, capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert ended.returncode == 0
    assert re.fullmatch(r"\d+ attempts: .*\.\n", ended.stderr)  # what list counts
    assert "error of try 2" in ended.stdout
    *_, expired, report = ended.stdout.splitlines()
    assert json.loads(expired)["status"] == "expired"
    assert json.loads(report)["succeeded"] >= 1


def check_dashboard(out: str) -> None:
    """The last line, typed into a shell, serves the dashboard of the demo's own attempts."""
    *_, told, line = out.splitlines()
    assert told == "See it in a browser:"
    enter, _, command = line.rpartition(" && ")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNC_TASK", "SHOP"))}
    words = ["sh", "-c", f"{enter} && exec {command} --port 0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as serving:
        try:
            assert serving.stderr is not None
            url = serving.stderr.readline().removeprefix("Listening on ").partition(" ")[0]
            with contextlib.closing(urllib.request.urlopen(f"{url}/jobs?show=all", timeout=30)) as page:  # noqa: S310
                assert "shop.orders.fulfill" in page.read().decode()
        finally:
            serving.terminate()
    assert serving.returncode == 143


def test_on_a_file_of_its_own_it_leaves_no_process_and_what_it_prints_can_be_typed(
    play: Play, tmp_path: pathlib.Path
) -> None:
    ended = play("demo")
    assert (ended.returncode, ended.stderr) == (0, "")
    check_that_its_processes_have_ended(ended.stdout)
    check_output(ended.stdout)
    told = ended.stdout.partition("Everything is still there")[0].splitlines()[2:]
    assert max(map(len, told)) <= 80
    check_next_commands(ended.stdout)
    check_dashboard(ended.stdout)
    (folder,) = tmp_path.iterdir()
    assert sorted(one.name for one in folder.iterdir() if one.suffix not in (".sqlite-wal", ".sqlite-shm")) == [
        "pyproject.toml",
        "shop",
        "shop.keys",
        "shop.sqlite",
    ]


@pytest.mark.only_on("postgresql", "mysql")  # the demo without a URL runs on SQLite
def test_on_a_database_of_yours_it_leaves_other_rows_alone_and_may_be_repeated(
    play: Play, database: Database, engine: Engine, write: Callable[..., Attempt]
) -> None:
    attempt = write(Client, "ping")
    before = tuple(row_of(engine, attempt.id))
    ended = play("demo", "--database-url", database.sync_url)
    assert (ended.returncode, ended.stderr) == (0, "")
    check_output(ended.stdout)
    if database.name == "postgresql":  # what is typed is the same on each
        check_next_commands(ended.stdout)
        check_dashboard(ended.stdout)
        again = play("demo", "--database-url", database.sync_url, scenes=[1, 2, 3, 6])
        assert (again.returncode, again.stderr) == (0, "")
    assert tuple(row_of(engine, attempt.id)) == before
    password = make_url(database.sync_url).password
    assert password is None or password not in ended.stdout


def test_a_file_of_yours_is_named_by_its_whole_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from async_task_cli.demo.stage import entering, usable

    monkeypatch.chdir(tmp_path)
    url = usable("sqlite:///mine.sqlite")
    assert url == f"sqlite:///{tmp_path / 'mine.sqlite'}"
    assert entering(tmp_path, url) == [f"cd {tmp_path}", f"export SHOP_DATABASE_URL={url}"]


def test_a_password_is_kept_in_a_file_for_its_user_alone(tmp_path: pathlib.Path) -> None:
    from async_task_cli.demo.stage import entering

    lines = entering(tmp_path, "postgresql+psycopg://me:s3cret@host/shop")
    assert not any("s3cret" in line for line in lines)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    script = "\n".join([*lines, 'printf %s "$SHOP_DATABASE_URL"'])
    ended = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
    assert ended.stdout == "postgresql+psycopg://me:s3cret@host/shop"


@pytest.mark.parametrize(
    ("scene", "lie", "claim"),
    [
        (
            1,
            "warehouse.Warehouse.received = lambda self, number: [{'answer': 201}]",
            "a call that was rolled back is never made",
        ),
        (2, "warehouse.Warehouse.parcels = lambda self: [1001]", "order 1002 was packed once"),
        (
            3,
            "import async_task.integrations.opentelemetry as otel; otel._links = lambda context: ()",
            "the span of a try is linked to that of its call",
        ),
        (3, "warehouse.Warehouse.will = lambda self, number, **behaviour: None", "it fails twice and then succeeds"),
        (
            7,
            "import async_task; async_task.AesGcmEncryptor._encrypt = lambda self, secret, plain, bound: plain",
            "the account is nowhere in the row",
        ),
    ],
)
def test_a_false_claim_ends_the_demo_with_1(play: Play, scene: int, lie: str, claim: str) -> None:
    ended = play("demo", scenes=sorted({2, scene} if scene == 7 else {scene}), lie=lie)
    assert ended.returncode == 1
    assert f"the demo was about to say that {claim}, and that is not so" in ended.stderr
    assert "Done in" not in ended.stdout
