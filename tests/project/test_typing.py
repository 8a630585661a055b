"""Wrong calls that type checkers miss are refused at run time. `make check` runs the checkers on tests/typing, where a
missing error is an error."""

import importlib.util
import pathlib
from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from async_task import AsyncTaskError, InvalidArguments, UnknownMethod, UnknownTarget
from async_task.attempts.ambient import ambient_session

pytestmark = pytest.mark.long

FOLDER = pathlib.Path(__file__).parents[1] / "typing"


def _slips() -> list[Callable[[], None]]:
    spec = importlib.util.spec_from_file_location("slips_past", FOLDER / "slips_past.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    slips: list[Callable[[], None]] = module.SLIPS
    return slips


REFUSALS: dict[str, tuple[type[AsyncTaskError], str]] = {
    "passes_a_session": (InvalidArguments, "leave the session out"),
    "leaves_out_what_a_session_could_be": (InvalidArguments, "missing a required argument: 'value'"),
    "calls_what_is_not_registered": (UnknownTarget, "no method of a registered target"),
    "calls_by_a_wrong_name": (UnknownMethod, "did you mean 'fulfill'"),
    "gives_wrong_arguments_by_name": (InvalidArguments, "token: Input should be a valid string"),
    "gives_a_bool_for_a_number": (InvalidArguments, "number: Input should be a valid integer"),
    "names_an_option_wrongly_in_many": (InvalidArguments, "row 0: create_many: got an unexpected keyword argument"),
}


@pytest.mark.parametrize("slip", _slips(), ids=lambda slip: slip.__name__)
def test_a_wrong_call_that_the_checkers_miss_is_refused_at_run_time(slip: Callable[[], None]) -> None:
    error, why = REFUSALS[slip.__name__]
    with Session() as session, session.begin():
        assert ambient_session() is session
        with pytest.raises(error, match=why):
            slip()
        assert not session.new
