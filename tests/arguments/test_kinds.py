"""Dataclasses, NamedTuples and models: how instances are taken apart and put together."""

import json

import pytest

from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.errors import InvalidArguments
from stored_values import (
    Checked,
    Line,
    Noisy,
    Order,
    Pair,
    order_with,
)


def test_a_dataclass_is_put_together_without_its_init() -> None:
    text = encode({"it": Noisy(seed=9)})
    before = Noisy.made_by_init
    found = decode(text)["it"]
    assert isinstance(found, Noisy)
    assert (found.made, found.tags, Noisy.made_by_init) == (9, [], before)


def test_the_value_of_a_cached_property_is_not_stored() -> None:
    noisy, order = Noisy(seed=1), Order(number=1)
    assert noisy.lock
    assert order.lock
    assert decode(encode({"n": noisy, "o": order})) == {"n": Noisy(seed=1), "o": Order(number=1)}


def test_a_model_keeps_its_set_fields_extras_and_private_attributes() -> None:
    order = order_with(1, None, [1, 2], {"extra": (1,)})
    found = decode(encode({"it": order}))["it"]
    assert isinstance(found, Order)
    assert found == order
    assert found.model_fields_set == {"number", "extra"}
    assert found.model_extra == {"extra": (1,)}
    assert found._seen == [1, 2]
    assert not hasattr(found, "_unset")


def test_a_field_that_was_added_later_gets_its_default() -> None:
    line, pair, checked = (f"{cls.__module__}:{cls.__qualname__}" for cls in (Line, Pair, Checked))
    assert decode(json.dumps({"it": {"$": line, "v": {"item": 1}}})) == {"it": Line(1)}
    assert decode(json.dumps({"it": {"$": pair, "v": {"left": 1}}})) == {"it": Pair(1)}
    assert decode(json.dumps({"it": {"$": checked, "v": {"number": 1}}})) == {"it": Checked(1, 3)}
    state = json.loads(encode({"it": Order(number=1)}))
    del state["it"]["v"]["__dict__"]["note"], state["it"]["v"]["__dict__"]["tags"]
    assert decode(json.dumps(state)) == {"it": Order(number=1)}


def test_a_model_with_a_broken_state_is_refused() -> None:
    good = json.loads(encode({"it": Order(number=1)}))
    for key, broken in [
        ("__dict__", None),
        ("__dict__", {"stranger": 1}),
        ("__pydantic_fields_set__", ["number"]),
        ("__pydantic_extra__", "SECRET"),
        ("__pydantic_private__", [1]),
    ]:
        bad = {"it": {"$": good["it"]["$"], "v": good["it"]["v"] | {key: broken}}}
        with pytest.raises(InvalidArguments, match=r"broken .*:Order"):
            decode(json.dumps(bad))
