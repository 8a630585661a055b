"""What a call says for itself, as its row holds it. Without a database."""

import dataclasses
import datetime as dt
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task import ConfigurationError, InvalidArguments, Retry, target
from async_task.targets.call_settings import CallSettings, settings_in_words, settings_of, settings_text, span
from async_task.targets.registry import target_named
from async_task.targets.target import Method

SECONDS = st.integers(0, 10**9).map(lambda number: dt.timedelta(milliseconds=number))
MOST = st.none() | st.integers(1, 99)
UNTIL = st.none() | SECONDS
RETRIES = st.one_of(
    st.builds(
        Retry.exponential, first=SECONDS, factor=st.integers(1, 9) | st.floats(1, 9), cap=SECONDS,
        jitter=st.floats(0, 1), max_attempts=MOST, until=UNTIL,
    ),
    st.builds(Retry.every, SECONDS.filter(bool), max_attempts=MOST, until=UNTIL),
    st.lists(SECONDS, max_size=5).map(lambda waits: Retry.schedule(*waits)),
    st.just(Retry.never()),
)  # fmt: skip


@target("settings.plain")
def plain() -> None: ...


@target("settings.leased", mode="leased")
def leased() -> None: ...


@target("settings.isolated", mode="leased", isolate=True)
def isolated() -> None: ...


def method(name: str = "settings.plain") -> Method:
    return target_named(name).method(None)


@given(retry=st.none() | RETRIES, timeout=st.none() | SECONDS.filter(bool))
def test_a_row_gives_back_what_was_written(retry: Retry | None, timeout: dt.timedelta | None) -> None:
    text = settings_text(method(), retry, timeout)
    assert settings_of(text) == CallSettings(retry, timeout)
    assert (text is None) == (retry is None and timeout is None)


def test_a_policy_is_a_value_and_can_be_sent_to_another_process() -> None:
    retry = Retry.exponential(first=1, max_attempts=3)
    sent = pickle.loads(pickle.dumps(retry))  # noqa: S301 - made here
    assert sent == retry == Retry.exponential(first=1, max_attempts=3)
    assert retry != Retry.exponential(first=2, max_attempts=3)


def test_the_text_is_stable_because_other_versions_read_it() -> None:
    assert json.loads(settings_text(method(), Retry.every(60, max_attempts=5, until=90), 30) or "") == {
        "retry": {"delays": "every", "interval": 60.0, "jitter": 0.0, "max_attempts": 5, "until": 90.0},
        "timeout": 30.0,
    }
    assert json.loads(settings_text(method(), Retry.exponential(first=2), None) or "")["retry"] == {
        "delays": "exponential", "first": 2.0, "factor": 2, "cap": 10800.0, "jitter": 1.0, "until": 345600.0,
    }  # fmt: skip
    waits = {"retry": {"delays": "schedule", "waits": [1.0, 2.5], "jitter": 0.0}}
    assert json.loads(settings_text(method(), Retry.schedule(1, 2.5), None) or "") == waits
    assert json.loads(settings_text(method(), Retry.never(), None) or "") == {
        "retry": {"delays": "never", "jitter": 0.0}
    }


OWN = Retry(lambda errors: 60)


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("settings.plain", {"retry": 3}, "retry takes a Retry"),
        ("settings.plain", {"retry": OWN}, r"a row cannot hold a Retry with a function of your own: .*@target"),
        ("settings.plain", {"retry": dataclasses.replace(Retry.every(1), delays=lambda n: 1)}, "function of your own"),
        ("settings.plain", {"timeout": 0}, "timeout must be longer than 0 s"),
        ("settings.plain", {"timeout": -1}, "timeout cannot be negative"),
        ("settings.plain", {"timeout": "1h"}, "timeout takes a timedelta or seconds, not a str"),
        ("settings.leased", {"timeout": 5}, "settings.leased: nothing can end a plain def in mode='leased'"),
    ],
)
def test_what_a_policy_or_a_row_cannot_hold_is_refused(name: str, given: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArguments, match=why):
        settings_text(method(name), given.get("retry"), given.get("timeout"))


def test_a_time_limit_that_a_child_process_can_enforce_is_taken() -> None:
    assert settings_of(settings_text(method("settings.isolated"), None, 5)).timeout == dt.timedelta(seconds=5)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "7", "{", '{"timeout": "soon"}', '{"timeout": -1}', '{"timeout": 0}', '{"mode": "leased"}',
        '{"retry": {"delays": "fibonacci", "jitter": 0}}', '{"retry": {"delays": "every", "jitter": 0}}',
        '{"retry": {"delays": "every", "interval": 1}}', '{"retry": {"delays": "never", "jitter": 0, "spread": 1}}',
        '{"retry": {"delays": "every", "interval": "x", "jitter": 0}}', '{"retry": "never"}', '{"retry": []}',
        '{"retry": {"delays": ["never"], "jitter": 0}}', '{"retry": {"delays": "schedule", "waits": 5, "jitter": 0}}',
    ],
)  # fmt: skip
def test_a_text_of_a_newer_version_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"call_settings.* not known to this version .* a newer one may"):
        settings_of(text)


def test_they_are_told_in_words() -> None:
    most = Retry.exponential(first=90, cap=3600, max_attempts=3)
    assert settings_in_words(settings_text(method(), most, 300)) == {
        "retry": "exponential from 90 s, times 2, at most 1 h, at most 3 errors, until 4 d",
        "timeout": "5 min",
    }
    told = [settings_in_words(settings_text(method(), one, None))["retry"] for one in
            (Retry.every(0.5), Retry.schedule(1, 86400), Retry.schedule(), Retry.never())]  # fmt: skip
    assert told == ["every 0.5 s", "schedule of 1 s, 1 d", "schedule of nothing", "never"]
    assert settings_in_words(None) == {}
    assert "a newer one may" in settings_in_words("{")["call_settings"]
    assert span(dt.timedelta(0)) == "0 s"
