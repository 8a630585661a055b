"""The job of a class, on the allow-list of targets."""

import inspect
from typing import TYPE_CHECKING

from async_task.asyncable.chain import name_of
from async_task.asyncable.target import ProcessTarget, RowProcessor, takes_session
from async_task.errors import ConfigurationError
from async_task.targets.answers import refuse_generator
from async_task.targets.registry import registered_targets, target
from async_task.targets.retry import Retry

if TYPE_CHECKING:
    from async_task.asyncable.asyncable import Asyncable


def register(model: "type[Asyncable]") -> None:
    """Put the job of these rows on the allow-list. Raises ConfigurationError."""
    refuse_generator(model.process, f"{model.__name__}.process()")
    processing = model.processing
    retry = Retry.every(processing.interval)
    target(_target_of(model), name=name_of(model), mode="leased", retry=retry)


def registered_asyncables() -> "list[type[Asyncable]]":
    """The classes that are their own jobs, as far as this process knows them."""
    return [one.thing.model for one in registered_targets() if isinstance(one.thing, RowProcessor)]


def _target_of(model: "type[Asyncable]") -> "RowProcessor":
    if not takes_session(model):
        return ProcessTarget(model)
    if model.processing.mode == "leased":
        raise ConfigurationError(
            f"{model.__name__}: process(session) is for mode='locked': with 'leased' no transaction is open"
        )
    if not inspect.iscoroutinefunction(model.process):
        return ProcessTarget(model)
    from async_task.asyncable.async_target import AsyncProcessTarget

    return AsyncProcessTarget(model)
