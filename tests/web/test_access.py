"""What a person may see and do, as `authorize` says it."""

import subprocess
import sys
from typing import Any

import pytest

from async_task import Access, ConfigurationError, Right


def test_each_kind_of_access_allows_what_it_names_and_read_only_takes_the_rights_away() -> None:
    some = Access.of("eve", ["retry", Right.NOTE])
    assert (Access.none().reads, Access.none().rights) == (False, frozenset())
    assert (Access.read("bob").reads, Access.read("bob").rights) == (True, frozenset())
    assert (some.reads, some.rights, some.user) == (True, {Right.RETRY, Right.NOTE}, None)
    assert Access.of("ada", {"see_args"}, user="c-81").without_rights() == Access.read("ada", user="c-81")
    assert (some.may(Right.RETRY), some.may(Right.CANCEL)) == (True, False)
    assert all(Access.full("anna").may(right) for right in Right)
    assert some.without_rights() == Access.read("eve")
    assert Access.none().without_rights() == Access.none()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"actor": "", "reads": True}, "an actor is a printable text"),
        ({"actor": "an\nna", "reads": True}, "an actor is a printable text"),
        ({"actor": "anna", "reads": 1}, "reads is True or False"),
        ({"actor": "anna", "reads": False}, "write Access.none()"),
        ({"actor": "", "reads": False, "rights": {"retry"}}, "write Access.none()"),
        ({"actor": "", "reads": False, "user": "c-81"}, "write Access.none()"),
        ({"actor": "anna", "reads": True, "rights": "retry"}, "rights are a set of names"),
        ({"actor": "anna", "reads": True, "rights": None}, "rights are a set of names"),
        ({"actor": "anna", "reads": True, "rights": {"retri"}}, "did you mean 'retry'"),
        ({"actor": "anna", "reads": True, "rights": [7]}, "there is no right 7"),
        ({"actor": "anna", "reads": True, "rights": {"retry"}, "user": "c-81"}, "has no other right"),
        ({"actor": "anna", "reads": True, "user": ""}, "user is a text that is not empty"),
    ],
)
def test_access_that_cannot_be_meant_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Access(**given)
    assert words in str(raised.value)


def test_naming_rights_needs_no_web_framework() -> None:
    program = "import sys; from async_task import Access, Right; print('starlette' in sys.modules, Right.RETRY)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "False retry\n"
