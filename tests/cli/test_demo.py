"""`async-task demo`: it plays on every database, what it says is so, and the commands that it leaves behind work."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, make_url

from async_task import Attempt
from clockwork import row_of
from databases import Database
from elsewhere import Program
from outbox import Client

Play = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def play(tmp_path: pathlib.Path) -> Play:
    """`play("demo")` in a process of its own; its folder lies in this test's."""

    def play(*words: str, lie: str | None = None) -> "subprocess.CompletedProcess[str]":
        # What leads its user elsewhere must not lead the demo there.
        theirs = {"ASYNC_TASK_APP": "nowhere:app", "ASYNC_TASK_DATABASE_URL": "sqlite:////nowhere.sqlite"}
        environment = {**os.environ, **theirs, "TMPDIR": str(tmp_path), "COLUMNS": "80"}
        if lie is not None:
            imports = "import sys; from async_task_cli.demo import warehouse; from async_task_cli.main import main"
            (tmp_path / "lying.py").write_text(f"{imports}; {lie}; sys.exit(main())")
        program = "async_task_cli" if lie is None else "lying"
        with contextlib.closing(Program(program, *words, cwd=tmp_path, env=environment)) as begun:
            return begun.completed(100)

    return play


def check_what_it_said(out: str) -> None:
    """The figures of every scene, the table, and one last line."""
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
        r"both got the same attempt\. Rows: 1\. Requests: 1\.",
        r"pending +1 +0 +0\n",
        r"succeeded +12 +15 +2\n",
        r"expired +1 +0 +0\n",
    ):
        assert re.search(part, out), part
    assert re.fullmatch(
        r"Done in \d+\.\d s: 6 orders, 14 calls: 12 made, 1 expired, 1 left for you; 0 lost\.", out.splitlines()[-1]
    )


def check_that_nobody_outlives_it(out: str) -> None:
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
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "error of try 2" in ended.stdout
    *_, expired, report = ended.stdout.splitlines()
    assert json.loads(expired)["status"] == "expired"
    assert json.loads(report)["succeeded"] >= 1


def test_on_its_own_file_the_demo_ends_0_leaves_no_process_and_its_commands_work(
    play: Play, tmp_path: pathlib.Path
) -> None:
    ended = play("demo")
    assert (ended.returncode, ended.stderr) == (0, "")
    check_that_nobody_outlives_it(ended.stdout)
    check_what_it_said(ended.stdout)
    told = ended.stdout.partition("Everything is still there")[0].splitlines()[2:]
    assert max(map(len, told)) <= 80
    check_next_commands(ended.stdout)
    (folder,) = tmp_path.iterdir()
    assert sorted(one.name for one in folder.iterdir() if one.suffix not in (".sqlite-wal", ".sqlite-shm")) == [
        "pyproject.toml",
        "shop",
        "shop.keys",
        "shop.sqlite",
    ]


def test_on_your_database_the_demo_leaves_other_rows_alone_and_can_be_repeated(
    play: Play, database: Database, engine: Engine, write: Callable[..., Attempt]
) -> None:
    attempt = write(Client, "ping")
    before = tuple(row_of(engine, attempt.id))
    for _ in range(2 if database.name == "postgresql" else 1):
        ended = play("demo", "--database-url", database.sync_url)
        assert (ended.returncode, ended.stderr) == (0, "")
        check_what_it_said(ended.stdout)
    if database.name != "mysql":  # the lines name the database in two ways: a file with its URL, or the URL itself
        check_next_commands(ended.stdout)
    assert tuple(row_of(engine, attempt.id)) == before
    password = make_url(database.sync_url).password
    assert password is None or password not in ended.stdout


def test_a_password_is_kept_in_a_file_that_only_its_user_can_read(tmp_path: pathlib.Path) -> None:
    from async_task_cli.demo.stage import entering

    lines = entering(tmp_path, "postgresql+psycopg://me:s3cret@host/shop")
    assert not any("s3cret" in line for line in lines)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    script = "\n".join([*lines, 'printf %s "$SHOP_DATABASE_URL"'])
    ended = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
    assert ended.stdout == "postgresql+psycopg://me:s3cret@host/shop"


@pytest.mark.parametrize(
    ("lie", "claim"),
    [
        ("warehouse.Warehouse.parcels = lambda self: [1001]", "order 1002 was packed once"),
        (
            "warehouse.Warehouse.received = lambda self, number: [{'answer': 201}]",
            "a call that was rolled back is never made",
        ),
        (
            "import async_task; async_task.AesGcmEncryptor._encrypt = lambda self, secret, plain, bound: plain",
            "the account is nowhere in the row",
        ),
        ("warehouse.Warehouse.will = lambda self, number, **behaviour: None", "it fails twice and then succeeds"),
    ],
)
def test_a_false_claim_ends_the_demo_with_1(play: Play, lie: str, claim: str) -> None:
    ended = play("demo", lie=lie)
    assert ended.returncode == 1
    assert f"the demo was about to say that {claim}, and that is not so" in ended.stderr
    assert "Done in" not in ended.stdout
