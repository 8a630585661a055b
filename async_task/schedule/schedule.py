"""`Schedule`: the times and the calls of an application, as code beside its targets."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict, Unpack
from zoneinfo import ZoneInfo

from async_task.attempts.options import CallToMake
from async_task.errors import AsyncTaskError, ConfigurationError, near
from async_task.schedule.cron import Cron
from async_task.schedule.entry import Entry, When, entry_of
from async_task.schedule.rules import At, Every, Rule, days_of, interval_of, time_of_day, zone_of
from async_task.targets.retry import Duration


class EntryOptions(TypedDict, total=False):
    """What `every`, `cron` and `at` all take besides their `call`.

    `args`: the arguments of the call, by name. `key`: the name of the entry, unique in the schedule; left out, the name
    of the call. `catch_up`: how many of the times that no clock saw are enqueued late: "skip" (none, the default),
    "latest" (one), "all" (the last 100), "all(24)" (the last 24). `overlap`, while the attempt of its last occurrence
    is pending: "allow" the next one (the default), "skip" it, or "queue" it, so that they are performed one after the
    other. `jitter`: seconds or a timedelta; each attempt becomes due a random part of it later. `when`: a function that
    is called with the fire time, in the zone of the entry, and says whether to enqueue; the clock calls it, so that it
    must be quick.
    """

    args: Mapping[str, Any] | None
    key: str | None
    catch_up: str
    overlap: str
    jitter: Duration
    when: When | None


Callee = Callable[..., Any] | CallToMake | str
Zone = str | ZoneInfo | None


class Schedule:
    """Calls that are enqueued at set times, by any number of clocks, each once.

        schedule = Schedule()
        schedule.every(minutes=5, call=sync_ledger)
        schedule.cron("5 * * * *", tz="Europe/London", call=Attempt.options(queue="slow").of(report))
        schedule.at("02:30", tz="America/New_York", days="mon-fri", call=close_day, catch_up="latest")
        outbox = AsyncTask(SessionLocal, schedule=schedule)

    `call`: a registered function or a method of a target, the same with options (`Attempt.options(...).of(...)`), or
    its name, as `async-task enqueue` takes it. An entry is checked like a call: wrong arguments, an unknown zone, an
    impossible date and a second entry of one key raise ConfigurationError here.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def every(
        self, *, weeks: float = 0, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0,
        call: Callee, **options: Unpack[EntryOptions],
    ) -> None:  # fmt: skip
        """Enqueue `call` at each multiple of this interval, counted in UTC since midnight of a Monday.

        At least 1 s. So it does not matter when a clock starts: `minutes=5` is at :00, :05, :10.
        """
        self._add(
            lambda: Every(interval_of(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)),
            "every", call, options,
        )  # fmt: skip

    def cron(self, expression: str, *, tz: Zone = None, call: Callee, **options: Unpack[EntryOptions]) -> None:
        """Enqueue `call` at the times of a cron expression in the zone `tz`, as Debian's cron reads it.

        Needs the extra `scheduler`. Sunday is 0 and 7. If day of the month and day of the week are both given, one of
        them must match. An expression whose minute or hour begins with a star follows real time through a change of
        daylight saving; any other one is a time of day, as `at`.
        """
        self._add(lambda: Cron(expression, zone_of(tz)), f"cron {expression!r}", call, options)

    def at(
        self, time: str, *, tz: Zone = None, days: str | None = None, call: Callee, **options: Unpack[EntryOptions]
    ) -> None:
        """Enqueue `call` at a time of day in the zone `tz`: "02:30", on `days` ("mon-fri", "sat,sun"; left out, all).

        A time that a change of daylight saving leaves out is the next instant that exists; one that comes twice is the
        first.
        """
        self._add(lambda: At(*time_of_day(time), zone_of(tz), days_of(days)), f"at {time!r}", call, options)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """By key, in the order of the source."""
        return self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def _add(self, rule: Callable[[], Rule], place: str, call: Callee, options: EntryOptions) -> None:
        key = options.get("key")
        name = f"{place} of {_label(call)}" if key is None else repr(key)
        try:
            _refuse_unknown(options)
            made = entry_of(
                rule(), call=call, args=options.get("args"), key=key,
                catch_up=options.get("catch_up", "skip"), overlap=options.get("overlap", "allow"),
                jitter=options.get("jitter", 0), when=options.get("when"),
            )  # fmt: skip
        except AsyncTaskError as error:
            raise ConfigurationError(f"schedule entry {name}: {error}") from error
        if made.key in self._entries:
            raise made.error(
                f"there are two with this key ({self._entries[made.key].rule}; {made.rule}): give one a key="
            )
        self._entries[made.key] = made


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in EntryOptions.__annotations__:
            raise ConfigurationError(f"there is no option {name}={near(name, EntryOptions.__annotations__)}")


def _label(call: object) -> str:
    named = call.function if isinstance(call, CallToMake) else call
    return str(getattr(named, "__qualname__", named))
