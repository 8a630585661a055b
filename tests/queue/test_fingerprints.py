"""Fingerprints: errors of one cause have one, across releases and machines, and errors of two causes have two."""

from collections.abc import Callable
from typing import Any

import pytest

from async_task import AsyncTask, Attempt
from async_task.error_text import Failure, describe
from async_task.queue.fingerprints import fingerprint_of, fingerprint_of_loss, own_frames
from claims import orphan
from conftest import by_one_door
from outbox import Broken, Client, act, events_of, will

Write = Callable[..., Attempt]
TRACE = """Traceback (most recent call last):
  File "/srv/app/async_task/execution/call.py", line 300, in _invoke
    return function()
  File "{folder}/shop/orders.py", line {line}, in fulfill
    client.post(order)
    ~~~~~~~~~~~^^^^^^^
  File "/srv/venv/lib/python3.11/site-packages/httpx/client.py", line 9, in post
    raise error
httpx.ConnectError: order {number} refused
"""
PLAIN: dict[str, Any] = {"folder": "/srv/app", "line": 17, "number": 7}


def of(target: str = "shop", summary: str = "ConnectError: order 7 refused", trace: str = TRACE, **more: Any) -> str:
    return fingerprint_of(target, Failure(summary, trace.format(**PLAIN | more)))


@pytest.mark.parametrize(
    ("is_same", "changed"),
    [
        (True, {"line": 99}),
        (True, {"folder": "/srv/releases/2026-11-29"}),
        (True, {"summary": "ConnectError: order 8 refused", "number": 8}),
        (True, {"summary": "ConnectError: order 0199f3a0-0000-7000-8000-000000000000 refused"} | {"target": "shop"}),
        (False, {"target": "shop.other"}),
        (False, {"summary": "ReadError: order 7 refused"}),
        (False, {"summary": "ConnectError: order 7 is unknown"}),
        (False, {"trace": TRACE.replace("in fulfill", "in refund")}),
        (False, {"trace": TRACE.replace("orders.py", "refunds.py")}),
        (True, {"trace": TRACE.replace("httpx/client.py", "httpx/transport.py")}),
        (True, {"trace": 'Traceback (most recent call last):\n  File "x.py", line 1, in x\nKeyError\n\n' + TRACE}),
    ],
    ids=lambda one: None if isinstance(one, bool) else "-".join(one),
)
def test_what_differs_from_call_to_call_and_between_releases_is_no_part_of_it(is_same: bool, changed: Any) -> None:
    if "0199f3a0" in changed.get("summary", ""):
        assert of(**changed) == of(summary="ConnectError: order a199f3a0-0000-7000-8000-000000000000 refused")
    else:
        assert (of(**changed) == of()) is is_same


def test_frames_are_the_innermost_of_the_users_own_code_and_a_recursion_is_one() -> None:
    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise Broken("at the bottom")

    frames = []
    for depth in (2, 9):
        try:
            deep(depth)
        except Broken as error:
            frames.append(own_frames(describe(error).trace))
    assert frames[0] == frames[1]
    assert frames[0][-1] == "queue/test_fingerprints.py:deep"
    assert len(frames[0]) == 2


@by_one_door
def test_the_event_of_an_error_has_its_fingerprint_and_the_failures_are_grouped_by_it(
    app: AsyncTask, engine: Any, write: Write
) -> None:
    def here() -> None:
        raise Broken("order 7")

    def there() -> None:
        raise Broken("order 8")

    made = [write(act) for _ in range(3)]
    for one, do in zip(made, (here, here, there), strict=True):
        will(do)
        app.perform(one.id)
    [first], [second], [third] = (events_of(engine, one.id, "error") for one in made)
    assert first.fingerprint == second.fingerprint != third.fingerprint
    groups = {group.fingerprint: group for group in app.attempts.failures().groups}
    assert {key: group.count for key, group in groups.items()} == {first.fingerprint: 2, third.fingerprint: 1}
    assert {(one.target, one.exception, one.message) for one in groups.values()} == {("test.act", "Broken", "order N")}


@pytest.mark.slow
@by_one_door
def test_the_event_of_a_loss_has_one_too_and_other_events_have_none(app: AsyncTask, engine: Any, write: Write) -> None:
    lost = orphan(engine, write)
    app.sweep()
    [event] = events_of(engine, lost.id, "loss")
    assert event.fingerprint == fingerprint_of_loss("test.client", "loss", event.message)
    canceled = write(Client, "ping")
    app.write(lambda session: session.get(Attempt, canceled.id).cancel())
    assert [one.fingerprint for one in events_of(engine, canceled.id)] == [None]
