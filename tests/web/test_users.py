"""Users and passwords as an environment variable or a file lists them."""

import pytest

from async_task import ConfigurationError
from async_task.web.security.users import hash_password, is_right, names_in, users_in


def test_users_are_listed_in_one_line_or_in_lines_and_a_hash_is_as_good_as_its_password() -> None:
    hashed = hash_password("geheim, ä:1")
    assert users_in("anna:se:cret, bob:x,") == {"anna": "se:cret", "bob": "x"}
    users = users_in(f"# who is on call\n\nanna:se,cret\nbob:{hashed}\n")
    assert users == {"anna": "se,cret", "bob": hashed}
    assert users_in(" \n") == {}
    assert names_in(" bob, eve ,") == {"bob", "eve"}
    assert is_right("geheim, ä:1", hashed)
    assert not is_right("geheim, ä:2", hashed)
    assert not is_right(hashed, hashed)
    assert hash_password("geheim, ä:1") != hashed
    assert (is_right("se,cret", "se,cret"), is_right("se,cre", "se,cret"), is_right("", "x")) == (True, False, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("canary", "user 1 is not written name:password"),
        ("anna:x,:canary", "user 2 is not written name:password"),
        ("anna:x\nbob:", "user 2 is not written name:password"),
        ("anna:canary,anna:x", "user 2 is there twice: 'anna'"),
        ("anna:scrypt:canary", "the hash of user 'anna' is broken"),
        ("anna:scrypt:AAAAAAAAAAAAAAAAAAAAAA==:AAAA", "the hash of user 'anna' is broken"),
        (f"anna:scrypt:AAAAAAAAAAAAAAAAAAAAAA==:{'A' * 43}=!", "the hash of user 'anna' is broken"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_without_its_passwords(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        users_in(text)
    assert words in str(raised.value)
    assert "canary" not in str(raised.value)
