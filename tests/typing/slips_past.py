"""What is wrong and no type checker says so. tests/test_typing.py runs each, and sees it refused when it is called."""

from collections.abc import Callable

from sqlalchemy.orm import Session

from async_task import Attempt, target


@target("slips.client")
class Client:
    @staticmethod
    def fulfill(token: str, number: int = 0) -> None: ...


@target("slips.book")
def book(session: Session, number: int) -> None: ...


@target("slips.anything")
def anything(value: object, number: int = 0) -> None: ...


def stranger(number: int) -> None: ...


def passes_a_session() -> None:
    # The session is handed in when performing. Both checkers take the second overload, where it is a parameter.
    Attempt.call(book, Session(), 1)


def leaves_out_what_a_session_could_be() -> None:
    # `object` could be a session, so that pyright takes the first overload. mypy sees it.
    Attempt.call(anything)  # type: ignore[call-overload]


def calls_what_is_not_registered() -> None:
    # Registering leaves no trace in a type.
    Attempt.call(stranger, 1)


def calls_by_a_wrong_name() -> None:
    # Names and arguments in texts and mappings are not looked at.
    Attempt.create(target=Client, method_name="fulfil", method_args={"token": "t"})


def gives_wrong_arguments_by_name() -> None:
    Attempt.create(target=Client, method_name="fulfill", method_args={"token": 7})


def gives_a_bool_for_a_number() -> None:
    # A bool is an int to a type checker; it would come back as a bool, and is refused.
    Attempt.call(book, True)


def names_an_option_wrongly_in_many() -> None:
    Attempt.create_many(Session(), [{"target": Client, "method_nmae": "fulfill"}])


SLIPS: list[Callable[[], None]] = [
    passes_a_session,
    leaves_out_what_a_session_could_be,
    calls_what_is_not_registered,
    calls_by_a_wrong_name,
    gives_wrong_arguments_by_name,
    gives_a_bool_for_a_number,
    names_an_option_wrongly_in_many,
]
