"""How often `ensure` writes a call: once for each token, once in each window, or once while it is pending."""

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from async_task.attempts.draft import Draft, length
from async_task.attempts.tokens import argument_token, check_length, window_token
from async_task.database.clock import statement_now
from async_task.encryption.encryptors import NullEncryptor
from async_task.errors import InvalidArguments


class Uniqueness(NamedTuple):
    """`within`: the length of the windows. `until_done`: only what is pending counts. Without both: for ever."""

    within: dt.timedelta | None = None
    until_done: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Uniqueness":
        """What the arguments of `ensure` say. Raises InvalidArguments."""
        within, until_done = arguments.get("within"), arguments.get("until_done", False)
        if not isinstance(until_done, bool):
            raise InvalidArguments(f"until_done: takes True or False, not {type(until_done).__name__}")
        if within is None:
            return cls(None, until_done)
        if until_done:
            raise InvalidArguments("ensure: give within or until_done, not both")
        window = length(within, "within")
        if not window:
            raise InvalidArguments("within: a window is longer than 0 s")
        return cls(window)

    def with_token(self, made: Draft) -> Draft:
        """The draft with a token, made of its arguments if none was given. Raises InvalidArguments."""
        if self == FOR_EVER:
            if made.idempotence_token is None:
                raise InvalidArguments(
                    "ensure: needs idempotence_token=, by which it finds the same attempt again; with within= or "
                    "until_done= equal arguments are enough"
                )
            return made
        if made.idempotence_token is not None:
            check_length(made.idempotence_token)
            return made
        if made.form.sealer.name != NullEncryptor.name:
            raise InvalidArguments(
                "ensure: needs idempotence_token= here: the arguments are encrypted, and a token that is made of them "
                "would tell which are equal"
            )
        return made._replace(idempotence_token=argument_token(made.method_args))

    def in_window(self, made: Draft, connection: Connection) -> Draft:
        """The draft with the token of the window that is open now, by the database's clock."""
        if self.within is None:
            return made
        assert made.idempotence_token is not None
        now: dt.datetime = connection.execute(select(statement_now())).scalar_one()
        return made._replace(idempotence_token=window_token(made.idempotence_token, self.within, now))


FOR_EVER = Uniqueness()
