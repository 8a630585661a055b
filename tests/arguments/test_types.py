"""Which classes can be registered, by `@argument_type` and by the annotations of targets."""

import collections
import dataclasses
import enum
import importlib
import pathlib
import sys
import typing
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar

import pydantic
import pytest
import typing_extensions
from typing_extensions import TypeAliasType

from async_task import argument_type
from async_task.arguments import types as argument_types
from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.arguments.types import register_annotation
from async_task.errors import ConfigurationError
from stored_values import (
    Box,
    Customer,
    Hero,
    Line,
    MappedLine,
    StrayLine,
    StrayPair,
    T,
    assert_survives,
)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argument_types, "_by_class", dict(argument_types._by_class))
    monkeypatch.setattr(argument_types, "_by_name", dict(argument_types._by_name))


def is_registered(cls: type) -> bool:
    return argument_types.of_class(cls) is not None


@pytest.mark.usefixtures("registry")
def test_a_class_inside_a_function_needs_a_name() -> None:
    class Local(enum.Enum):
        ONE = 1

    with pytest.raises(ConfigurationError, match=r"Local is defined inside a function.*argument_type\(name=\.\.\.\)"):
        argument_type(Local)
    assert argument_type(Local, name="local") is Local
    assert argument_type(Local) is Local
    assert decode(encode({"it": Local.ONE})) == {"it": Local.ONE}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("module", ["__main__", "__mp_main__"])
def test_a_class_in_main_needs_a_name(module: str) -> None:
    script = enum.Enum("Script", "ONE", module=module)
    with pytest.raises(
        ConfigurationError, match=rf"{module}:Script is defined in __main__, where no worker can find it"
    ):
        argument_type(script)
    argument_type(script, name="script")


@pytest.mark.usefixtures("registry")
def test_two_classes_cannot_share_a_name() -> None:
    argument_type(StrayLine, name="line")
    with pytest.raises(ConfigurationError, match=r"StrayPair cannot be registered as 'line', because .*Line is"):
        argument_type(StrayPair, name="line")
    with pytest.raises(ConfigurationError, match=r"'tuple' cannot be the name"):
        argument_type(StrayPair, name="tuple")
    with pytest.raises(ConfigurationError, match=r"'' cannot be the name"):
        argument_type(StrayPair, name="")


@pytest.mark.usefixtures("registry")
def test_a_class_with_two_names_is_written_under_the_newer_and_read_under_both() -> None:
    old = encode({"it": Line(1)})
    argument_type(Line, name="order.line")
    argument_type(Line)
    assert '"order.line"' in encode({"it": Line(1)})
    assert decode(old) == decode(encode({"it": Line(1)})) == {"it": Line(1)}


@pytest.mark.usefixtures("registry")
def test_a_module_can_be_reloaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reloaded_shop.py").write_text(
        "import enum\nfrom async_task import argument_type\n"
        "@argument_type\nclass Size(enum.Enum):\n    S = 1\n"
        '@argument_type(name="shop.shape")\nclass Shape(enum.Enum):\n    ROUND = 1\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shop = importlib.import_module("reloaded_shop")
    try:
        text = encode({"it": [shop.Size.S, shop.Shape.ROUND]})
        shop = importlib.reload(shop)
        assert decode(text) == {"it": [shop.Size.S, shop.Shape.ROUND]}
        assert encode({"it": [shop.Size.S, shop.Shape.ROUND]}) == text
    finally:
        del sys.modules["reloaded_shop"]


class Undecorated:
    pass


@dataclasses.dataclass
class Sack(dict[str, int]):
    x: int = 0


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Customer, "^Customer is a mapped class: pass its id$"),
        (MappedLine, "^MappedLine is a mapped class: pass its id$"),
        (Hero, "^Hero is a mapped class: pass its id$"),
        (Undecorated, r"Undecorated is not an Enum, a dataclass, a NamedTuple or a pydantic model: make it one"),
        (dict, "builtins:dict is not an Enum"),
        (Sack, "Sack is a dataclass that extends a builtin type, whose contents are no field: put them into one"),
        (Line(1), "^argument_type takes a class, and was given a Line$"),
    ],
)
def test_only_the_four_kinds_can_be_registered(cls: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        argument_type(cls)


class Inner(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class Outer:
    inner: "list[Inner] | None"
    again: "Outer | None"
    pair: "Couple"
    init: dataclasses.InitVar[int] = 0


class Couple(NamedTuple):
    shape: "Shape"


class Shape(pydantic.BaseModel):
    rights: "dict[str, Annotated[Deep, 'a note']]"
    parent: "Shape | None" = None


class Deep(enum.Flag):
    A = 1


class Options(TypedDict, total=False):
    inner: typing.NotRequired[Inner]


class ExtendedOptions(typing_extensions.TypedDict):
    inner: typing_extensions.NotRequired[typing_extensions.ReadOnly[Inner]]


class Referring(NamedTuple):
    missing: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


class ReferringModel(pydantic.BaseModel):
    missing: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


@dataclasses.dataclass
class Carrier:
    customer: Customer


InnerId = NewType("InnerId", Inner)
Json = TypeAliasType("Json", "list[Json] | Inner")  # type: ignore[misc]
Listed = TypeAliasType("Listed", list[T], type_params=(T,))
Bound = TypeVar("Bound", bound=Inner)


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "annotation",
    [
        Inner,
        Inner | None,
        Optional[Inner],  # noqa: UP045
        typing.Union[int, Inner],  # noqa: UP007
        list[Inner],
        dict[str, list[Inner]],
        dict[Inner, int],
        tuple[int, Inner],
        tuple[Inner, ...],
        typing.Sequence[Inner],
        collections.abc.Mapping[str, Inner],
        frozenset[Inner],
        Annotated[Inner, "a note", 1],
        Annotated[list[Inner] | None, "a note"],
        Literal[Inner.ONE, "text"],
        typing.Final[Inner],
        collections.abc.Callable[[Inner], None],
        InnerId,
        Json,
        Listed[Inner],
        Bound,
        Options,
        ExtendedOptions,
        Box[Inner],
        Outer,
    ],
    ids=str,
)
def test_a_class_is_registered_wherever_it_is_in_an_annotation(annotation: object) -> None:
    assert not is_registered(Inner)
    register_annotation(annotation)
    assert is_registered(Inner)


@pytest.mark.usefixtures("registry")
def test_the_classes_in_fields_are_registered_also_recursive_ones() -> None:
    register_annotation(Outer)
    assert all(map(is_registered, [Outer, Inner, Couple, Shape, Deep]))
    value = Outer([Inner.ONE], Outer(None, None, Couple(Shape(rights={}))), Couple(Shape(rights={"a": Deep.A})))
    assert_survives(value)


@pytest.mark.usefixtures("registry")
def test_a_generic_model_is_registered_by_its_parameters() -> None:
    register_annotation(Page[Inner] | Page[int])
    assert is_registered(Inner)
    assert_survives([Page[Inner](items=[Inner.ONE]), Page[int](items=[1])])


@pytest.mark.usefixtures("registry")
def test_a_registered_class_keeps_its_name_in_an_annotation() -> None:
    argument_type(Inner, name="inner")
    register_annotation(list[Inner])
    assert encode({"it": Inner.ONE}) == '{"it": {"$": "inner", "v": "ONE"}}'


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "annotation", [None, int, Any, object, typing.Callable[..., int], type[Customer], T, ..., Literal["text"], list]
)
def test_an_annotation_without_such_a_class_registers_nothing(annotation: object) -> None:
    before = dict(argument_types._by_name)
    register_annotation(annotation)
    assert argument_types._by_name == before


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("annotation", [Customer, list[Customer] | None, Carrier, Annotated[Customer, 1], MappedLine])
def test_a_mapped_class_is_refused_wherever_it_is_in_an_annotation(annotation: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^(Customer|MappedLine) is a mapped class: pass its id$"):
        register_annotation(annotation)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("annotation", ["Nowhere", list["Nowhere"], Referring, ReferringModel])  # noqa: F821
def test_an_annotation_that_cannot_be_resolved_is_refused(annotation: object) -> None:
    with pytest.raises(
        ConfigurationError, match=r"the annotation 'Nowhere' cannot be resolved: import it outside of TYPE_CHECKING"
    ):
        register_annotation(annotation)


@pytest.mark.usefixtures("registry")
def test_a_local_class_in_an_annotation_is_refused() -> None:
    local = enum.Enum("local", "ONE", qualname="f.<locals>.local", module=__name__)
    with pytest.raises(ConfigurationError, match=r"inside a function"):
        register_annotation(list[local])  # type: ignore[valid-type]
