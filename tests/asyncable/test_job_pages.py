"""`outbox.jobs`: rows of all models that are their own jobs, page by page, along the index of the sweep."""

import datetime as dt
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, ConfigurationError, JobInfo, UnknownTarget
from async_task.asyncable import job_pages
from async_task.asyncable.job_filters import Stage, job_filters
from async_task.asyncable.job_lines import Place, statement
from async_task.asyncable.registration import register
from claims import claimed
from clockwork import let_pass
from conftest import by_one_door
from databases import explained, rows_read
from outbox import more_metadata
from reviews import DAY, HOUR, Board, Desk, LeasedReview, OldReview, Pair, Paper, Review, fill
from writing import statements_of


def all_jobs(app: AsyncTask, model: Any = None, limit: int = 2, **filters: Any) -> list[JobInfo]:
    """Page by page."""
    page = app.jobs(model, limit=limit, **filters)
    found, before = list(page.jobs), set[str]()
    while page.next is not None:
        assert len(page.jobs) <= limit
        assert page.next not in before
        before.add(page.next)
        page = app.jobs(model, limit=limit, after=page.next, **filters)
        found += page.jobs
    return found


def keys(jobs: Iterable[JobInfo]) -> list[int]:
    return [int(one.key) for one in jobs]


@pytest.fixture
def mess(desk: Desk, board: Board, engine: Engine) -> dict[str, int]:
    """A row in each state, and two that were never submitted; their window was over first."""
    made = {"expired": desk.submitted()}
    desk.pass_by(4 * DAY)
    board.will_raise(RuntimeError("Ada"))
    made["failing"] = desk.submitted()
    desk.go_on()
    made["running"], made["processed"] = desk.submitted(), desk.submitted()
    by_key = {str(one.idempotence_token): one.id for one in desk.attempts()}
    claimed(engine, by_key[str(made["running"])], lease=dt.timedelta(hours=1))
    board.will_raise(None)
    desk.app.perform(by_key[str(made["processed"])])
    made["queued"], made["canceled"] = desk.submitted(), desk.submitted()
    desk.do(made["canceled"], "cancel")
    made["waiting"] = desk.submitted(delay=HOUR)
    made["odd"], made["not_submitted"] = desk.by_hand(error="Broken: order 7"), desk.by_hand()
    return made


@pytest.mark.slow
def test_the_default_is_what_is_potentially_stuck_the_oldest_first(desk: Desk, mess: dict[str, int]) -> None:
    found = all_jobs(desk.app)
    assert keys(found) == [mess[name] for name in ("expired", "failing", "running", "queued", "odd")]
    assert [one.state for one in found] == ["expired", "failing", "running", "queued", "not_submitted"]
    assert [one.error for one in found] == [None, "RuntimeError", None, None, "Broken"]
    expected = {one.key: desk.app.job(Review, one.key) for one in found}
    for one in found:
        assert one.attempt is None or one.attempt.id == expected[one.key].attempt.id  # type: ignore[union-attr]
        assert (one.submitted_at, one.state) == (expected[one.key].submitted_at, expected[one.key].state)


@pytest.mark.slow
@by_one_door
def test_each_state_is_a_filter_and_several_are_any_of_them(desk: Desk, mess: dict[str, int]) -> None:
    mess["not_submitted"], odd = mess.pop("odd"), mess["not_submitted"]
    for state, made in mess.items():
        also = [odd] if state == "not_submitted" else []
        assert keys(all_jobs(desk.app, "test.review", status=state)) == [made, *also]
    some = ["canceled", "queued", "not_submitted", "waiting"]
    assert keys(all_jobs(desk.app, Review, limit=1, status=some)) == [
        mess["queued"], mess["waiting"], mess["not_submitted"], odd, mess["canceled"],
    ]  # fmt: skip
    assert keys(desk.app.jobs(status=["processed", "failing"]).jobs) == [mess["failing"], mess["processed"]]


@pytest.mark.slow
@by_one_door
def test_rows_of_several_models_and_kinds_of_keys_are_in_one_order(desk: Desk, board: Board, engine: Engine) -> None:
    """Also where they were submitted at one instant, and whatever its column holds."""
    for model in (LeasedReview, OldReview, Pair, Paper):
        register(model)
    models, soon, expected = (Review, OldReview, Pair, Paper, LeasedReview), desk.app.now() + dt.timedelta(hours=1), []
    with Session(engine) as session, session.begin():
        for minutes in (5, 3, 3, 1):
            for model in models:
                at = soon + dt.timedelta(minutes=minutes)
                row = model(office=f"a\\b, {len(expected)}", number=7) if model is Pair else model()
                row.submit_for_processing(session, delay=at)
                expected.append(at - dt.timedelta(hours=3))
    let_pass(engine, 3 * HOUR, also=models)
    found = all_jobs(desk.app, limit=3)
    assert [one.last_submitted_at for one in found] == sorted(expected)
    assert len({(one.model, one.key) for one in found}) == len(expected)
    assert [(one.model, one.key) for one in desk.app.jobs(limit=100).jobs] == [(one.model, one.key) for one in found]
    assert [one.model for one in desk.app.jobs("test.old_review").jobs] == ["test.old_review"] * 4
    for one in found:
        assert one.attempt is not None
    for one in (*desk.app.jobs(Pair).jobs, *desk.app.jobs(Pair, status="queued", user=None).jobs):
        assert desk.app.job(Pair, one.key).submitted_at == one.submitted_at


@pytest.mark.slow
@by_one_door
def test_a_user_finds_their_own_rows_and_short_pages_lead_on(
    desk: Desk, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (Review, LeasedReview):
        monkeypatch.setattr(model, "asyncable_user", property(lambda self: self.id % 4 or None))
    register(LeasedReview)
    made = [desk.submitted() for _ in range(12)]
    ended, drafts = [desk.submitted() for _ in range(5)], [desk.by_hand() for _ in range(5)]
    for one in ended:
        desk.do(one, "cancel")
    mine = [one for one in made if one % 4 == 1]
    page = desk.app.jobs(user=1, limit=3)
    assert (keys(page.jobs), page.next) == (mine, None)
    others = [desk.submitted(LeasedReview) for _ in range(12)]
    desk.model = LeasedReview
    other_drafts = [desk.by_hand() for _ in range(5)]
    monkeypatch.setattr(job_pages, "SCANNED", 3)
    monkeypatch.setattr(job_pages, "LOOKED_UP", 2)
    assert keys(all_jobs(desk.app, Review, user=1)) == keys(all_jobs(desk.app, "test.review", user="1")) == mine
    assert all_jobs(desk.app, user="2x") == all_jobs(desk.app, status="failing") == []
    theirs = [[one for one in some if one % 4 == 2] for some in (made, others, other_drafts, drafts, ended)]
    found = all_jobs(desk.app, user=2, status=["queued", "not_submitted", "canceled"])
    assert keys(found) == [one for some in theirs for one in some]


@pytest.mark.slow
@by_one_door
def test_a_page_executes_no_statement_for_each_row(desk: Desk, board: Board, engine: Engine) -> None:
    """And what waits for its delay is not read."""
    for _ in range(3):
        desk.submitted(delay=HOUR)
    assert (desk.app.jobs(limit=2).jobs, desk.app.jobs(limit=2).next) == ((), None)
    counts = []
    for number in (3, 33):
        while len(desk.app.jobs(limit=100).jobs) < number:
            desk.submitted()
        with statements_of(engine) as statements:
            desk.app.jobs(limit=100)
        counts.append(len(statements))
    assert counts[0] == counts[1] > 0


@by_one_door
def test_a_model_whose_table_is_missing_hides_no_other(
    desk: Desk, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    made = desk.submitted()
    register(LeasedReview)
    table = more_metadata.tables["leased_reviews"]
    table.drop(engine)
    try:
        page = desk.app.jobs()
    finally:
        table.create(engine)
    assert (keys(page.jobs), page.unread, page.next) == ([made], ("test.leased_review",), None)
    assert caplog.text.count("test.leased_review could not be looked at") == 1


@by_one_door
def test_what_makes_no_sense_is_one_sentence(desk: Desk) -> None:
    for options, words in (
        ({"status": "faling"}, "status is one of .*did you mean 'failing'"),
        ({"status": 7}, "status takes one state or a list"),
        ({"limit": 0}, "limit is a whole number from 1 to 10,000"),
        ({"after": 7}, "after takes the `next` of a page"),
        ({"after": "7"}, "after takes the `next` of a page of jobs"),
        ({"after": '[0, "2026-11-29", "test.review"]'}, "after takes the `next` of a page of jobs"),
        ({"after": '[9, "2026-11-29T00:00:00+00:00", "test.review", "7"]'}, "after takes the `next` of a page of jobs"),
        ({"after": '[0, "0001-01-01T00:00:00+09:00", "test.review", "7"]'}, "after takes the `next` of a page of jobs"),
        ({"after": '[0, "2026-11-29T00:00:00+00:00", "test.review", "x"]'}, "'x' is no key of Review"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            desk.app.jobs(**options)  # type: ignore[arg-type]
    with pytest.raises(UnknownTarget, match=r"did you mean 'test.review'"):
        desk.app.jobs("test.reviw")
    with pytest.raises(ConfigurationError, match="model is an Asyncable"):
        desk.app.jobs(Attempt)  # type: ignore[arg-type]


# The plan


@pytest.mark.slow
@by_one_door
def test_a_page_walks_along_the_index_of_the_sweep_and_reads_no_more_than_it_shows(desk: Desk, engine: Engine) -> None:
    """Beside 32,768 rows that are processed, 4,096 that are expired and 4,096 that wait. (Of what was submitted at one
    instant, PostgreSQL sorts all by key.)"""
    begin = desk.app.now() - dt.timedelta(hours=30)
    stuck = [{"submitted_at": begin, "last_submitted_at": begin + dt.timedelta(seconds=n)} for n in range(4_096)]
    with engine.begin() as connection:
        fill(connection, 15, {"submitted_at": begin, "last_submitted_at": begin, "processed_at": begin})
        connection.execute(insert(Review), stuck)
        fill(connection, 12, {"submitted_at": begin, "last_submitted_at": begin - dt.timedelta(days=3)})
        fill(connection, 12, {"submitted_at": begin, "last_submitted_at": begin + dt.timedelta(days=3)})
        if sql := {"postgresql": "ANALYZE reviews", "mysql": "ANALYZE TABLE reviews"}.get(engine.dialect.name):
            connection.exec_driver_sql(sql)
    first = desk.app.jobs(limit=50, status=["failing", "queued"])
    assert first.next is not None
    assert first.jobs[0].last_submitted_at == begin
    with Session(engine) as session, session.begin():
        connection = session.connection()
        for filters in (job_filters((), None), job_filters(["failing", "queued"], None)):
            for behind in (None, Place.parse(first.next)):
                wanted = statement(Review, filters, Stage.SUBMITTED, behind, first.read_at).limit(51)
                plan = explained(connection, wanted).replace("Incremental Sort", "")
                assert "ix_reviews_asyncable" in plan
                assert not [word for word in ("Seq Scan", "SCAN", "Sort  (", "filesort", "TEMP B-TREE") if word in plan]
                before = rows_read(connection) if engine.dialect.name == "mysql" else 0
                found = session.execute(wanted).all()
                assert len(found) == 51
                assert (found[0].last_submitted_at >= begin) is (behind is not None or not filters.is_stuck)
                assert (rows_read(connection) if engine.dialect.name == "mysql" else 0) - before < 200
