"""The six columns: made, renamed, found in a table that is there; and what is refused when the class is made."""

import datetime as dt
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, DateTime, Integer, String, Table, Text, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from async_task import Asyncable, ConfigurationError, Processing, asyncable_schema
from async_task.asyncable.columns import NAMES, columns_of
from async_task.schema.columns import Instant

SIX = [*NAMES]


@pytest.fixture(autouse=True)
def _forgotten(registered: None) -> None: ...


@pytest.fixture
def base() -> Iterator[type[Any]]:
    class Base(DeclarativeBase): ...

    yield Base
    Base.registry.dispose()


class Plain:
    id: Mapped[int] = mapped_column(primary_key=True)
    processing = Processing(name="test.columns")

    def process(self) -> None: ...


def names(model: type[Any]) -> list[str]:
    return [column.name for column in columns_of(model).values()]


def test_six_columns_and_the_index_of_the_sweep_are_made(base: Any) -> None:
    class Review(Plain, Asyncable, base):
        __tablename__ = "reviews"

    assert names(Review) == SIX
    assert all(column.nullable for column in columns_of(Review).values())
    assert isinstance(columns_of(Review)["processed_at"].type, Instant)
    assert isinstance(columns_of(Review)["error"].type, Text)
    index = asyncable_schema(Review).index
    assert [column.name for column in index.columns] == ["processed_at", "canceled_at", "last_submitted_at"]
    assert str(index.dialect_options["postgresql"]["where"]) == (
        "reviews.processed_at IS NULL AND reviews.canceled_at IS NULL"
    )


def test_a_column_that_is_named_otherwise_keeps_its_attribute(base: Any) -> None:
    class Review(Plain, Asyncable, base):
        __tablename__ = "reviews"
        __asyncable_columns__: ClassVar = {"submitted_at": "establishment_submitted_at"}

    assert names(Review) == ["establishment_submitted_at", *SIX[1:]]
    assert Review.submitted_at.property.columns[0].name == "establishment_submitted_at"


def test_the_base_may_stand_before_the_mixin(base: Any) -> None:
    class Review(base, Plain, Asyncable):
        __tablename__ = "reviews"

    assert names(Review) == SIX


@pytest.mark.parametrize("where", ["class", "other attribute", "mixin", "declared_attr", "annotation", "table", "base"])
def test_a_column_that_the_class_its_table_or_a_base_has_is_used(base: Any, where: str) -> None:
    given: dict[str, Any] = {"__tablename__": "reviews"}
    bases: tuple[Any, ...] = (Plain, Asyncable, base)
    attribute = "establishment_submitted_at"

    class Mixin:
        establishment_submitted_at: Mapped[dt.datetime | None] = mapped_column(DateTime)

    class Declared:
        @declared_attr
        def establishment_submitted_at(cls) -> Mapped[dt.datetime | None]:
            return mapped_column(DateTime)

    match where:
        case "class":
            given[attribute] = mapped_column(attribute, DateTime)
        case "other attribute":
            given["sent"] = mapped_column(attribute, DateTime)
            attribute = "sent"
        case "mixin":
            bases = (Plain, Asyncable, Mixin, base)
        case "declared_attr":
            bases = (Plain, Asyncable, Declared, base)
        case "annotation":
            given["__annotations__"] = {attribute: Mapped[dt.datetime | None]}
        case "table":
            del given["__tablename__"]
            others = [Column(name, DateTime) for name in SIX[1:5]]
            key = Column("id", Integer, primary_key=True)
            columns = (key, Column(attribute, DateTime), *others, Column("error", String(40)))
            given["__table__"] = Table("reviews", base.metadata, *columns)
            bases = (Asyncable, base)
            given |= {"process": Plain.process, "processing": Plain.processing}
        case "base":

            class Parent(base):
                __tablename__ = "reviews"
                id: Mapped[int] = mapped_column(primary_key=True)
                establishment_submitted_at: Mapped[dt.datetime | None] = mapped_column(DateTime)

            del given["__tablename__"]
            bases = (Asyncable, Parent)
            given |= {"process": Plain.process, "processing": Plain.processing}
    named = {"__asyncable_columns__": {"submitted_at": "establishment_submitted_at"}}
    model: Any = type("Review", bases, {"__module__": __name__, **given, **named})
    table = model.__table__
    assert [column.name for column in table.columns if column.name == "establishment_submitted_at"] != []
    assert "submitted_at" not in table.columns
    assert len(table.columns) == 7
    assert columns_of(model)["submitted_at"].type._type_affinity is DateTime
    row = model()
    row.submitted_at = dt.datetime(2026, 10, 25)
    assert getattr(row, attribute) == row.submitted_at
    assert row.is_submitted
    assert inspect(model).get_property_by_column(table.c.establishment_submitted_at).key in (attribute, "submitted_at")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"submited_at": "x"},
            "names a column 'submited_at' (did you mean 'submitted_at'?): an Asyncable has",
        ),
        ({"error": ""}, "the name of error is a printable text of 1 to 63 characters, not ''"),
        ({"error": 7}, "the name of error is a printable text"),
        ({"error": "x" * 64}, "the name of error is a printable text"),
        ({"error": "failure", "canceled_at": "failure"}, "canceled_at and error are both the column 'failure'"),
        ({"submitted_at": "attempted_at"}, "submitted_at and attempted_at are both the column 'attempted_at'"),
        (["submitted_at"], "is a mapping of columns to their names"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused_when_the_class_is_made(base: Any, given: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        type("Review", (Plain, Asyncable, base), {"__tablename__": "reviews", "__asyncable_columns__": given})
    assert words in str(refused.value)


def test_a_column_that_the_table_does_not_have_is_refused_when_the_class_is_made(base: Any) -> None:
    columns = [Column(name, DateTime) for name in ("establishment_submited_at", *SIX[1:])]
    given = {
        "__table__": Table("reviews", base.metadata, Column("id", Integer, primary_key=True), *columns),
        "__asyncable_columns__": {"submitted_at": "establishment_submitted_at"},
    }
    with pytest.raises(ConfigurationError) as refused:
        type("Review", (Asyncable, base), given)
    assert str(refused.value) == (
        "Review: submitted_at is the column 'establishment_submitted_at', which reviews does not have "
        "(did you mean 'establishment_submited_at'?)"
    )


def test_an_attribute_of_the_users_that_hides_a_column_is_refused(base: Any) -> None:
    class Hiding:
        __asyncable_columns__: ClassVar = {"submitted_at": "establishment_submitted_at"}

    given = {"__tablename__": "reviews", "submitted_at": mapped_column(DateTime)}
    with pytest.raises(ConfigurationError, match="submitted_at is the column 'establishment_submitted_at', which"):
        type("Review", (Hiding, Plain, Asyncable, base), given)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"interval": 0}, "interval is longer than 0 s"),
        ({"interval": 7200, "window": 3600}, "window is at least as long as the interval"),
        ({"mode": "loose"}, "mode is 'locked' or 'leased', not 'loose'"),
        ({"queue": ""}, "queue"),
        ({"priority": 10}, "priority"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Processing(**settings)


def test_a_process_that_cannot_be_called_is_refused(base: Any) -> None:
    def takes_two(self: Any, session: Any, other: Any) -> None: ...
    def takes_session(self: Any, session: Any) -> None: ...

    leased = Processing(name="test.columns", mode="leased")
    for name, process, processing, words in (
        ("Two", takes_two, Processing(name="test.two"), r"process\(\) takes session, other: it is called without"),
        ("Leased", takes_session, leased, r"process\(session\) is for mode='locked'"),
    ):
        given = {"__tablename__": name, "process": process, "processing": processing}
        with pytest.raises(ConfigurationError, match=words):
            type(name, (Plain, Asyncable, base), given)

    class Lacking(Asyncable, base):
        __tablename__ = "lacking"
        processing = Processing(name="test.lacking")
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ConfigurationError, match=r"Lacking lacks process\(\)"):
        Lacking().submit_for_processing()
    with pytest.raises(ConfigurationError, match=r"give its job a name, processing = Processing\(name=...\)"):

        class Nameless(Asyncable, base):
            __tablename__ = "nameless"
            id: Mapped[int] = mapped_column(primary_key=True)


def test_label_path_and_user_can_be_overridden(base: Any) -> None:
    class Review(Plain, Asyncable, base):
        __tablename__ = "reviews"

    row = Review(id=17)
    assert (row.label, row.path, row.asyncable_user) == ("Review 17", "/jobs/test.columns/17", None)
    assert (row.sanitized_error, row.asyncable_status) == (None, "not_yet_submitted")
    row.error = "Refused: Ada Lovelace, born 1815"
    assert row.sanitized_error == "Refused"


def test_the_scopes_are_statements_that_combine(base: Any) -> None:
    class Review(Plain, Asyncable, base):
        __tablename__ = "reviews"
        office: Mapped[str]

    of_paris = Review.requires_processing().where(Review.office == "Paris", ~Review.is_attempted).limit(10)
    assert "office = " in str(of_paris)
    assert "attempted_at IS NULL" in str(of_paris)
    both = Review.processable().where(Review.with_error().whereclause)
    assert "error IS NOT NULL" in str(both)
    assert str(Review.processed()).endswith("WHERE reviews.processed_at IS NOT NULL")
