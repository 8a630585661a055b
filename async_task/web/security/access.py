"""What a person may see and do on the dashboard."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from async_task.errors import ConfigurationError, near
from async_task.schema.audit import check_actor

if TYPE_CHECKING:  # a program that only names rights needs no web framework
    from starlette.requests import Request


class Right(StrEnum):
    """One thing that a person may do besides reading. `SEE_ARGS` shows the arguments that are not secret; `REVEAL`
    shows one that is masked or encrypted, and is logged."""

    RETRY = "retry"
    RUN_NOW = "run_now"
    RESCHEDULE = "reschedule"
    EXPIRE = "expire"
    FAIL = "fail"
    CANCEL = "cancel"
    NOTE = "note"
    PAUSE = "pause"
    SEE_ARGS = "see_args"
    REVEAL = "reveal"


@dataclass(frozen=True, slots=True)
class Access:
    """What `authorize` returns: `Access.full("anna@web")`, `Access.read("bob")`, `Access.of("eve", {"retry", "note"})`,
    or `Access.none()` for those who may see nothing.

    `actor`: the name that is written into the events of what the person does, a printable text of 1 to 255 characters;
    empty for none. `rights`: what they may do besides reading. `user`: if it is given, they see only the jobs of this
    user, each by its own link, and change nothing. Raises ConfigurationError for anything else.
    """

    actor: str
    reads: bool
    rights: frozenset[Right] = frozenset()
    user: str | None = None

    def __post_init__(self) -> None:
        _check_flag(self.reads)
        object.__setattr__(self, "rights", _rights_of(self.rights))
        if self.reads:
            check_actor(self.actor)
        elif self.actor or self.rights or self.user is not None:
            raise ConfigurationError("who may not read has no actor, rights or user: write Access.none()")
        _check_user(self.user)
        if self.user is not None and self.rights - {Right.SEE_ARGS}:
            raise ConfigurationError("who sees only their own jobs may see their arguments, and has no other right")

    @classmethod
    def none(cls) -> Self:
        """Neither reading nor anything else."""
        return cls("", reads=False)

    @classmethod
    def read(cls, actor: str, *, user: str | None = None) -> Self:
        """Reading, without arguments, and nothing else."""
        return cls(actor, reads=True, user=user)

    @classmethod
    def full(cls, actor: str) -> Self:
        """Reading and every right."""
        return cls(actor, reads=True, rights=frozenset(Right))

    @classmethod
    def of(cls, actor: str, rights: Iterable[Right | str], *, user: str | None = None) -> Self:
        """Reading and these rights, or their names."""
        return cls(actor, reads=True, rights=_rights_of(rights), user=user)

    def may(self, right: Right) -> bool:
        """Whether the person has this right."""
        return right in self.rights

    def without_rights(self) -> Self:
        """The same person, who only reads."""
        return replace(self, rights=frozenset())


Authorize = Callable[["Request"], Access | Awaitable[Access]]
"""Says what the person behind a request may see and do. A plain function is called on a thread."""


def _check_flag(reads: object) -> None:
    if not isinstance(reads, bool):
        raise ConfigurationError(f"reads is True or False, not {reads!r}")


def _rights_of(given: object) -> frozenset[Right]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigurationError(f"rights are a set of names, {{'retry', 'note'}}, not {given!r}")
    return frozenset(_right_of(one) for one in given)


def _right_of(given: object) -> Right:
    known = [one.value for one in Right]
    if given not in known:
        hint = near(given, known) if isinstance(given, str) else ""
        raise ConfigurationError(f"there is no right {given!r}{hint}: the rights are {', '.join(known)}")
    return Right(given)


def _check_user(user: object) -> None:
    if user is not None and not (isinstance(user, str) and user):
        raise ConfigurationError(f"user is a text that is not empty, or None, not {user!r}")
