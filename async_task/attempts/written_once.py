"""The columns of an attempt that say what is called, and are never changed."""

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import object_session, validates
from sqlalchemy.orm.attributes import instance_state

from async_task.database.greenlets import may_load
from async_task.errors import InvalidState

UNKNOWN = object()


class WrittenOnce:
    """The half of `BaseAttempt` that refuses to change them."""

    @validates(
        "id", "target", "method_name", "encoded_args", "encryptor", "order_key", "scheduled_at", "created_at",
        "call_settings",
    )  # fmt: skip
    def _written_once(self, key: str, value: object) -> object:
        known, state = self.__dict__.get(key, UNKNOWN), instance_state(self)
        if known is UNKNOWN and (state.has_identity or state.pending):  # what `create` left out is written too
            known = self._loaded(key) if state.has_identity else None
        if known is not UNKNOWN and value != known:
            raise InvalidState(f"{key} is written once: create another attempt, and cancel this one")
        return value

    def _loaded(self, key: str) -> object:
        """The stored value of an attribute that is not loaded. A merge into an expired or deferred one sets the value
        that it has. None if it cannot be loaded here: then nothing merges into it either."""
        session = object_session(self)
        if session is None or not may_load(session.get_bind(instance_state(self).mapper)):
            return None
        try:
            return getattr(self, key)
        except SQLAlchemyError:  # deleted, for example
            return None
