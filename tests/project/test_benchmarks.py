"""The benchmark runs, and what it writes is well-formed. No test here says how fast anything is."""

import json
import pathlib
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.aims import aims
from benchmarks.link import delayed
from benchmarks.measure import Column, Measure, Result, Subject, run
from benchmarks.places import MYSQL_URL
from benchmarks.plan import QUICK, TINY
from benchmarks.stage import Stage
from benchmarks.system import Cannot

pytestmark = pytest.mark.long

HOME = pathlib.Path(__file__).parents[2]
PAGE = f"# Ours\n\n{report.BEGIN}\nold\n{report.END}\nthe end\n"


def test_a_tiny_run_without_peers_measures_ourselves_and_bare_psycopg_and_writes_json_and_a_page(
    tmp_path: pathlib.Path,
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    words = [
        "--plan",
        "tiny",
        "--peers",
        "0",
        "--only",
        "drain,batch,enqueue,bulk,targets,each-drain",
        "--page",
        str(page),
    ]
    command = [sys.executable, "-m", "benchmarks", *words, "--results", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=HOME)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "tiny.json").read_text())
    assert set(told["systems"]) == {"async-task", "psycopg"}
    rows = {(name, row["label"]): row for name, one in told["measures"].items() for row in one["rows"]}
    assert set(rows) == {
        ("drain", "async-task"),
        ("drain", "psycopg, batch of 100"),
        ("batch", "async-task"),
        ("enqueue", "async-task, ORM"),
        ("enqueue", "async-task, Core"),
        ("enqueue", "psycopg, psycopg"),
        ("bulk", "async-task"),
        ("bulk", "psycopg"),
        ("targets", "async-task"),
        ("each-drain", "PostgreSQL"),
        ("each-drain", "MariaDB"),
        ("each-drain", "SQLite"),
    }
    absent = [] if "MariaDB" in told["places"] else [("each-drain", "MariaDB")]
    assert [row for row in rows if rows[row]["reason"]] == absent
    assert "server" not in rows["each-drain", "SQLite"]["medians"]
    assert all(figure >= 0 for row in rows.values() for figure in row["medians"].values())
    assert all(len(rows[row]["samples"]) == TINY.rounds for row in rows if row not in absent)
    text = page.read_text()
    assert "old" not in text
    assert "SQLite: `version=" in text
    assert " to PostgreSQL |" in text
    assert text.startswith("# Ours\n")
    assert text.endswith("the end\n")
    _check_tables(text)


def test_the_page_of_this_tree_is_well_formed() -> None:
    text = (HOME / "docs" / "benchmarks.md").read_text()
    assert report.BEGIN in text
    assert report.END in text
    _check_tables(text)


def test_results_of_this_tree_make_tables() -> None:
    for path in (HOME / "benchmarks" / "results").glob("*.json"):
        _check_tables(report.markdown(json.loads(path.read_text())))


def test_who_cannot_and_who_breaks_get_a_dash_and_a_reason_and_the_others_their_figures(stage: Stage) -> None:
    def take(_stage: Stage, subject: Subject) -> dict[str, Any]:
        if subject.label == "cannot":
            raise Cannot("it has | no such thing")
        if subject.label == "breaks":
            raise ZeroDivisionError("oh\nno")
        return {"rate": 10.0 if subject.system == "async-task" else 30.0}

    rows = [Subject("async-task", "async-task"), Subject("other", "pgqueuer/asyncpg"), Subject("cannot", "chancy"),
            Subject("breaks", "dbos")]  # fmt: skip
    measure = Measure("drain", "A drain", "So.", (Column("rate", "jobs/s"),), lambda _: rows, take)
    told = _report(measure, run(stage, measure, None, lambda _: None))
    lines = report.markdown(told).splitlines()
    assert "| async-task | 10 | 1.00 |" in lines
    assert "| other | 30 | 3.00 |" in lines
    assert "| cannot | - (it has / no such thing) |  |" in lines
    assert "| breaks | - (ZeroDivisionError: oh) |  |" in lines


def test_rounds_begin_with_another_one_each_time_and_what_has_no_time_is_said(stage: Stage) -> None:
    order: list[str] = []

    def take(_stage: Stage, subject: Subject) -> dict[str, Any]:
        order.append(subject.label)
        return {"rate": float(len(order))}

    rows = [Subject(label, "async-task") for label in "abc"]
    measure = Measure("x", "X", "So.", (Column("rate", "jobs/s"),), lambda _: rows, take)
    stage.plan = _with_rounds(3)
    found = run(stage, measure, None, lambda _: None)
    assert "".join(order) == "abcbcacab"
    assert _report(measure, found)["measures"]["x"]["rows"][0]["medians"] == {"rate": 6.0}
    late = run(stage, measure, 0.0, lambda _: None)
    assert [one.reason for one in late] == ["no time was left in this run"] * 3


def test_an_aim_is_judged_by_the_figures_of_the_run_and_left_out_without_them() -> None:
    rows = [
        {"label": "async-task", "system": "async-task", "medians": {"rate": 50.0}},
        {"label": "graphile-worker", "system": "graphile-worker", "medians": {"rate": 40.0}},
        {"label": "pgqueuer/asyncpg", "system": "pgqueuer/asyncpg", "medians": {"rate": 30.0}},
    ]
    judged = {one.what: one.is_reached for one in aims({"drain": {"rows": rows}})}
    assert judged == {"drain, over graphile-worker": True, "drain, over pgqueuer on asyncpg": False}


@pytest.mark.parametrize(
    ("words", "unknown"),
    [(["--only", "each-*,speed"], "no measure speed;"), (["--peers", "nobody"], "none named nobody;")],
)
def test_what_is_not_known_ends_the_run_before_it_begins(words: list[str], unknown: str) -> None:
    with pytest.raises(SystemExit, match=f"there is {unknown}"):
        main(words)


def test_where_each_database_is_measured_a_quick_run_has_sizes_of_its_own(stage: Stage) -> None:
    stage.plan = QUICK
    assert stage.at("").plan is QUICK
    assert stage.at("PostgreSQL").plan.drain == QUICK.each["drain"] < QUICK.drain


def test_where_no_mariadb_answers_its_row_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MYSQL_URL, "mysql://root@127.0.0.1:1/")
    rows = [Subject("MariaDB", "async-task", place="MariaDB"), Subject("PostgreSQL", "async-task", place="PostgreSQL")]
    measure = Measure("x", "X", "So.", (Column("rate", "jobs/s"),), lambda _: rows, lambda *_: {"rate": 1.0})
    told = _report(measure, run(stage, measure, None, lambda _: None))
    reasons = {row["label"]: row["reason"] for row in told["measures"]["x"]["rows"]}
    assert reasons == {"MariaDB": f"{MYSQL_URL} is set, but no server answers there", "PostgreSQL": None}


def test_the_slow_link_carries_every_byte_both_ways_and_the_end_of_a_side(tmp_path: pathlib.Path) -> None:
    sent = bytes(range(256)) * 4000
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / ".s.PGSQL.5432"))
        server.listen()
        echo = threading.Thread(target=_echo, args=(server,))
        echo.start()
        with delayed(str(tmp_path), 0.001) as port, socket.create_connection(("127.0.0.1", port)) as client:
            writer = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
            writer.start()
            back = b"".join(iter(lambda: client.recv(65_536), b""))
            writer.join()
        echo.join()
    assert back == sent


def _echo(server: socket.socket) -> None:
    near, _ = server.accept()
    with near:
        while data := near.recv(65_536):
            near.sendall(data)


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> Stage:
    """Nothing is asked of its server."""
    return Stage(None, tmp_path, TINY, [])  # type: ignore[arg-type]


def _with_rounds(rounds: int) -> Any:
    import dataclasses

    return dataclasses.replace(TINY, rounds=rounds)


def _report(measure: Measure, results: list[Result]) -> report.Report:
    import datetime as dt

    return report.assembled("tiny", dt.datetime.now(dt.UTC), 1.0, {}, {}, {}, {}, [(measure, results)])


def _check_tables(text: str) -> None:
    """Each table's rows have as many cells as its head."""
    width = 0
    for line in text.splitlines():
        cells = line.count("|")
        assert not line.startswith("|") or not width or cells == width, line
        width = cells if line.startswith("|") else 0
