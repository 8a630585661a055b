"""JSON and CSV of a view, arguments, lengths of time and parameters: what is decided without a database."""

import datetime as dt
import json
import math
import uuid
from typing import Any

import pytest

from async_task import Status
from async_task.web.rendering.arguments import MASKED, masked, shown
from async_task.web.rendering.formats import as_csv, as_json
from async_task.web.rendering.html import first_line, number, sentence, size, state, when
from async_task.web.rendering.markdown import as_html
from async_task.web.rendering.times import since, span
from async_task.web.requests.query import Query
from async_task.web.security.refusal import Refused

NOON = dt.datetime(2026, 10, 25, 12, tzinfo=dt.UTC)
FORMULAS = ("=cmd|'/C calc'!A0", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\N{FULLWIDTH EQUALS SIGN}1")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_is_never_a_formula(text: str) -> None:
    cell = as_csv(["error"], [[text]]).partition("\r\n")[2]
    assert cell.lstrip('"').startswith("'")


def test_numbers_of_a_table_stay_numbers() -> None:
    assert as_csv(["a", "b", "c"], [[-1, 2.5, None]]) == "a,b,c\r\n-1,2.5,\r\n"


def test_json_holds_instants_lengths_ids_and_states() -> None:
    made = uuid.uuid4()
    data = {
        "at": NOON,
        "age": dt.timedelta(seconds=90),
        "id": made,
        "state": Status.FAILED,
        "odd": math.inf,
        "all": (1,),
    }
    assert json.loads(as_json(data)) == {
        "at": "2026-10-25T12:00:00+00:00", "age": 90.0, "id": str(made), "state": "failed", "odd": None, "all": [1],
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "userPassword",
        "api_key",
        "apikey",
        "token",
        "access_token",
        "access_key",
        "api-key",
        "pwd",
        "IBAN",
        "card",
        "client_secret",
    ],
)
def test_an_argument_with_the_name_of_a_secret_is_masked_at_any_depth(name: str) -> None:
    assert shown("hunter2", name) == MASKED
    assert masked({"a": [{name: "hunter2", "b": 1}]}, "") == {"a": [{name: MASKED, "b": 1}]}
    assert shown("hunter2", name, True) == "'hunter2'"


@pytest.mark.parametrize("name", ["order_id", "customer", "keyboard", "message", "shopping"])
def test_other_arguments_are_shown(name: str) -> None:
    assert shown("Ada", name) == "'Ada'"


def test_a_long_argument_is_cut() -> None:
    assert len(shown("x" * 10_000, "text")) < 2_100


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>\n"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>\n"),
        ("[x](data:text/html;base64,AAAA)", "<p>[x](data:text/html;base64,AAAA)</p>\n"),
        ("**x**", "<p><strong>x</strong></p>\n"),
        ("[x](https://a.test)", '<p><a href="https://a.test" rel="nofollow noopener noreferrer">x</a></p>\n'),
    ],
)
def test_a_note_is_markdown_without_html(text: str, html: str) -> None:
    assert as_html(text) == html


def test_an_image_in_a_note_asks_no_other_server() -> None:
    assert "<img" not in as_html("![x](https://tracker.test/x.png)")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.005, "5 ms"),
        (1, "1 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_661, "1 h 1 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_length_of_time_has_one_or_two_units(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_an_instant_is_relative_and_exact() -> None:
    assert since(NOON, NOON + dt.timedelta(minutes=3)) == "3 min ago"
    assert since(NOON, NOON - dt.timedelta(hours=2)) == "in 2 h"
    assert (
        when(NOON, NOON) == '<time datetime="2026-10-25T12:00:00+00:00" title="2026-10-25 12:00:00.000 UTC">now</time>'
    )


def test_a_state_is_a_shape_and_a_word() -> None:
    shape = '<span class="shape" aria-hidden="true">✕</span>'
    assert state("failed") == f'<span class="state failed">{shape}failed</span>'
    assert "&lt;" in state("<x>")


def test_numbers_sizes_and_first_lines() -> None:
    assert [number(1234), number(12.5), number(1.5), number(50_000, is_estimate=True)] == [
        "1,234",
        "12",
        "1.5",
        "~50,000",
    ]
    assert [size(999), size(1_500), size(2_000_000_000), size(5 * 10**12)] == [
        "999 bytes",
        "1.5 kB",
        "2.0 GB",
        "5.0 TB",
    ]
    assert first_line("one\ntwo") == "one"
    assert len(first_line("x" * 500, 90)) == 90


@pytest.mark.parametrize(
    "parameters", [[("q", "x" * 501)], [("a\0b", "1")], [("q", "\udc80")]], ids=["long", "NUL", "surrogate"]
)
def test_a_parameter_that_no_database_stores_is_refused(parameters: Any) -> None:
    with pytest.raises(Refused):
        Query(parameters)


def test_parameters_are_clamped_and_kept_in_links() -> None:
    query = Query([("limit", "999999"), ("q", " a&b "), ("done", "retry"), ("empty", " ")])
    assert query.number("limit", 5, 1, 200) == 200
    assert query.number("least", 5, 1, 200) == 5
    assert query.link("/jobs", after=7) == "/jobs?limit=999999&q=+a%26b+&after=7"
    assert query.text("q") == "a&b"
    for wrong in ("-1", "1e3", "\N{ARABIC-INDIC DIGIT ONE}", "1.5"):
        with pytest.raises(Refused):
            Query([("limit", wrong)]).number("limit", 5, 1, 200)


def test_a_sentence_begins_with_a_capital_letter_but_for_a_name() -> None:
    assert sentence("it has ended: `async-task retry` helps") == ("It has ended: <code>async-task retry</code> helps")
    assert sentence("gone:1:0 has claimed it <now>") == "gone:1:0 has claimed it &lt;now&gt;"
