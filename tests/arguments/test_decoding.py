"""Decoding: a changed text is read or refused, and nothing of it runs or shows."""

import contextlib
import decimal
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task.arguments import types as argument_types
from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.errors import InvalidArguments
from stored_values import (
    Color,
    Point,
    any_text,
    assert_survives,
    quick,
    values,
)


def test_decoding_does_not_depend_on_the_decimal_context_of_the_caller() -> None:
    with decimal.localcontext(decimal.Context(prec=2, traps=[], capitals=0)):
        assert_survives(decimal.Decimal("1.23456E+50"))
        with pytest.raises(InvalidArguments, match=r"broken decimal"):
            decode('{"it": {"$": "decimal", "v": "garbage"}}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"a": 1', "not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('"SECRET"', "not a JSON object"),
        ('{"a": NaN}', "out of range"),
        ('{"a": 1e999}', "out of range"),
        ('{"a": {"$": "SECRET", "v": 1}}', "a class under a custom name, which is not registered"),
        ('{"a": {"$": "os:system", "v": "SECRET"}}', "a os:system, which is not registered in this process"),
        ('{"a": {"$": "tuple"}}', "malformed"),
        ('{"a": {"$": "tuple", "v": [], "w": 1}}', "malformed"),
        ('{"a": {"$": "tuple", "w": []}}', "malformed"),
        ('{"a": {"$": ["tuple"], "v": []}}', "malformed"),
        ('{"a": {"$": "tuple", "v": "SECRET"}}', "broken tuple"),
        ('{"a": {"$": "tuple", "v": null}}', "broken tuple"),
        ('{"a": {"$": "set", "v": [[1]]}}', "broken set"),
        ('{"a": {"$": "set", "v": [1, 1]}}', "broken set"),
        ('{"a": {"$": "frozenset", "v": {}}}', "broken frozenset"),
        ('{"a": {"$": "dict", "v": [[1]]}}', "broken dict"),
        ('{"a": {"$": "dict", "v": ["ab"]}}', "broken dict"),
        ('{"a": {"$": "dict", "v": [[[], 1]]}}', "broken dict"),
        ('{"a": {"$": "dict", "v": [[1, 2], [1, 3]]}}', "broken dict"),
        ('{"a": {"$": "float", "v": "1.5"}}', "broken float"),
        ('{"a": {"$": "float", "v": [1]}}', "broken float"),
        ('{"a": {"$": "str", "v": "SECRET"}}', "broken str"),
        ('{"a": {"$": "bytes", "v": "SECRET!"}}', "broken bytes"),
        ('{"a": {"$": "uuid", "v": "SECRET"}}', "broken uuid"),
        ('{"a": {"$": "uuid", "v": 1}}', "broken uuid"),
        ('{"a": {"$": "decimal", "v": 1}}', "broken decimal"),
        ('{"a": {"$": "date", "v": "2026-13-01"}}', "broken date"),
        ('{"a": {"$": "datetime", "v": 1}}', "broken datetime"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00+01:00", "Europe/Berlin"]}}', "broken datetime"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00", "../../etc/passwd"]}}', "broken datetime"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00", "SECRET"]}}', "install tzdata"),
        ('{"a": {"$": "datetime", "v": ["2026-01-01T00:00:00", null, 2]}}', "broken datetime"),
        ('{"a": {"$": "timedelta", "v": [1.5, 0, 0]}}', "broken timedelta"),
        ('{"a": {"$": "timedelta", "v": [10000000000, 0, 0]}}', "broken timedelta"),
        ('{"a": {"$": "HERE:Color", "v": "SECRET"}}', "broken HERE:Color"),
        ('{"a": {"$": "HERE:Color", "v": ["RED"]}}', "broken HERE:Color"),
        ('{"a": {"$": "HERE:Rights", "v": 8}}', "broken HERE:Rights"),
        ('{"a": {"$": "HERE:Rights", "v": true}}', "broken HERE:Rights"),
        ('{"a": {"$": "HERE:Point", "v": {"x": 1}}}', "broken HERE:Point"),
        ('{"a": {"$": "HERE:Point", "v": {"x": 1, "y": 2, "z": 3}}}', "broken HERE:Point"),
        ('{"a": {"$": "HERE:Point", "v": [1, 2]}}', "broken HERE:Point"),
        ('{"a": {"$": "HERE:Pair", "v": {}}}', "broken HERE:Pair"),
        ('{"a": {"$": "HERE:Strict", "v": {"number": 1}}}', "broken HERE:Strict"),
        ('{"a": {"$": "noisy", "v": {}}}', "broken class under a custom name"),
        ('{"a": ' + "[" * 101 + "]" * 101 + "}", "nested too deeply"),
        ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested too deeply"),
        ('{"a": ' * 10_000, "nested too deeply"),
    ],
    ids=lambda text: text[:60],
)
def test_a_changed_text_is_refused_without_its_content(text: str, message: str) -> None:
    with pytest.raises(InvalidArguments) as refusal:
        decode(text.replace("HERE", Color.__module__))
    assert message.replace("HERE", Color.__module__) in str(refusal.value)
    assert str(refusal.value).startswith("the stored arguments ")
    assert "SECRET" not in str(refusal.value)
    assert refusal.value.__context__ is None


def assert_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArguments):
        assert isinstance(decode(text), dict)


tags = st.sampled_from([*sorted(argument_types.BUILTIN_TAGS), *argument_types._by_name])
forged = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["2026-01-01", "00:00", "UTC", "nan", "RED", "", "-1", "Europe", "AA=="])
    | any_text,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["$", "v", "x", "y", "item", "left", "number", "name", "__dict__"]), inner),
        st.fixed_dictionaries({"$": tags, "v": inner}),
        st.fixed_dictionaries(
            {"$": st.just(f"{Point.__module__}:Point"), "v": st.fixed_dictionaries({"x": inner, "y": inner})}
        ),
    ),
    max_leaves=10,
)


@quick
@given(st.text() | forged.map(json.dumps) | forged.map(lambda part: json.dumps({"it": part})))
def test_a_forged_text_is_read_or_refused(text: str) -> None:
    assert_read_or_refused(text)


@quick
@given(st.dictionaries(st.just("it"), values, min_size=1), st.data())
def test_a_text_with_a_damaged_part_is_read_or_refused(arguments: dict[str, object], data: Any) -> None:
    text = encode(arguments)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    inserted = data.draw(
        st.sampled_from(["", "[", "]", "{}", '"', ",", "null", "-1", "1e999", '"$"', "\\ud800", "\x00"])
    )
    assert_read_or_refused(text[:start] + inserted + text[end:])


def test_nothing_is_imported_because_a_text_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(
        InvalidArguments, match=r"a this:that, which is not registered in this process: import its module"
    ):
        decode('{"it": {"$": "this:that", "v": 1}}')
    assert "this" not in sys.modules


def test_pydantic_is_not_imported_without_a_model() -> None:
    script = (
        "import sys, types; package = types.ModuleType('async_task'); "
        f"package.__path__ = [{str(pathlib.Path(argument_types.__file__).parents[1])!r}]; "
        "sys.modules['async_task'] = package; sys.modules['pydantic'] = None; "
        "from async_task.arguments.encoding import encode; from async_task.arguments.decoding import decode; "
        "assert decode(encode({'a': (1,)})) == {'a': (1,)}"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
