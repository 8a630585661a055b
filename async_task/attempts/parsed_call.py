"""A call as a person writes it: a name, and arguments in JSON."""

from typing import Any, TypedDict

from async_task.errors import InvalidArguments, UnknownTarget, near
from async_task.targets.registry import registered_targets, target_named
from async_task.targets.target import Method, call_name


class ParsedCall(TypedDict):
    """The arguments of `Attempt.create` that say what is called."""

    target: str
    method_name: str
    method_args: dict[str, Any]


def parse_call(call: str, arguments: str = "{}") -> ParsedCall:
    """Read a call that a person has written, for `Attempt.create(**parse_call(...))`.

    `call`: the name of a target that is called itself, or `target.method`. `arguments`: a JSON object with the
    arguments by name, in which each value becomes what its annotation says: "2026-10-25" a date, a list a tuple, an
    object a dataclass, "19.90" or 19.90 a Decimal with these digits.

        parse_call("shop.orders.fulfill", '{"order_number": 17}')

    Raises UnknownTarget with the nearest name, UnknownMethod, and InvalidArguments, which repeats no value.
    """
    method = method_named(call)
    if not isinstance(arguments, (str, bytes, bytearray)):
        raise InvalidArguments(f"arguments: takes a text in JSON, not {type(arguments).__name__}")
    values: dict[str, Any] = method.signature.read(arguments)
    return {"target": method.target.name, "method_name": method.name, "method_args": values}


def method_named(call: object) -> Method:
    """The method that a call names as a person writes it. Raises UnknownTarget, UnknownMethod and InvalidArguments."""
    if not isinstance(call, str):
        raise InvalidArguments(f"a call is a text, as 'shop.orders.fulfill', not {type(call).__name__}")
    try:
        return target_named(call).method(None)
    except UnknownTarget:
        target, _, method = call.rpartition(".")
    try:
        return target_named(target).method(method)
    except UnknownTarget:
        raise UnknownTarget(f"no target is registered as {call!r}{near(call, _calls())}") from None


def _calls() -> list[str]:
    found = [(one.name, name) for one in registered_targets() for name in one.own_callables()]
    return [call_name(*one) for one in found]
