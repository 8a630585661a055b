"""The columns of an attempt that are not to be assigned: those that say what is called are never changed, and its state
is changed by verbs alone."""

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import object_session, validates
from sqlalchemy.orm.attributes import instance_state

from async_task.database.greenlets import may_load
from async_task.errors import InvalidState

UNKNOWN = object()


class WrittenOnce:
    """The half of `BaseAttempt` that refuses to assign them."""

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

    @validates("status", "num_attempts", "updated_at")
    def _changed_by_verbs(self, key: str, value: object) -> object:
        """Of the state these are enough: one of them is other in each copy that is older than its row."""
        state = instance_state(self)
        if state.has_identity:
            known = self.__dict__.get(key, UNKNOWN)
            if value != (self._loaded(key) if known is UNKNOWN else known):
                raise InvalidState(
                    f"{key} is not assigned: verbs change it, as attempt.cancel() and attempt.retry_now(); and a copy "
                    "of an attempt that is older than its row is not merged: session.get() reads it"
                )
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
