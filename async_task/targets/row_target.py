"""The target of a class whose rows are their own jobs."""

from typing import Any, ClassVar

from sqlalchemy.orm import Session


class RowTarget:
    """What is registered as the target of a class: it does the work of its rows. People are told of these rows, and not
    of the attempts."""

    tells_users: ClassVar[bool] = False
    """Whether it sends the messages about its rows itself, in the transactions of the outcomes."""

    def __init__(self, model: type[Any]) -> None:
        self.model = model
        self.__module__, self.__qualname__ = model.__module__, model.__qualname__  # those of a reloaded class

    def row_to_tell_of(self, session: Session, key: Any, *, has_failed: bool) -> Any:
        """The row with this key, after the commit of a try that has failed or of a success; None if its user is told
        nothing of that. Only called if it does not tell users itself."""
        raise NotImplementedError(f"{type(self).__name__} has no row_to_tell_of()")
