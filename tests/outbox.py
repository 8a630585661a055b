"""The targets of the tests. They leave traces in the memory of this process and in the `effects` table."""

import asyncio
import ctypes
import faulthandler
import functools
import gc
import hashlib
import inspect
import os
import pathlib
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from async_task import (
    Again,
    AsyncTask,
    BaseAttempt,
    Discard,
    JobEvent,
    Retry,
    RetryAfter,
    current_attempt,
    policy,
    target,
)
from async_task.encryption.encryptors import register_encryptor

more_metadata = MetaData()
effects = Table(
    "effects",
    more_metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("attempt_id", String(36)),
    Column("number", Integer),
    Column("what", String(200)),
)
calls: list[Any] = []
"""The calls of this process; emptied before each test."""


class Broken(Exception):
    """Raised by the targets here."""


@target("test.client", retry=Retry.every(60))
class Client:
    """A client with effects outside the database: static, class and async methods."""

    @staticmethod
    def fulfill(customer_token: str, order_number: int) -> None:
        calls.append((customer_token, order_number))

    @classmethod
    def ping(cls) -> None:
        calls.append((cls.__name__, "ping"))

    @staticmethod
    async def fulfill_later(customer_token: str, order_number: int) -> None:
        await asyncio.sleep(0)
        calls.append((customer_token, order_number))

    @staticmethod
    def fail(message: str = "no such order") -> None:
        calls.append(("fail", message))
        raise Broken(message)

    @staticmethod
    def poll(seconds: float = 30) -> Again:
        calls.append("poll")
        return Again(after=seconds)

    @staticmethod
    def ask_for_patience(seconds: float) -> None:
        raise RetryAfter("slow down", after=seconds)

    @staticmethod
    def give_up(reason: str) -> None:
        raise Discard(reason)

    @staticmethod
    def die() -> None:
        os._exit(70)


@target("test.effect", retry=Retry.every(60))
def effect(session: Session, what: str = "done") -> None:
    """Writes one row in the attempt's own transaction."""
    session.execute(effects.insert().values(**_mine(what)))
    if what == "raise":
        raise Broken("after the write")


@target("test.effect_later", retry=Retry.every(60))
async def effect_later(session: AsyncSession, what: str = "done") -> None:
    """The same on an AsyncSession."""
    await session.execute(effects.insert().values(**_mine(what)))
    if what == "raise":
        raise Broken("after the write")


def _mine(what: str) -> dict[str, Any]:
    current = current_attempt()
    return {"attempt_id": str(current.id), "number": current.number, "what": what}


class Rows(DeclarativeBase):
    """The declarative base of the tests. Its tables are created with `effects`."""

    metadata = more_metadata


class Effect(Rows):
    """A row of `effects` as an object, for targets that use `session.add`."""

    __table__ = effects


class HookedAttempt(BaseAttempt, Rows):
    """An application's own model, which calls `hooks[0](self, error)` after an error."""

    __tablename__ = "hooked_attempts"

    note: Mapped[str | None] = mapped_column(String(200))

    def handle_perform_error(self, error: BaseException) -> Any:
        heard.append((str(self.id), error))
        return hooks[0](self, error) if hooks else None


hooks: list[Callable[[HookedAttempt, BaseException], Any]] = []
heard: list[tuple[str, BaseException]] = []
acts: list[Callable[..., Any]] = []


def will(do: Callable[..., Any]) -> None:
    """From now on the targets `act...` call `do`."""
    acts[:] = [do]


@target("test.act", retry=Retry.every(60))
def act() -> Any:
    """Do what the test says, without a session."""
    return acts[0]()


@target("test.act_leased", retry=Retry.every(60), mode="leased")
def act_leased() -> Any:
    return acts[0]()


@target("test.act_later", retry=Retry.every(60))
async def act_later() -> Any:
    answer = acts[0]()
    return await answer if inspect.iscoroutine(answer) else answer


@target("test.act_later_locked", retry=Retry.every(60), mode="locked")
async def act_later_locked() -> Any:
    answer = acts[0]()
    return await answer if inspect.iscoroutine(answer) else answer


@target("test.act_in_session", retry=Retry.every(60))
def act_in_session(session: Session) -> Any:
    """Do what the test says, with the attempt's session."""
    return acts[0](session)


@target("test.act_shared", retry=Retry.every(60), batch=20, settle_within=1)
def act_shared(session: Session, number: int) -> Any:
    """The same in a shared transaction. It writes its number."""
    calls.append(number)
    session.execute(effects.insert().values(**_mine(str(number))))
    return acts[0](session, number)


@target("test.act_in_session_leased", retry=Retry.every(60), mode="leased")
def act_in_session_leased(session: Session) -> Any:
    return acts[0](session)


@target("test.act_in_async_session", retry=Retry.every(60))
async def act_in_async_session(session: AsyncSession) -> Any:
    return await acts[0](session)


@target("test.act_in_async_session_locked", retry=Retry.every(60), mode="locked")
async def act_in_async_session_locked(session: AsyncSession) -> Any:
    return await acts[0](session)


@target("test.act_by_default_policy")
def act_by_default_policy() -> Any:
    return acts[0]()


@target("test.act_redacted", retry=Retry.every(60), redact=["card"])
def act_redacted(card: str, order: int = 0) -> Any:
    """Do what the test says, with an argument that must not appear anywhere."""
    return acts[0](card)


class BoxEncryptor:
    """Reverses the arguments and binds them to their row. For another row it raises an error that quotes them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return hashlib.sha256(context).digest() + plaintext[::-1]

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        bound, content = ciphertext[:32], ciphertext[32:][::-1]
        if bound != hashlib.sha256(context).digest():
            raise ValueError(f"moved here: {content!r}")
        return content


BOX = register_encryptor(BoxEncryptor("test.box"))


@target("test.act_boxed", retry=Retry.every(60), encryptor=BOX, store_messages=True)
def act_boxed(card: str) -> Any:
    """The same, with arguments that the target's policy encrypts."""
    return acts[0](card)


def application(engine: Engine, door: str, async_engine_url: str, **options: Any) -> AsyncTask:
    """An application like the fixture `app`, with other options."""
    return AsyncTask(engine if door == "sync" else async_engine(async_engine_url), **{"lease": 1.0, **options})


@functools.cache
def async_engine(url: str) -> AsyncEngine:
    """The one AsyncEngine of this process for this URL, so that what it learned and compiled is kept. It is for
    `AsyncTask`, which opens connections for each loop; a test that connects makes an engine in its own loop."""
    return create_async_engine(url, query_cache_size=5_000)  # keep the statements of all tests compiled


def events_of(engine: Engine, attempt_id: Any, kind: str | None = None) -> list[Any]:
    """The events of an attempt, oldest first."""
    wanted = select(JobEvent).where(JobEvent.job_id == str(attempt_id)).order_by(JobEvent.id)
    with Session(engine) as session:
        found = list(session.scalars(wanted))
        session.expunge_all()
    return [event for event in found if kind in (None, event.kind)]


# For races and crashes: calls that wait at a gate, and calls that leave traces in files.


class Gate:
    """A call waits here until the test opens; the test can await the call."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def await_call(self) -> None:
        assert self.entered.acquire(timeout=30), "no call came"

    def pass_through(self) -> None:
        self.entered.release()
        assert self.opened.wait(30), "the test did not open"


gates: dict[str, Gate] = {}
"""The gates at which the first try of `Gated` waits, by name. Later tries pass."""


@target("test.gated", retry=Retry.every(60))
class Gated:
    """Calls that wait at a gate, locked or leased."""

    @staticmethod
    def locked(gate: str) -> None:
        _wait_at(gate)
        calls.append(("locked", gate))

    @staticmethod
    @policy(mode="leased")
    def leased(gate: str) -> None:
        _wait_at(gate)
        calls.append(("leased", gate))

    @staticmethod
    @policy(mode="leased")
    def write_leased(session: Session, gate: str) -> None:
        _wait_at(gate)
        session.execute(effects.insert().values(**_mine("done")))

    @staticmethod
    def write_locked(session: Session, gate: str) -> None:
        session.execute(effects.insert().values(**_mine("done")))
        _wait_at(gate)

    @staticmethod
    async def later(gate: str) -> None:
        await asyncio.to_thread(_wait_at, gate)
        calls.append(("later", gate))

    @staticmethod
    @policy(mode="leased")
    def meet(name: str) -> None:
        barriers[name].wait(30)


class Meeting:
    """Coroutines wait here until it ends. `number`: how many wait now."""

    def __init__(self) -> None:
        self.number = 0
        self._is_over = False

    async def join(self) -> None:
        self.number += 1
        while not self._is_over:
            await asyncio.sleep(0.005)

    def end(self) -> None:
        self._is_over = True


barriers: dict[str, threading.Barrier] = {}
"""The barriers at which `Gated.meet` waits, by name."""


def _wait_at(gate: str) -> None:
    if current_attempt().number == 1:
        gates[gate].pass_through()


def note(folder: str, word: str) -> None:
    """Write a line to the folder's file `notes`: attempt, number of the try, process, word."""
    current = current_attempt()
    with pathlib.Path(folder, "notes").open("ab", buffering=0) as file:
        file.write(f"{current.id} {current.number} {os.getpid()} {word}\n".encode())


def _hold(folder: str) -> None:
    while current_attempt().number == 1 and not pathlib.Path(folder, "go").exists():
        time.sleep(0.005)


def hold_the_gil() -> None:
    """For ever: no signal handler runs, no other thread. It waits for itself, and so takes no CPU from those that watch
    it; a call through PyDLL keeps the GIL."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(128)
    library.pthread_mutex_init(mutex, None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


@target("test.elsewhere", retry=Retry.every(60))
class Elsewhere:
    """Calls in other processes, which leave their traces in files."""

    @staticmethod
    def start(folder: str) -> None:
        note(folder, "start")

    @staticmethod
    def say_what_stays() -> None:
        """Print how many objects the garbage collector skips."""
        print(gc.get_freeze_count())

    @staticmethod
    def loop(folder: str) -> None:
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    @policy(timeout=0.2)
    def loop_with_a_limit(folder: str) -> None:
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)

    @staticmethod
    def hold(folder: str) -> None:
        note(folder, "start")
        _hold(folder)

    @staticmethod
    def hold_always(folder: str) -> None:
        note(folder, "start")
        while not pathlib.Path(folder, "go").exists():
            time.sleep(0.005)

    @staticmethod
    def write_and_hold(session: Session, folder: str) -> None:
        session.execute(effects.insert().values(**_mine("done")))
        note(folder, "start")
        _hold(folder)

    @staticmethod
    @policy(batch=10, settle_within=1)
    def write_together(session: Session, folder: str, at_third: str) -> None:
        """In the first try, the third call waits to be killed, or commits its transaction and dies."""
        note(folder, "start")
        is_third = len(pathlib.Path(folder, "notes").read_text().splitlines()) == 3
        if is_third and at_third == "commit":
            session.execute(text("COMMIT"))
            os.kill(os.getpid(), signal.SIGKILL)
        session.execute(effects.insert().values(**_mine("done")))
        if is_third:
            _hold(folder)

    @staticmethod
    def say(text: str) -> None:
        print(text)

    @staticmethod
    def keep(folder: str, text: str) -> None:
        note(folder, f"{len(text)}")

    @staticmethod
    def die(folder: str, how: str) -> None:
        note(folder, "start")
        faulthandler.disable()  # it would print a trace of the crash that we want
        if how == "exit":
            os._exit(0)
        elif how == "segfault":
            ctypes.string_at(0)
        elif how == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "overflow":
            sys.setrecursionlimit(2**31 - 1)
            repr(_Endless())


class _Endless:
    def __repr__(self) -> str:
        return repr(self)


@target("test.greedy", retry=Retry.never())
def be_greedy(folder: str) -> None:
    """Use all the memory of a limit that it sets for itself."""
    note(folder, "start")
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
    taken = []
    while True:
        taken.append(bytearray(2**20))


@target("test.act_boxed_in_session", retry=Retry.every(60), encryptor=BOX, store_messages=True)
def act_boxed_in_session(session: Session, card: str) -> Any:
    return acts[0](session, card)


@target("test.act_brief_later", retry=Retry.every(60), timeout=0.05)
async def act_brief_later() -> Any:
    answer = acts[0]()
    return await answer if inspect.iscoroutine(answer) else answer


@target("test.act_brief_in_session", retry=Retry.every(60), timeout=0.5)
def act_brief_in_session(session: Session) -> Any:
    return acts[0](session)


class _Greeter:
    def greet(self, name: str) -> None:
        calls.append(f"hello {name}")


instance = target(_Greeter(), name="test.instance")
module = types.ModuleType("outbox_module")


def _note(what: str) -> None:
    calls.append(what)


_note.__module__ = module.__name__
vars(module)["note"] = _note
target(module, name="test.module")
