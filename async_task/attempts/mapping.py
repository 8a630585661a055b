"""Which bases a model of attempts can be mapped on."""

import sys
from dataclasses import is_dataclass
from typing import Any

from sqlalchemy.orm import MappedAsDataclass

from async_task.errors import ConfigurationError


def check_base(model: type[Any]) -> None:
    """Raise ConfigurationError for a base whose own `__init__` takes fields: a dataclass, or a model of Pydantic, as
    those of SQLModel are."""
    if issubclass(model, MappedAsDataclass) or is_dataclass(model):
        raise ConfigurationError(
            f"{model.__name__}: create() writes the columns of an attempt, not the __init__ of a dataclass: "
            "map it on a base without MappedAsDataclass (it may share that base's metadata and registry)"
        )
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(model, pydantic.BaseModel):
        raise ConfigurationError(
            f"{model.__name__}: create() writes the columns of an attempt, not the fields of a Pydantic model: map it "
            "on a declarative base beside SQLModel: class Base(DeclarativeBase): metadata = SQLModel.metadata"
        )
