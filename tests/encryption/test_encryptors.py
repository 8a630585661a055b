"""Encryptors: those of installed packages, and the errors that they raise while sealing and unsealing."""

import asyncio
import base64
import pathlib
import sys
import tomllib
from collections.abc import Callable, Iterator

import pytest
from greenlet import GreenletExit
from sqlalchemy import Engine

from async_task import (
    AesGcmEncryptor,
    AsyncTask,
    Attempt,
    ConfigurationError,
    DecryptionFailed,
    Succeeded,
    check_encryptor,
)
from async_task.encryption import encryptors
from async_task_cli.signals import Terminated
from clockwork import row_of
from outbox import calls
from vaults import (
    CANARY,
    CONTEXT,
    OLD,
    Panic,
    Raising,
    Vault,
    change,
    parked,
)

pytestmark = pytest.mark.usefixtures("own_encryptors")
Write = Callable[..., Attempt]
EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "envelope"


@pytest.fixture
def installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package as if it were installed, until the test ends."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    folder = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in groups[group].items()) for group in groups
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(EXAMPLE)])
    yield
    sys.modules.pop("envelope_encryptor", None)


def test_an_installed_package_provides_an_encryptor_by_its_entry_point(
    installed: None, app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVELOPE_KEYS", OLD.text)
    attempt = write(Vault, "keep", {"card": CANARY}, encryptor="envelope")
    row = row_of(engine, attempt.id)
    assert row.encryptor == "envelope"
    assert CANARY.encode() not in base64.b64decode(row.method_args)
    assert isinstance(app.perform(attempt.id), Succeeded)
    assert calls == [CANARY]


def test_the_example_encryptor_conforms_and_sends_its_service_only_data_keys(installed: None) -> None:
    import envelope_encryptor  # type: ignore[import-not-found]

    seen: list[bytes] = []
    cipher = AesGcmEncryptor([OLD])

    def wrap(key: bytes, context: bytes) -> bytes:
        seen.append(key)
        return cipher.encrypt(key, context=context)

    check_encryptor(
        envelope_encryptor.EnvelopeEncryptor(wrap, lambda key, context: cipher.decrypt(key, context=context))
    )
    assert {len(key) for key in seen} == {32}
    assert len(set(seen)) == len(seen)


def test_an_entry_point_that_cannot_be_loaded_parks_the_attempt(
    installed: None, app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "envelope_encryptor", None)
    attempt = write(Vault, "keep", {"card": "4111"})
    change(engine, attempt, encryptor="envelope")
    assert "UnknownEncryptor: the encryptor 'envelope' is installed as envelope_encryptor:EnvelopeEncryptor" in parked(
        app, engine, attempt
    )


def test_the_wheel_does_not_contain_the_example_package() -> None:
    built = tomllib.loads((EXAMPLE.parents[1] / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    wheel = built["wheel"]
    assert not [one for one in [*wheel["packages"], *wheel["force-include"]] if "envelope" in one or one == "examples"]


@pytest.mark.parametrize(
    "broken",
    [
        Raising(ValueError(CANARY)),
        Raising(Panic(CANARY)),
        Raising(answer=b"\xff" + CANARY.encode()),
        Raising(DecryptionFailed("no")),
    ],
)
def test_the_error_of_an_encryptor_is_raised_again_without_its_cause(broken: Raising) -> None:
    if broken.error is not None:
        broken.error.__context__ = ValueError(CANARY)
    with pytest.raises(DecryptionFailed) as raised:
        encryptors.unseal("eA==", broken, CONTEXT)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    with pytest.raises(ConfigurationError, match=r"could not encrypt the arguments \(ValueError\)") as refused:
        encryptors.seal("{}", Unsealing(ValueError(CANARY)), CONTEXT)
    assert (refused.value.__cause__, refused.value.__context__) == (None, None)


class Unsealing(Raising):
    """An encryptor that does not encrypt either."""

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return self.decrypt(plaintext, context=context)


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), GreenletExit(), Terminated()]
)
def test_what_ends_a_process_thread_or_coroutine_passes_through_sealing(end: BaseException) -> None:
    for work in (encryptors.seal, encryptors.unseal):
        with pytest.raises(type(end)) as raised:
            work("eA==", Unsealing(end), CONTEXT)
        assert raised.value is end
