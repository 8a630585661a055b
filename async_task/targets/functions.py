"""The functions that an object offers, found without running any of its code."""

import inspect
import types
from collections.abc import Callable
from typing import Any


def functions_of(thing: object) -> list[Callable[..., Any]]:
    """The public functions that the attributes of a class, module or instance hold under the functions' own names.

    What only a property or `__getattr__` would return is not among them. Nor is a method that is bound to `thing`,
    which names it as its `__self__`.
    """
    found: list[Callable[..., Any]] = []
    for name, held in _attributes(thing).items():
        value: Any = held.__func__ if type(held) is staticmethod else held
        if not name.startswith("_") and is_function(value) and value.__name__ == name:
            found.append(value)
    return found


def is_function(value: Any) -> bool:
    """Whether `value` is a function, a builtin one, or a function bound to an object.

    Its type alone decides: a lazy proxy would run code to answer `isinstance`."""
    kind = type(value)
    if kind is types.MethodType:
        return type(value.__func__) is types.FunctionType
    return kind is types.FunctionType or kind is types.BuiltinFunctionType


def _attributes(thing: Any) -> dict[str, Any]:
    if inspect.isroutine(thing):
        return {}
    if inspect.ismodule(thing):
        return dict(vars(thing))
    if inspect.isclass(thing):
        return class_attributes(thing)
    # A plain function of its class is bound when it is read from the instance.
    unbound = {name: held for name, held in class_attributes(type(thing)).items() if not _is_plain(held)}
    return {**unbound, **own_attributes(thing)}


def class_attributes(cls: type) -> dict[str, Any]:
    """The attributes of a class and its bases, as they hold them."""
    found: dict[str, Any] = {}
    for one in reversed(cls.__mro__):
        found.update(vars(one))
    return found


def _is_plain(held: object) -> bool:
    return type(held) is types.FunctionType


def own_attributes(instance: object) -> dict[str, Any]:
    """The attributes that an instance or module has itself."""
    try:
        return dict(object.__getattribute__(instance, "__dict__"))
    except AttributeError:
        return {}
