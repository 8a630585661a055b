"""What is stored and logged of an exception: safe whatever it does, and without arguments that are secret."""

import traceback
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

LONGEST_MESSAGE, LONGEST_TRACEBACK, SHORTEST_SECRET = 2_000, 20_000, 3
HIDDEN = "[hidden]"


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in words: `summary` for one line, `trace` for those who look closer (no locals)."""

    summary: str
    trace: str


def describe(error: BaseException, secrets: Collection[str] = ()) -> Failure:
    """`error` in words, without any of `secrets`. Never raises, whatever the exception's own methods do."""
    _hide_parameters(error)
    summary = _hide(f"{type(error).__qualname__}: {_said(error)}".removesuffix(": "), secrets)
    try:
        # The library's own frames say nothing of the call.
        trace = "".join(traceback.TracebackException.from_exception(error, compact=True).format())
    except Exception:
        trace = summary
    return Failure(_cut(summary, LONGEST_MESSAGE), _cut(_hide(trace, secrets), LONGEST_TRACEBACK))


def secrets_in(arguments: Mapping[str, object], names: Collection[str] | None) -> frozenset[str]:
    """The texts by which the values of these arguments would be recognised; `names` None: of all of them."""
    values = [value for name, value in arguments.items() if names is None or name in names]
    found = {text for value in values for text in _texts(value) if len(text) >= SHORTEST_SECRET}
    return frozenset(found | {repr(text)[1:-1] for text in found})


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, bytes):
        yield from (value.decode("utf-8", "replace"), repr(value)[2:-1])
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _texts(vars(value))
        yield str(value)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:
        return f"(its __str__ raised {type(broken).__name__})"


def _hide_parameters(error: BaseException) -> None:
    """SQLAlchemy puts a statement's parameters into its texts unless it is told not to."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if hasattr(one, "hide_parameters"):
            one.hide_parameters = True
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def _hide(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    # PostgreSQL's text takes neither.
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _cut(text: str, longest: int) -> str:
    return (
        text
        if len(text) <= longest
        else f"{text[: longest // 2]}\n[... {len(text) - longest} characters ...]\n{text[-longest // 2 :]}"
    )
