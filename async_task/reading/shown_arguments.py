"""The arguments of an attempt, as far as they may be shown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from async_task.arguments.decoding import decode, read_stored
from async_task.encryption.ciphers import key_id_stored
from async_task.encryption.encryptors import NullEncryptor, context_of, encryptor_named, unseal
from async_task.error_text import HIDDEN
from async_task.errors import AsyncTaskError, InvalidArguments
from async_task.targets.registry import target_named
from async_task.targets.target import call_name


@dataclass(frozen=True, slots=True)
class ShownArguments:
    """What may be shown of the arguments of one attempt.

    `values` (as Python has them) and `stored` (as JSON has them), by name; the value of an argument that the target
    redacts is "[hidden]", and all values are where this process does not know the target. Both are None where the
    arguments are encrypted and were not to be decrypted, and where they cannot be read. `why_hidden`, and `problem` why
    they cannot be read: in words. `encryptor` and `key_id`: what they are encrypted with; `key_id` is None without a
    key. `length`: of the stored text, in characters.
    """

    values: Mapping[str, Any] | None
    stored: Mapping[str, Any] | None
    why_hidden: str | None
    encryptor: str
    key_id: str | None
    length: int
    problem: str | None = None


def shown_arguments(attempt: Any, *, decrypt: bool) -> ShownArguments:
    """Of an instance of the model, whatever its row holds. Raises UnknownEncryptor and DecryptionFailed, with `decrypt`
    only."""
    text, is_encrypted = attempt.encoded_args or "", attempt.encryptor != NullEncryptor.name
    facts = (attempt.encryptor, key_id_stored(text) if is_encrypted else None, len(text))
    if attempt.is_pruned:
        return ShownArguments(None, None, None, *facts, problem="the attempt was pruned: only its token is kept")
    if is_encrypted and not decrypt:
        return ShownArguments(None, None, None, *facts)
    if is_encrypted:
        context = context_of(attempt.id, attempt.target, attempt.method_name)
        text = unseal(text, encryptor_named(attempt.encryptor), context)
    try:
        stored = read_stored(text)
    except InvalidArguments as problem:
        return ShownArguments(None, None, None, *facts, problem=str(problem))
    hidden, why = _hidden(attempt, stored)
    try:
        values: Mapping[str, Any] = decode(text)
    except AsyncTaskError:
        values = stored  # made of a type that this process does not know
    return ShownArguments(_masked(values, hidden), _masked(stored, hidden), why, *facts)


def _hidden(attempt: Any, names: Iterable[str]) -> tuple[frozenset[str], str | None]:
    """The names of what must not be shown, and why."""
    try:
        redacted = target_named(attempt.target).method(attempt.method_name).policy.redact or frozenset()
    except AsyncTaskError:
        # Its policy says what may be shown, and cannot be asked here.
        call = call_name(attempt.target, attempt.method_name)
        return frozenset(names), f"{call} is not known here, nor what it redacts: name its app or module"
    return redacted, "by its target's policy" if redacted & set(names) else None


def _masked(values: Mapping[str, Any], hidden: frozenset[str]) -> dict[str, Any]:
    return {name: HIDDEN if name in hidden else value for name, value in values.items()}
